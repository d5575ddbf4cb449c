"""The models that ``explainguide evaluate`` judges: checkpoints of a training, or models by name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Subset

from explainguide.cli.data import (
    build_transforms,
    check_plain,
    choose_normalisation,
    choose_size,
    count_logits,
    fits_classes,
    image_encoding,
)
from explainguide.cli.data_options import (
    check_same_classes,
    evaluation_images,
    find_source,
    open_evaluation,
)
from explainguide.cli.usage import UsageError
from explainguide.datasets.names import item_names
from explainguide.errors import DataError, OptionError
from explainguide.hooks.dynamic import is_bcos
from explainguide.models.build import build_model, load_weights, set_image_size
from explainguide.training.checkpoints import describe_weights, load_model
from explainguide.training.config import TrainConfig

__all__ = ["Judged", "Named", "list_judged", "open_judged"]

_FILES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class Named:
    """What is judged, before it is opened.

    Attributes:
        label: What tables call it.
        file: A checkpoint of a training, or the weights of a model; None for weights that are
            downloaded.
        model: The name of a model; None for a checkpoint, which says it itself.
    """

    label: str
    file: str | None
    model: str | None = None


@dataclass(frozen=True)
class Judged:
    """A model and the images that it is judged on, as it takes them.

    Attributes:
        model: On its device.
        config: The settings of its training; the defaults of a model by name.
        data: The images, with their transforms.
        fit_on: Those that a threshold is fitted on, or None.
        classes: Names, in the order of the labels.
        groups: Names of the groups; none where the data have none.
        names: Of the images.
        images: Which images they are; equal for models that are judged on the same.
        plain: What brings an image to the model's size and leaves its colours.
        colours: Mean and std of the normalisation that the model takes.
    """

    model: nn.Module
    config: Mapping[str, Any]
    data: Any
    fit_on: Any
    classes: list[str]
    groups: list[str]
    names: list[str]
    images: Mapping[str, Any]
    plain: Any
    colours: tuple[Sequence[float], Sequence[float]]

    def picture(self, index: int, label: int) -> tuple[Tensor, Tensor]:
        """An image in [0, 1] and the boxes of a class in it, ``(3, H, W)`` and ``(M, 4)``."""
        data: Any = self.data
        place = index
        while isinstance(data, Subset):
            data, place = data.dataset, int(data.indices[place])
        own, data.transforms = data.transforms, self.plain
        try:
            image, _, annotation, *_ = data[place]
        finally:
            data.transforms = own
        boxes = annotation["boxes"][annotation["labels"] == label]
        return image.as_subclass(Tensor), boxes.as_subclass(Tensor)

    def shown(self, taken: Tensor) -> Tensor:
        """What the model took, ``(C, H, W)``, as an image in [0, 1], ``(3, H, W)``."""
        mean, std = (taken.new_tensor(values)[:, None, None] for values in self.colours)
        return (taken[:3] * std + mean).clamp(0, 1)


def list_judged(args: argparse.Namespace) -> Iterator[Named]:
    """What the command names: files, and a model once for each of its weights.

    Raises:
        OptionError: For options that do not go together.
    """
    names = [name for name in args.checkpoint if not _is_file(name)]
    if not names and (args.weights or args.pretrained):
        option = "--weights" if args.weights else "--pretrained"
        raise UsageError(
            f"{option}: it goes with a model's name, and only files are given. Name the model, as "
            "resnet18. Checkpoints hold their own weights."
        )
    for name in names:
        if args.data is None:
            raise UsageError(
                f"--data: missing, and of {name!r}, a model by name, nobody knows what it was trained "
                "on. Name the images to evaluate it on. Checkpoints of a training say it."
            )
        if bool(args.weights) == args.pretrained:
            raise UsageError(
                f"--weights: {name!r} is a model by name, or a file that is not there. Give --weights "
                "FILE or --pretrained, one of the two. A checkpoint of a training is a file."
            )
    for given in args.checkpoint:
        if _is_file(given):
            yield Named(given, given)
        elif args.pretrained:
            yield Named(given, None, given)
        else:
            yield from (Named(file, file, given) for file in args.weights)


def _is_file(name: str) -> bool:
    return Path(name).exists() or Path(name).suffix in _FILES


def open_judged(named: Named, args: argparse.Namespace, device: Any) -> Judged:
    """The model, and the images.

    Raises:
        OptionError: If data and model do not fit.
        DataError: If a file cannot be read.
    """
    if named.model is None:
        assert named.file is not None
        model, info = load_model(named.file, device=device)
        if "image_size" not in info or "mean" not in info:
            raise DataError(
                f"'{Path(named.file)}' does not say how its images were prepared. Use "
                "explainguide.evaluation.evaluate in Python. Those of `explainguide train` say it."
            )
        data = open_evaluation(args, info)
        config = info["config"]
    else:
        model, info, data = _by_name(named, args)
        model.to(device)
        config = TrainConfig().to_dict()
    if info.get("classes"):
        check_same_classes(
            data.classes,
            info["classes"],
            of=("the data", f"'{named.label}'"),
            remedy="Name the data of the training, or let yours list the classes as "
            f"{', '.join(map(repr, info['classes']))}.",
        )
    if not fits_classes(info["num_classes"], len(data.classes)):
        raise OptionError(
            f"the data have {len(data.classes)} classes and '{named.label}' "
            f"{info['num_classes']}. Name the data of the training. The classes must agree."
        )
    encoding = image_encoding(model, info["mean"], info["std"])
    data.transforms = build_transforms(info["image_size"], encoding)
    fit_on = None
    if args.fit_on is not None:
        fit_on = open_evaluation(args, info, fit=True)
        fit_on.transforms = data.transforms
    classes, groups = list(data.classes), list(getattr(data, "groups", []))
    if args.limit is not None:
        data = Subset(data, range(min(args.limit, len(data))))
    return Judged(
        model,
        config,
        data,
        fit_on,
        classes,
        groups=groups,
        names=item_names(data),
        images=evaluation_images(args, info),
        plain=build_transforms(info["image_size"], []),
        colours=_colours(model, info),
    )


def _colours(model: nn.Module, info: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of images as the model takes them; a B-cos network takes them as they are."""
    return ((0.0,) * 3, (1.0,) * 3) if is_bcos(model) else (info["mean"], info["std"])


def _by_name(named: Named, args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any], Any]:
    """A model by name, what is known of how it takes images, and the images."""
    record = describe_weights(named.file)
    check_plain(record, named.file)
    source = find_source(args.data)
    side = args.size or record.get("image_size") or source.image_size
    data = open_evaluation(args, {"image_size": side})
    assert named.model is not None
    # A pretrained model keeps its own classes: another head would have random weights.
    classes = None if args.pretrained else len(data.classes)
    model = build_model(named.model, num_classes=classes, pretrained=args.pretrained).eval()
    note = load_weights(model, named.file) if named.file is not None else ""
    if note:  # a head with random weights explains nothing
        raise OptionError(
            f"{named.file}: {note} Name the data that it was trained on. The whole model is needed."
        )
    own = getattr(model, "pretrained_cfg", None) or {}
    size = choose_size(side, (own.get("input_size") or (0, 0, None))[-1])
    if args.size is not None:
        set_image_size(model, size)
    mean, std = choose_normalisation(
        model, record.get("mean"), record.get("std"), normalise=source.normalise
    )
    count = count_logits(model, size, output=args.output)
    info = {"num_classes": count, "image_size": size, "mean": mean, "std": std}
    return model, {**info, "classes": record.get("classes")}, data
