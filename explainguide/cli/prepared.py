"""What a training begins with: its images with their transforms, and the network."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from explainguide.cli.data import allow_local_modules, build_transforms, image_encoding
from explainguide.cli.data_options import (
    check_same_classes,
    describe_data,
    find_source,
    open_training,
    open_validation,
)
from explainguide.cli.start import begin
from explainguide.errors import OptionError
from explainguide.recipes import recipe
from explainguide.training.config import TrainConfig

__all__ = ["Prepared", "prepare"]


@dataclass
class Prepared:
    """Ready to be trained.

    Attributes:
        model: The network.
        build: Makes it again, from the random numbers of then.
        train_data: With transforms.
        val_data: With transforms.
        test_data: The split of ``--test-set``, or None.
        info: For the checkpoints.
    """

    model: nn.Module
    build: Callable[[], nn.Module]
    train_data: Any
    val_data: Any
    test_data: Any
    info: dict[str, Any]


def prepare(
    args: argparse.Namespace, config: TrainConfig, *, masks: bool, test_set: str | None = None
) -> Prepared:
    """Open the images and build the network.

    Args:
        args: The options of `train` or `sweep`.
        config: The settings; the seed is that of the network's first weights.
        masks: Whether the training needs masks.
        test_set: A split that is evaluated at the end.

    Raises:
        OptionError: For options that do not fit, or images of one class.
        DataError, AnnotationError: As the data sets.
    """
    allow_local_modules()
    source = find_source(args.data)
    train_data = open_training(args, source, masks=masks)
    val_data = open_validation(args, source)
    test_data = None
    if test_set is not None:
        test_data = open_validation(
            argparse.Namespace(**{**vars(args), "val_set": test_set}), source
        )
    multilabel = bool(getattr(train_data, "multilabel", False))
    for data, of in ((val_data, "those of evaluation"), (test_data, "those of the test")):
        if data is not None:
            check_same_classes(
                train_data.classes,
                data.classes,
                of=("the training images", of),
                remedy="Name the folders alike, or let both data sets list their classes in one order.",
            )
    if len(train_data.classes) < 2 and not multilabel:
        raise OptionError(
            f"the images are of one class, {train_data.classes[0]!r}, so every answer is right. "
            "Add a folder with images of what it is not. Two classes or more are allowed."
        )
    torch.manual_seed(config.seed)
    model, about = begin(args, train_data.classes, source)
    if args.recipe is not None and args.layer is None:
        recipe(args.recipe).check_layers(model)
    flip = not args.no_flip and source.flips
    encoding = image_encoding(model, about["mean"], about["std"])
    train_data.transforms = build_transforms(about["image_size"], encoding, flip=flip)
    for data in (val_data, test_data):
        if data is not None:
            data.transforms = build_transforms(about["image_size"], encoding)
    info = {
        **about,
        "classes": list(train_data.classes),
        "multilabel": multilabel,
        "flip": flip,
        "recipe": args.recipe,
        **describe_data(args, source),
    }

    def build() -> nn.Module:
        return begin(args, train_data.classes, source)[0]

    return Prepared(model, build, train_data, val_data, test_data, info)
