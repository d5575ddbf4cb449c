"""Masks: what they must be, and the boxes around them. Values are read only on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from explainguide.errors import AnnotationError, ShapeError, warn
from explainguide.host import host_array

__all__ = ["as_masks", "boxes_around", "check_mask", "check_mask_dtype", "with_pixels"]

Size = tuple[int, int]


def check_mask_dtype(mask: Tensor, *, what: str = "the mask") -> None:
    """Refuse integer masks: 0/255 and 0/1 cannot be told apart without reading values."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ShapeError(
            f"{what} has dtype {mask.dtype}, which may hold 0/1 or 0/255. "
            "Use `mask > 0`. bool, or floating point in [0, 1], is allowed."
        )


def check_mask(mask: Tensor, *, what: str = "the mask") -> None:
    """Refuse integer masks and, on the host, values outside [0, 1]; `what` begins the message."""
    check_mask_dtype(mask, what=what)
    if mask.dtype == torch.bool or mask.device.type != "cpu":
        return
    outside = ~((mask >= 0) & (mask <= 1))  # NaN is outside, too
    if host_array(outside).any():
        raise AnnotationError(
            f"{what} holds {float(mask[outside][0]):g}. Use `mask > 0`, or divide by the "
            "largest value that it may have. bool, or floating point in [0, 1], is allowed."
        )


def as_masks(masks: Tensor, count: int, many: str, where: str, canvas: Size | None) -> Tensor:
    """Masks of an image's objects as plain ``(M, H, W)`` bool, of the size of the canvas."""
    masks = masks.as_subclass(Tensor)
    if masks.ndim == 4 and masks.shape[1] == 1:  # as torchvision's detectors return them
        masks = masks[:, 0]
    if masks.ndim != 3 or len(masks) != count:
        fix = "Write `masks[None]` for a single mask." if masks.ndim == 2 else "Give one an object."
        raise AnnotationError(
            f"{where} has {many} but masks of shape {tuple(masks.shape)}. {fix} (M, H, W) bool is "
            "allowed."
        )
    check_mask(masks, what=f"{where}: the mask")
    if canvas is not None and tuple(masks.shape[1:]) != canvas:
        raise AnnotationError(
            f"{where} has masks of {masks.shape[1]} x {masks.shape[2]}, but the model's input is "
            f"{canvas[0]} x {canvas[1]}. Resize image and masks together with "
            "torchvision.transforms.v2. Masks have the size of the model's input."
        )
    return masks if masks.dtype == torch.bool else masks >= 0.5


def with_pixels(
    boxes: Tensor | None, labels: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The objects whose mask has a pixel, with a box each."""
    boxes = boxes_around(masks) if boxes is None else boxes
    if masks.device.type != "cpu":
        return boxes, labels, masks
    pixels = host_array(masks.flatten(1).any(1))
    if not pixels.all():
        warn(
            "the mask of an object has no pixel, and the object is left out. Drop such "
            "objects, as a crop leaves them: `masks.flatten(1).any(1)` are those to keep."
        )
    kept = torch.from_numpy(np.flatnonzero(pixels))
    return boxes[kept.to(boxes.device)], labels[kept.to(labels.device)], masks[kept]


def boxes_around(masks: Tensor) -> Tensor:
    """The boxes that cover the pixels of masks; no value is read.

    Right and bottom are one past the last pixel, where torchvision's `masks_to_boxes` gives the
    last pixel itself.

    Args:
        masks: ``(M, H, W)`` bool, each with a pixel: the box around none is the whole image.

    Returns:
        ``(M, 4)`` float32, xyxy.
    """

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.int().argmax(1), line.shape[1] - line.flip(1).int().argmax(1)

    (x1, x2), (y1, y2) = ends(masks.any(1)), ends(masks.any(2))
    return torch.stack([x1, y1, x2, y2], 1).float()
