"""The network that ``explainguide train`` begins with, and what a checkpoint says of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from explainguide.bcos import bcosify
from explainguide.bcos.saved import rebuild
from explainguide.cli.data import (
    allow_local_modules,
    check_plain,
    choose_normalisation,
    choose_size,
    count_logits,
    fits_classes,
    in_library,
)
from explainguide.cli.data_options import check_same_classes
from explainguide.cli.usage import UsageError
from explainguide.datasets import DataSource
from explainguide.models.build import build_model, load_weights, set_image_size
from explainguide.training.checkpoints import describe_weights, load_checkpoint, load_model

__all__ = ["begin"]


def begin(
    args: argparse.Namespace, classes: Sequence[str], source: DataSource
) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and how it is built, converted, and takes its images.

    Args:
        args: The options of `train`.
        classes: Of the data, their names.
        source: What the data say of the size and normalisation of their images.

    Raises:
        OptionError: For options that exclude one another, or other classes than a checkpoint's.
        DataError: If a file cannot be read.
    """
    num_classes = len(classes)
    _check(args)
    allow_local_modules()
    last = Path(args.out) / "last.pt"
    going_on = args.resume and last.exists()
    if args.checkpoint is not None:
        return _of_checkpoint(args, str(last) if going_on else args.checkpoint, classes, source)
    record = describe_weights(last if going_on else args.weights)
    if not going_on:
        check_plain(record, args.weights)
    model = build_model(
        args.model,
        num_classes=num_classes,
        pretrained=args.pretrained and not going_on,
        image_size=record.get("image_size"),
    )
    if args.weights and not going_on:
        note = load_weights(model, args.weights)
        if note:
            print(note)
    if args.size is not None:
        set_image_size(model, args.size)
    own = getattr(model, "pretrained_cfg", None) or {}
    asked = record.get("image_size") if args.size is None else args.size
    size = choose_size(asked, source.image_size, (own.get("input_size") or (0, 0, None))[-1])
    # A B-cos network that goes on has its normalisation in its first layer.
    kept = record.get("bcos") or record
    mean, std = (getattr(args, name) or kept.get(name) for name in ("mean", "std"))
    mean, std = choose_normalisation(model, mean, std, normalise=source.normalise)
    if not in_library(args.model):
        _check_logits(model, args, num_classes, size)
    about: dict[str, Any] = {"name": args.model, "num_classes": num_classes}
    if args.bcos:
        options: dict[str, Any] = {"b": 2.0 if args.b is None else args.b}
        options |= {"keep_weights": not args.fresh, "image_size": [size, size]}
        options |= {} if args.fresh else {"mean": mean, "std": std}
        if going_on:
            model = rebuild(model, options, load_checkpoint(last)["model"])
        else:
            model = bcosify(model, **options)
        about["bcos"] = options
        mean, std = choose_normalisation(model, None, None)
    return model, about | {"image_size": size, "mean": mean, "std": std}


def _check(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.checkpoint is None):
        raise UsageError(
            "--model, --checkpoint: give one of the two. A name such as resnet18, or a file of "
            "`explainguide convert` or `train`, is allowed."
        )
    if args.pretrained and args.weights:
        raise UsageError(
            "--weights: with --pretrained there are two. Leave one out. Either is allowed."
        )
    for name in ("pretrained", "weights", "bcos"):
        if args.checkpoint is not None and getattr(args, name):
            raise UsageError(
                f"--{name}: it goes with --model. Leave it out: --checkpoint holds its own network "
                "and weights. `explainguide convert NAME --bcos` makes a B-cos network of a model."
            )
    for name in ("b", "fresh"):
        if getattr(args, name) and not args.bcos:
            raise UsageError(
                f"--{name}: it goes with --bcos. Add --bcos, or leave it out. It is allowed with "
                "--bcos alone."
            )
    if args.fresh and (args.pretrained or args.weights):
        raise UsageError(
            "--fresh: it makes new weights. Leave out --pretrained and --weights, or --fresh. New "
            "weights or given ones are allowed."
        )


def _check_logits(model: nn.Module, args: argparse.Namespace, num_classes: int, size: int) -> None:
    """What a user's function built must tell the classes apart; one logit tells two."""
    count = count_logits(model, size, output=args.output)
    if not fits_classes(count, num_classes):
        raise UsageError(
            f"--model: '{args.model}' has {count} logits and the data {num_classes} classes. Let the "
            f"function take num_classes, which is {num_classes}. As many logits as classes, or one for "
            "two classes, are allowed."
        )


def _of_checkpoint(
    args: argparse.Namespace, path: str, classes: Sequence[str], source: DataSource
) -> tuple[nn.Module, dict[str, Any]]:
    model, before = load_model(path)
    num_classes = len(classes)
    if not fits_classes(before.get("num_classes"), num_classes):
        raise UsageError(
            f"--checkpoint: '{path}' has {before['num_classes']} classes and the data {num_classes}. "
            f"Convert the model with --num-classes {num_classes}. The classes must agree."
        )
    if (known := before.get("classes")) is not None:
        check_same_classes(
            classes,
            known,
            of=("the data", f"--checkpoint '{path}'"),
            remedy=f"Let the data list their classes as {', '.join(map(repr, known))}, or take its "
            "weights alone, with --model and --weights.",
        )
    if args.size is not None:
        set_image_size(model, args.size)
    mean, std = (getattr(args, name) or before.get(name) for name in ("mean", "std"))
    mean, std = choose_normalisation(model, mean, std, normalise=source.normalise)
    about = {key: before.get(key) for key in ("name", "num_classes")}
    about |= {key: before[key] for key in ("bcos", "xdnn") if before.get(key) is not None}
    about["image_size"] = choose_size(args.size, source.image_size, before.get("image_size"))
    return model, about | {"mean": mean, "std": std}
