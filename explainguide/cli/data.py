"""How a model takes its images: their size, normalisation and transforms, and its logits."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from explainguide.bcos import AddInverse
from explainguide.cli.usage import UsageError
from explainguide.hooks.dynamic import evaluating, is_bcos
from explainguide.hooks.logits import check_logits
from explainguide.hooks.probe import input_size
from explainguide.hooks.reading import Reading

__all__ = [
    "allow_local_modules",
    "build_transforms",
    "check_plain",
    "choose_normalisation",
    "choose_size",
    "count_logits",
    "fits_classes",
    "image_encoding",
    "in_library",
]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_SIZE = 224


def choose_size(size: int | None, *own: int | None) -> int:
    """The side of the images: as asked, else the first that is known of the data and the model."""
    if size is not None:
        if size < 1:
            raise UsageError(f"--size: {size} is no size. A number of pixels is allowed.")
        return size
    return next((side for side in own if side), _SIZE)


def choose_normalisation(
    model: nn.Module,
    mean: list[float] | None,
    std: list[float] | None,
    *,
    normalise: bool = True,
) -> tuple[list[float], list[float]]:
    """Mean and std: as asked, else what the model says of itself, else ImageNet's; or none.

    A B-cos network has it in its first layer, and gets 0 and 1.

    Raises:
        OptionError: For a std that is not positive, or another normalisation of a B-cos network.
    """
    if is_bcos(model):
        chosen = list(mean or _PLAIN[0]), list(std or _PLAIN[1])
        if chosen != (list(_PLAIN[0]), list(_PLAIN[1])):
            raise UsageError(
                "--mean, --std: a B-cos network takes images in [0, 1], which are not normalised. "
                "Leave them out. They go with `explainguide convert` or `train --bcos`, which put "
                "them in the first layer of a model."
            )
        return chosen
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    own_mean, own_std = config.get("mean", _MEAN), config.get("std", _STD)
    if not normalise:
        own_mean, own_std = _PLAIN
    chosen = list(mean or own_mean), list(std or own_std)
    if min(chosen[1]) <= 0:
        raise UsageError(f"--std: {chosen[1]} holds a value that is not positive.")
    return chosen


def image_encoding(model: nn.Module, mean: list[float], std: list[float]) -> list[v2.Transform]:
    """What lies between an image in [0, 1] and a model: the one place that knows.

    A normalisation; for a B-cos network the image's inverse beside it, unless it adds that itself.
    """
    if not is_bcos(model):
        return [v2.Normalize(mean, std)]
    adds_itself = any(isinstance(module, AddInverse) for module in model.modules())
    return [] if adds_itself else [AddInverse()]


def build_transforms(
    size: int, encoding: list[v2.Transform], *, flip: bool = False
) -> v2.Transform:
    """Resize (squashed), flip at random, encode; boxes and masks move with the image."""
    steps: list[Any] = [v2.Resize((size, size), antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.ToDtype(torch.float32, scale=True), *encoding]
    return v2.Compose(steps)


def count_logits(
    model: nn.Module, size: int | None = None, *, output: int | str | None = None
) -> int:
    """How many logits a model has, from one pass; at its own image size, where none is given."""
    channels, height, width = input_size(model)
    image = torch.zeros(1, channels, size or height, size or width)
    reading = Reading(output=output)
    with torch.no_grad(), evaluating(model):
        return int(check_logits(model(image), reading=reading, images=1).shape[1])


def fits_classes(logits: int | None, classes: int) -> bool:
    """Whether so many logits tell so many classes apart; one tells two, and None is not known."""
    return logits in (classes, None) or (logits == 1 and classes == 2)


def allow_local_modules() -> None:
    """Let ``package.module:function`` name a file in the present folder."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def check_plain(said: Mapping[str, Any], weights: str | None) -> None:
    """Refuse the weights of a network that was converted, which are not those of a name.

    Args:
        said: What they say of themselves, by `explainguide.checkpoints.describe_weights`.
        weights: Their file.

    Raises:
        OptionError: With what to do.
    """
    if said.get("bcos") is not None or said.get("xdnn") is not None:
        kind = "a B-cos network" if said.get("bcos") is not None else "an X-DNN"
        raise UsageError(
            f"--weights: '{weights}' is of {kind} made of {said.get('name')!r}. Give it "
            "with --checkpoint, which converts the model again. Weights of a plain model are allowed."
        )


def in_library(name: str) -> bool:
    """Whether a name is that of a library; a user's function may have loaded its weights."""
    library, colon, _ = name.partition(":")
    return not colon or library in ("timm", "torchvision")
