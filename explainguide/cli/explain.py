"""``explainguide explain``: a picture of what a model looks at, for images of one's own."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from explainguide.cli.settings import Later, add_settings
from explainguide.cli.usage import UsageError
from explainguide.errors import operation
from explainguide.guidance.options import READING, GuideOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as PILImage
    from torch import Tensor

    from explainguide.attr import LayerMap
    from explainguide.cli.subject import Subject

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "draw what a model looks at, for chosen layers and attributions"
EXAMPLE = """\
explainguide explain cat.jpg --model resnet50 --pretrained --layer layer3 layer4 \\
      --attribution ixg gradcam --out cat.png
  explainguide explain digit.png --checkpoint runs/decoy/last.pt --layer input --out digit.png
  explainguide explain cat.jpg dog.jpg --checkpoint bcos.pt --bcos \\
      --out colours.png"""

_DPI = 160
_FORMATS = ("png", "pdf", "svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="files that Pillow can read")
    model = parser.add_argument_group("model (--checkpoint, or --model)")
    model.add_argument(
        "--checkpoint", metavar="FILE", help="what `explainguide train` or `convert` wrote"
    )
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a name of timm's (resnet50), torchvision:NAME, or package.module:function",
    )
    model.add_argument("--pretrained", action="store_true", help="download the model's weights")
    model.add_argument(
        "--weights",
        metavar="FILE",
        help="weights for --model, from a file; those of a training say their classes, size and "
        "normalisation too",
    )
    model.add_argument(
        "--num-classes", type=int, metavar="N", help="logits of --model, where not its own number"
    )
    add_settings({"guidance": model}, GuideOptions, only=READING)
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
        metavar="NAME",
        help=Later(_about_attributions),
    )
    shown.add_argument(
        "--bcos",
        action="store_true",
        help="of a B-cos network: its explanation in colour, and what each place contributes",
    )
    shown.add_argument(
        "--neuron",
        metavar="LAYER:CHANNEL[:ROW,COLUMN]",
        help="with --bcos: explain a neuron instead of a class, by default where it is largest",
    )
    shown.add_argument(
        "--target", metavar="CLASS", help="number or name of a class (default: the predicted one)"
    )
    shown.add_argument(
        "--boxes",
        action="append",
        metavar="X1,Y1,X2,Y2",
        help="a box to draw, in pixels of the upright picture; one --boxes an image, ';' between "
        "boxes",
    )
    shown.add_argument("--signed", action="store_true", help="show negative attribution too")
    shown.add_argument(
        "--size",
        metavar="N",
        help="side that images are squashed to, or HEIGHTxWIDTH (default: the model's)",
    )
    shown.add_argument("--out", required=True, metavar="FILE", help="the picture: .png, .pdf, .svg")


def _about_attributions() -> str:
    from explainguide.attr import ATTRIBUTIONS

    return f"{', '.join(ATTRIBUTIONS)}, or module:Class (default: ixg)"


def run(args: argparse.Namespace) -> int:
    """Explain every image, and save one picture."""
    from explainguide.attr.placement import check_attribution
    from explainguide.cli.bcos_pictures import check_bcos_arguments, draw_bcos, parse_neuron
    from explainguide.cli.data import allow_local_modules, in_library
    from explainguide.cli.pictures import parse_boxes, read_picture, tell_turned
    from explainguide.cli.subject import open_subject

    allow_local_modules()
    for name in args.attribution or []:
        with operation("--attribution"):
            check_attribution(name, {})
    check_bcos_arguments(args)
    neuron = parse_neuron(args.neuron) if args.neuron else None
    told: set[str] = set()
    pictures = [read_picture(path, told=told) for path in args.image]
    boxes = parse_boxes(args.boxes or [], pictures)
    tell_turned(args.image, boxes)
    subject = open_subject(args)
    _check_out(args.out)
    height, width = subject.size
    boxes = [
        own_boxes * own_boxes.new_tensor([width / p.width, height / p.height] * 2)
        for own_boxes, p in zip(boxes, pictures, strict=True)
    ]
    if args.bcos:
        figure, texts = draw_bcos(pictures, subject, target=args.target, neuron=neuron, boxes=boxes)
    else:
        figure, texts = _draw(args, pictures, subject, boxes)
    _save(figure, args.out)
    for path, text in zip(args.image, texts, strict=True):
        print(f"{path}: {text}")
    print(f"saved {args.out}")
    if args.model and not (args.pretrained or args.weights) and in_library(args.model):
        print(
            f"note: {args.model} has random weights, so its maps mean nothing; --pretrained "
            "downloads trained ones, --weights reads a file",
            file=sys.stderr,
        )
    return 0


def _draw(
    args: argparse.Namespace, pictures: list[PILImage], subject: Subject, boxes: list[Tensor]
) -> tuple[Figure, list[str]]:
    """Maps of the attributions that are named, on the images; and a line for each image."""
    from explainguide.cli.subject import ask
    from explainguide.visualization import panel

    prepared = [subject.prepare(picture) for picture in pictures]
    answers = [ask(args.target, taken, subject) for _, taken in prepared]
    maps = {}
    for title, method in _methods(args.attribution or ["ixg"], args.layer, subject):
        maps[title] = [
            method.attribute(taken, answer.label)[0]
            for (_, taken), answer in zip(prepared, answers, strict=True)
        ]
    texts = [answer.text for answer in answers]
    sign: Literal["positive", "signed"] = "signed" if args.signed else "positive"
    figure = panel([shown for shown, _ in prepared], maps, boxes=boxes, titles=texts, sign=sign)
    return figure, texts


def _methods(
    names: list[str], layers: list[str | None] | None, subject: Subject
) -> list[tuple[str, LayerMap]]:
    """Every attribution at every layer; one that has a place of its own there, if none is named."""
    from explainguide.attr.placement import place_attribution

    reading = replace(subject.reading, image_size=subject.size)
    methods = []
    for layer in layers or [None]:
        for name in names:
            method, places = place_attribution(subject.model, name, layer, reading=reading)
            (place,) = places
            methods.append((f"{name} at {place}", method.at(place)))
    return methods


def _check_out(out: str) -> None:
    """Refuse a name that cannot be written, before the work."""
    path = Path(out)
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        raise UsageError(
            f"--out: {out!r} is no picture. Use {path.with_suffix('.png').name!r}. Names that end "
            f"in {', '.join('.' + name for name in _FORMATS)} are allowed."
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _save(figure: Figure, out: str) -> None:
    from explainguide.training.checkpoints import write_whole

    kind = Path(out).suffix.lower().lstrip(".")
    write_whole(out, lambda file: figure.savefig(file, format=kind, dpi=_DPI))
