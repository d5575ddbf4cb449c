"""``explainguide explain``: a picture of what a model looks at, for images of one's own."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from explainguide.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as PILImage
    from torch import Tensor, nn

    from explainguide.attr import LayerMap

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "draw what a model looks at, for chosen layers and attributions"
EXAMPLE = """\
explainguide explain cat.jpg --model resnet50 --pretrained --layer layer3 layer4 \\
      --attribution ixg gradcam --out cat.png
  explainguide explain digit.png --checkpoint runs/decoy/last.pt --layer input --out digit.png"""

_CALLER = "explain"
_SIDE, _DPI = 224, 160
_FORMATS = ("png", "pdf", "svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="files that Pillow can read")
    model = parser.add_argument_group("model (--checkpoint, or --model)")
    model.add_argument("--checkpoint", metavar="FILE", help="what `explainguide train` wrote")
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a name of timm's (resnet50), torchvision:NAME, or package.module:function",
    )
    model.add_argument("--pretrained", action="store_true", help="download the model's weights")
    model.add_argument("--weights", metavar="FILE", help="weights for --model, from a file")
    model.add_argument(
        "--num-classes", type=int, metavar="N", help="logits of --model, where not its own number"
    )
    shown = parser.add_argument_group("what is drawn")
    shown.add_argument(
        "--layer",
        nargs="+",
        metavar="NAME",
        help="input, or dotted names (default: the last spatial layer; see `explainguide layers`)",
    )
    shown.add_argument(
        "--attribution",
        nargs="+",
        default=["ixg"],
        metavar="NAME",
        help="ixg, gradient, gradcam, layercam, intgrad, or relevance, for ViTs (default: ixg)",
    )
    shown.add_argument(
        "--target", metavar="CLASS", help="number or name of a class (default: the predicted one)"
    )
    shown.add_argument(
        "--boxes",
        action="append",
        metavar="X1,Y1,X2,Y2",
        help="a box to draw, in pixels of the file; one --boxes an image, ';' between boxes",
    )
    shown.add_argument("--signed", action="store_true", help="show negative attribution too")
    shown.add_argument(
        "--size",
        metavar="N",
        help="side that images are squashed to, or HEIGHTxWIDTH (default: the model's)",
    )
    shown.add_argument("--out", required=True, metavar="FILE", help="the picture: .png, .pdf, .svg")


def run(args: argparse.Namespace) -> int:
    """Explain every image, and save one picture."""
    from explainguide.attr import ATTRIBUTIONS
    from explainguide.commands.data import allow_local_modules
    from explainguide.commands.pictures import parse_boxes, read_picture
    from explainguide.options import check_option
    from explainguide.visualization import panel

    for name in args.attribution:
        check_option("attribution", name, ATTRIBUTIONS, caller="--attribution")
    allow_local_modules()
    pictures = [read_picture(path, caller=_CALLER) for path in args.image]
    boxes = parse_boxes(args.boxes or [], pictures)
    subject = _subject(args)
    _check_out(args.out)
    prepared = [subject.prepare(picture) for picture in pictures]
    answers = [_answer(args.target, normalised, subject) for _, normalised in prepared]
    height, width = subject.size
    maps = {}
    for title, method in _methods(args.attribution, args.layer, subject):
        maps[title] = [
            method.attribute(normalised, answer.label)[0]
            for (_, normalised), answer in zip(prepared, answers, strict=True)
        ]
    figure = panel(
        [shown for shown, _ in prepared],
        maps,
        boxes=[
            found * found.new_tensor([width / p.width, height / p.height] * 2)
            for found, p in zip(boxes, pictures, strict=True)
        ],
        titles=[answer.text for answer in answers],
        sign="signed" if args.signed else "positive",
    )
    _save(figure, args.out)
    for path, answer in zip(args.image, answers, strict=True):
        print(f"{path}: {answer.text}")
    print(f"saved {args.out}")
    if args.model and not (args.pretrained or args.weights) and _in_library(args.model):
        print(
            f"note: {args.model} has random weights, so its maps mean nothing; --pretrained "
            "downloads trained ones, --weights reads a file",
            file=sys.stderr,
        )
    return 0


@dataclass(frozen=True)
class _Subject:
    """The model that is explained, and how it takes images."""

    model: nn.Module
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    classes: list[str]
    multilabel: bool = False

    def prepare(self, picture: PILImage) -> tuple[Tensor, Tensor]:
        """The image in [0, 1] at the model's size, ``(3, H, W)``, and what the model takes."""
        from torchvision.transforms.v2 import functional

        image = functional.resize(functional.pil_to_tensor(picture), list(self.size))
        shown = image.float() / 255
        return shown, functional.normalize(shown, self.mean, self.std)[None]


class _Answer(NamedTuple):
    label: int
    text: str


def _subject(args: argparse.Namespace) -> _Subject:
    from explainguide.checkpoints import load_model
    from explainguide.commands.data import choose_normalisation, choose_size
    from explainguide.commands.pictures import parse_size
    from explainguide.models import build_model, load_weights, set_image_size

    if (args.checkpoint is None) == (args.model is None):
        raise OptionError(
            "--checkpoint, --model: give one of the two. A file of `explainguide train`, or a name "
            "such as resnet50, is allowed."
        )
    asked = parse_size(args.size) if args.size else None
    if args.checkpoint is not None:
        if args.pretrained or args.weights or args.num_classes:
            raise OptionError(
                "--checkpoint: it holds its own model and weights. Leave out --pretrained, "
                "--weights and --num-classes. They go with --model."
            )
        model, info = load_model(args.checkpoint)
        side = info.get("image_size") or _SIDE
        mean, std = info.get("mean"), info.get("std")
        mean, std = choose_normalisation("", model, mean, std)
        classes, multilabel = list(info.get("classes") or []), bool(info.get("multilabel"))
        return _Subject(model, asked or (side, side), mean, std, classes, multilabel)
    model = build_model(
        args.model,
        num_classes=args.num_classes,
        pretrained=args.pretrained,
    ).eval()
    note = load_weights(model, args.weights) if args.weights else ""
    if note:  # a head with random weights explains nothing
        raise OptionError(
            f"{_CALLER}: {args.weights}: {note} Name the number of classes of the file with "
            "--num-classes. The whole model is needed."
        )
    own = getattr(model, "pretrained_cfg", None) or {}
    side = choose_size("", None, (own.get("input_size") or (0, 0, None))[-1])
    if asked is not None and asked[0] == asked[1]:
        set_image_size(model, asked[0])
    mean, std = choose_normalisation("", model, None, None)
    return _Subject(model, asked or (side, side), mean, std, [])


def _in_library(name: str) -> bool:
    """Whether a name is that of a library; a user's function may have loaded its weights."""
    library, colon, _ = name.partition(":")
    return not colon or library in ("timm", "torchvision")


def _methods(
    names: list[str], layers: list[str] | None, subject: _Subject
) -> list[tuple[str, LayerMap]]:
    """Every attribution at every layer; one that has a place of its own there, if none is named."""
    from explainguide.attr import ATTRIBUTIONS
    from explainguide.layers import resolve_layers
    from explainguide.options import named_attribution
    from explainguide.probe import automatic_layer, probe_layers

    places: list[str | None] = [None]
    if layers is not None:
        places = list(resolve_layers(subject.model, layers, caller=_CALLER))
    elif not all(ATTRIBUTIONS[name].places_itself for name in names):
        infos = probe_layers(subject.model, image_size=subject.size, caller=_CALLER)
        places = [automatic_layer(subject.model, infos, caller=_CALLER)]
    found = []
    for place in places:
        for name in names:
            own = layers is None and ATTRIBUTIONS[name].places_itself
            method = named_attribution(name, subject.model, None if own else place, caller=_CALLER)
            method = method if own or place is None else method.at(place)
            found.append((f"{name} at {method.layer}", method))
    return found


def _answer(target: str | None, image: Tensor, subject: _Subject) -> _Answer:
    """The class that is explained, and a line that says so."""
    import torch

    from explainguide.logits import check_logits

    with torch.no_grad():
        logits = check_logits(subject.model(image), caller=_CALLER)[0].float()
    shares = logits.sigmoid() if subject.multilabel or len(logits) == 1 else logits.softmax(0)
    names = subject.classes or _class_names(len(logits))
    best = int(shares.argmax())
    label = best if target is None else _find_class(target, names)
    if label == best:
        return _Answer(label, f"predicted {names[label]} ({shares[label]:.0%})")
    said = f"predicted {names[best]} ({shares[best]:.0%})"
    return _Answer(label, f"{names[label]} ({shares[label]:.0%}); {said}")


def _class_names(count: int) -> list[str]:
    if count == 1000:  # ImageNet's, in the order that timm and torchvision share
        from timm.data import ImageNetInfo

        described = ImageNetInfo()
        return [str(described.index_to_description(i)).split(",")[0] for i in range(count)]
    return [f"class {i}" for i in range(count)]


def _find_class(target: str, names: list[str]) -> int:
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    lower = [name.lower() for name in names]
    if target.lower() in lower:
        return lower.index(target.lower())
    raise OptionError(
        f"--target: unknown class {target!r}.{did_you_mean(target.lower(), lower)} A number from 0 "
        f"to {len(names) - 1}, or a name such as {names[0]!r}, is allowed."
    )


def _check_out(out: str) -> None:
    """Refuse a name that cannot be written, before the work."""
    path = Path(out)
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        raise OptionError(
            f"--out: {out!r} is no picture. Use {path.with_suffix('.png').name!r}. Names that end "
            f"in {', '.join('.' + name for name in _FORMATS)} are allowed."
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _save(figure: Figure, out: str) -> None:
    from explainguide.checkpoints import write_whole

    kind = Path(out).suffix.lower().lstrip(".")
    write_whole(out, lambda file: figure.savefig(file, format=kind, dpi=_DPI))
