"""The model that is explained on the command line, how it takes images, and what it answers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL.Image import Image as PILImage
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from explainguide.cli.data import (
    check_plain,
    choose_normalisation,
    choose_size,
    image_encoding,
)
from explainguide.cli.pictures import parse_size
from explainguide.cli.settings import given_settings
from explainguide.cli.usage import UsageError
from explainguide.errors import OptionError, did_you_mean
from explainguide.guidance.options import READING, GuideOptions, explaining
from explainguide.hooks.logits import check_logits, class_scores
from explainguide.hooks.reading import AS_FOUND, Reading
from explainguide.models.build import build_model, load_weights, set_image_size
from explainguide.training.checkpoints import describe_weights, load_model

__all__ = ["Answer", "Subject", "ask", "open_subject"]

_SIDE = 224


@dataclass(frozen=True)
class Subject:
    """The model that is explained, and how it takes images."""

    model: nn.Module
    size: tuple[int, int]
    encoding: list[v2.Transform]
    classes: list[str]
    multilabel: bool = False
    reading: Reading = AS_FOUND

    def prepare(self, picture: PILImage) -> tuple[Tensor, Tensor]:
        """The image in [0, 1] at the model's size, ``(3, H, W)``, and what the model takes."""
        image = functional.resize(functional.pil_to_tensor(picture), list(self.size))
        shown = image.float() / 255
        taken = shown
        for step in self.encoding:
            taken = step(taken)
        return shown, taken[None]


class Answer(NamedTuple):
    """The class that is explained, a line that says so, and its score: of one logit z, z or -z."""

    label: int
    text: str
    logit: float


def open_subject(args: argparse.Namespace) -> Subject:
    """The model of ``--checkpoint`` or ``--model``, in evaluation mode.

    Raises:
        OptionError: If it is not one of the two, or options are given that do not go with it.
        DataError: If a file cannot be read.
    """
    if (args.checkpoint is None) == (args.model is None):
        raise UsageError(
            "--checkpoint, --model: give one of the two. A file of `explainguide train`, or a name "
            "such as resnet50, is allowed."
        )
    asked = parse_size(args.size) if args.size else None
    given = given_settings(args, GuideOptions, only=READING)
    if args.checkpoint is not None:
        if args.pretrained or args.weights or args.num_classes:
            raise UsageError(
                "--checkpoint: it holds its own model and weights. Leave out --pretrained, "
                "--weights and --num-classes. They go with --model."
            )
        model, info = load_model(args.checkpoint)
        side = info.get("image_size") or _SIDE
        encoding = image_encoding(
            model, *choose_normalisation(model, info.get("mean"), info.get("std"))
        )
        classes, multilabel = list(info.get("classes") or []), bool(info.get("multilabel"))
        reading = explaining({**info["config"], **given}).reading
        return Subject(model, asked or (side, side), encoding, classes, multilabel, reading)
    record = describe_weights(args.weights)
    check_plain(record, args.weights)
    count = record.get("num_classes") if args.num_classes is None else args.num_classes
    model = build_model(
        args.model,
        num_classes=count,
        pretrained=args.pretrained,
        image_size=record.get("image_size"),
    ).eval()
    note = load_weights(model, args.weights) if args.weights else ""
    if note:  # a head with random weights explains nothing
        raise OptionError(
            f"{args.weights}: {note} Name the number of classes of the file with "
            "--num-classes. The whole model is needed."
        )
    own = getattr(model, "pretrained_cfg", None) or {}
    side = record.get("image_size") or (own.get("input_size") or (0, 0, None))[-1]
    side = choose_size(None, side)
    if asked is not None and asked[0] == asked[1]:
        set_image_size(model, asked[0])
    mean, std = choose_normalisation(model, record.get("mean"), record.get("std"))
    encoding = image_encoding(model, mean, std)
    classes, multilabel = list(record.get("classes") or []), bool(record.get("multilabel"))
    reading = explaining(given).reading
    return Subject(model, asked or (side, side), encoding, classes, multilabel, reading)


def ask(target: str | None, image: Tensor, subject: Subject) -> Answer:
    """What the model says of an image, and the class to explain: the predicted one by default.

    Raises:
        OptionError: If `target` is no class.
    """
    with torch.no_grad():
        output = subject.model(image)
        logits = check_logits(output, reading=subject.reading, images=1).float()
    scores = class_scores(logits)[0]
    yes_or_no = subject.multilabel or logits.shape[1] == 1
    shares = scores.sigmoid() if yes_or_no else scores.softmax(0)
    names = _class_names(subject.classes, len(scores))
    best = int(scores.argmax())
    label = best if target is None else _find_class(target, names)
    text, score = f"{names[label]} ({shares[label]:.0%})", float(scores[label])
    if label == best:
        return Answer(label, f"predicted {text}", score)
    return Answer(label, f"{text}; predicted {names[best]} ({shares[best]:.0%})", score)


def _class_names(known: list[str], count: int) -> list[str]:
    if len(known) == count:
        return known
    if len(known) == 1 and count == 2:  # one logit for one class
        return [f"not {known[0]}", known[0]]
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
    raise UsageError(
        f"--target: unknown class {target!r}.{did_you_mean(target.lower(), lower)} A number from 0 "
        f"to {len(names) - 1}, or a name such as {names[0]!r}, is allowed."
    )
