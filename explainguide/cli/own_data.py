"""What `train` and `evaluate` ask of a data set, seen before anything is computed with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from explainguide.annotations.batch import check_item
from explainguide.datasets.batches import check_data
from explainguide.errors import OptionError
from explainguide.evaluation.classification import is_multilabel
from explainguide.named import call_own

__all__ = ["check_data_set", "check_items"]

_LOOKED_AT = 8  # items, until one is annotated


def check_data_set(data: Any, kind: str) -> None:
    """Refuse what is no data set with a length, names of classes, and transforms to be set.

    Args:
        data: What ``--data`` made.
        kind: What was written there, for the message.

    Raises:
        OptionError: With what to add.
        DataError: If it is empty.
    """
    check_data(data, name=f"what {kind!r} returned")
    classes = getattr(data, "classes", None)
    if (
        not isinstance(classes, list | tuple)
        or not classes
        or not all(isinstance(name, str) for name in classes)
    ):
        raise OptionError(
            f"the {type(data).__name__} of {kind!r} has classes={classes!r}. Set self.classes to the "
            "names of the classes, in the order of the labels. A list of strings is allowed."
        )
    if not hasattr(data, "transforms"):
        raise OptionError(
            f"the {type(data).__name__} of {kind!r} has no attribute 'transforms', so its images "
            "would stay as they are. Set self.transforms = None, and in __getitem__ let image, "
            "annotation = self.transforms(image, annotation). Joint transforms will be assigned to it."
        )


def check_items(data: Any, kind: str) -> None:
    """Refuse items that would train without an error, and on something else than was meant.

    Looks at the first few, up to one that is annotated.

    Raises:
        OptionError: With what to change.
    """
    for index in range(min(len(data), _LOOKED_AT)):
        item, seen = _read(data, index, kind)
        if item is None:
            continue
        check_item(item, f"item {index} of {kind!r}", error=OptionError)
        _check_labels(item[1], data, kind)
        _check_transformed(seen, item[2], kind)
        if item[2] is not None:
            return


def _read(data: Any, index: int, kind: str) -> tuple[Any, list[tuple[Any, ...]]]:
    """An item, and what its transforms were called with."""
    seen: list[tuple[Any, ...]] = []

    def keep(*parts: Any) -> Any:
        seen.append(parts)
        return parts if len(parts) > 1 else parts[0]

    before, data.transforms = data.transforms, keep
    try:
        return call_own(f"{kind} [item]", data.__getitem__, index), seen
    finally:
        data.transforms = before


def _check_labels(labels: Any, data: Any, kind: str) -> None:
    try:
        label = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"the labels of {kind!r} make no tensor: {labels!r}. Give the index of a class, as "
            "self.classes.index(name). An int, or floats (K,), 1 for each class that shows, are "
            "allowed."
        ) from error
    several = is_multilabel(label[None]) and (label.numel() > 1 or len(data.classes) == 1)
    says = getattr(data, "multilabel", False)
    if several != says or (not several and label.numel() > 1):
        raise OptionError(
            f"the labels of {kind!r} are {label.dtype} of shape {tuple(label.shape)}, and its data set "
            f"has multilabel={says}. Give floats (K,), 1 for each class that shows, with "
            "multilabel = True, or one class index with multilabel = False. Both are allowed."
        )


def _check_transformed(seen: list[tuple[Any, ...]], annotation: Any, kind: str) -> None:
    if not seen or (annotation is not None and len(seen[0]) < 2):
        what = "image with its annotation" if seen else "image"
        raise OptionError(
            f"the data set of {kind!r} does not give its transforms the {what}. In __getitem__ let "
            "image, annotation = self.transforms(image, annotation). Boxes and masks must move with "
            "the image."
        )
    image, *others = seen[0]
    _check_image(image, kind)
    target = others[0] if others and isinstance(others[0], dict) else {}
    for name, form in (("boxes", tv_tensors.BoundingBoxes), ("masks", tv_tensors.Mask)):
        if not isinstance(target.get(name), form | None):
            raise OptionError(
                f"the {name} of {kind!r} are a plain {type(target[name]).__name__}, which transforms "
                "leave where it is. Make the annotation with "
                f"explainguide.datasets.items.make_annotation. A tv_tensors.{form.__name__} is allowed."
            )


def _check_image(image: Any, kind: str) -> None:
    if isinstance(image, Tensor):
        low, high = (float(value) for value in image.aminmax())
        # A little beyond comes of resizing.
        if not image.is_floating_point() or (low > -0.5 and high < 1.5):
            return
        problem = (
            f"floats from {low:g} to {high:g}. Divide by what is white, and leave the normalisation"
        )
        problem += " to the command"
    else:
        problem = f"{type(image).__name__}. Read them with explainguide.datasets.items.read_image"
    raise OptionError(
        f"the images of {kind!r} are given as {problem}. Tensors (3, H, W), uint8 or floats in [0, 1], "
        "are allowed."
    )
