"""What every dataset here yields, and the steps that all of them share.

An item is ``(image, labels, annotation)``. The annotation is a detection-style dict, as in
torchvision's detection references, or ``None`` for an image that nobody annotated::

    {"boxes": tv_tensors.BoundingBoxes (M, 4), XYXY, in pixels of the image,
     "labels": int64 (M,),
     "masks": tv_tensors.Mask (M, H, W), bool}          # only where asked for and known

A whole item is ``None`` when its file cannot be decoded. The reader warns, naming the file, and
the training goes on without it: this works in DataLoader workers too, whose lists the main process
never sees. ``explainguide.annotations.collate`` drops such items.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional

from explainguide.datasets.pictures import open_picture
from explainguide.datasets.steps import refuse_unfit, run_steps
from explainguide.errors import (
    DataError,
    ExplainGuideWarning,
    OptionError,
    did_you_mean,
    first_line,
    warn,
)

__all__ = [
    "Annotation",
    "Transforms",
    "check_transforms",
    "class_hint",
    "make_annotation",
    "read_image",
    "short_list",
    "transform_item",
    "warn_skipped",
]

Annotation = dict[str, Tensor]
Transforms = Callable[[Any, Any], Any]

MIN_SIDE = 1.0  # pixels; a box thinner than this after a transform is a leftover, not an object


def class_hint(name: str, classes: Sequence[str]) -> str:
    """The sentence that names the class that was meant, of another case or spelling, or nothing."""
    plain = {_plain(c): c for c in classes}
    if _plain(name) in plain:
        return f" Did you mean {plain[_plain(name)]!r}?"
    return did_you_mean(name, classes)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def short_list(names: Iterable[object], most: int = 3) -> str:
    """First few names for a message: ``'a', 'b', 'c' and 4 more``."""
    quoted = [repr(str(n)) for n in names]
    more = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + more


def check_transforms(transforms: Transforms | None) -> Transforms:
    """Give the default for ``None``; refuse transforms that would leave the boxes behind."""
    if transforms is None:
        return v2.ToDtype(torch.float32, scale=True)
    if not callable(transforms):
        raise OptionError(
            f"transforms must be callable as transforms(image, target), "
            f"but got {type(transforms).__name__}."
        )
    refuse_unfit(transforms)
    return transforms


def warn_skipped(path: str | os.PathLike[str], reason: str) -> None:
    """Warn that the item behind ``path`` is skipped."""
    warn(f"'{path}' {reason}; the item is skipped.")


def read_image(path: Path, told: set[str] | None = None) -> tv_tensors.Image | None:
    """Decode a file to a uint8 RGB image ``(3, H, W)``; warn and give ``None`` if it is broken.

    ``told`` is what the data set has said already, as in
    :func:`explainguide.datasets.pictures.open_picture`, whose rules hold.

    Raises:
        DataError: For a picture whose black and white cannot be known.
    """
    told = set() if told is None else told
    try:
        picture = open_picture(path, told=told)
    except (DataError, ExplainGuideWarning):
        raise
    except Exception as error:  # PIL raises whatever a broken file drives it to, SyntaxError too
        warn_skipped(path, f"cannot be read as an image ({first_line(error)})")
        return None
    return tv_tensors.Image(v2_functional.pil_to_tensor(picture))


def make_annotation(
    boxes: Tensor, labels: Tensor, size: tuple[int, int], masks: Tensor | None = None
) -> Annotation:
    """Put XYXY boxes ``(M, 4)``, labels ``(M,)`` and masks ``(M, H, W)`` in the common form."""
    annotation: Annotation = {
        "boxes": tv_tensors.BoundingBoxes(
            boxes.to(torch.float32).reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=size,
        ),
        "labels": labels.to(torch.int64),
    }
    if masks is not None:
        annotation["masks"] = tv_tensors.Mask(masks.to(torch.bool))
    return annotation


def transform_item(
    transforms: Transforms, image: Tensor, annotation: Annotation | None
) -> tuple[Any, Annotation | None]:
    """Apply joint transforms, then drop what they pushed out of the image.

    Boxes come back as XYXY, clipped to the image. An object goes, with its label and mask, when its
    box is thinner than one pixel or its mask has no pixel left.
    """
    size = (image.shape[-2], image.shape[-1])
    # Without annotation an empty one travels along: user transforms may read target["boxes"].
    target = dict(annotation or make_annotation(torch.zeros(0, 4), torch.zeros(0), size))
    masks = target.pop("masks", None)
    if masks is not None and len(masks) > 0:
        # Integer masks, since not every interpolation kernel takes bool; none are sent when there
        # are no objects, since not every kernel takes an empty batch.
        target["masks"] = tv_tensors.Mask(masks.to(torch.uint8))

    if annotation is None:
        result = transforms(image, target)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise OptionError(
                f"transforms(image, target) must return (image, target), "
                f"but returned {type(result).__name__}."
            )
        return _plain_image(result[0]), None
    image, target = run_steps(transforms, image, target)
    return _plain_image(image), _clean(image, target, has_masks=masks is not None)


def _plain_image(image: Any) -> Any:
    return image.as_subclass(torch.Tensor) if isinstance(image, Tensor) else image


def _clean(image: Any, target: dict[str, Any], *, has_masks: bool) -> Annotation:
    height, width = v2_functional.get_size(image)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    xyxy = target["boxes"].clamp(min=0).minimum(limit)
    keep = ((xyxy[:, 2:] - xyxy[:, :2]) >= MIN_SIDE).all(dim=1)

    masks = target.get("masks")
    if masks is not None:
        masks = masks.as_subclass(torch.Tensor).to(torch.bool)
        keep &= masks.flatten(1).any(dim=1)
        masks = masks[keep]
    elif has_masks:
        masks = torch.zeros(0, height, width, dtype=torch.bool)
    return make_annotation(xyxy[keep], target["labels"][keep], (height, width), masks)


def require_folder(path: Path, *, name: str = "root") -> None:
    """Raise :class:`DataError` unless ``path`` is a folder."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"{name} '{path}' {what}.")
