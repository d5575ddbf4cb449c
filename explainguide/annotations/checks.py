"""What one image's annotation must be. Values are read only where the tensors are on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from explainguide.annotations.keys import (
    as_tensor,
    check_nothing_else,
    check_spelling,
    nearest_key,
    no_dict,
    no_region,
)
from explainguide.annotations.labels import FirstLabel, to_logits
from explainguide.errors import AnnotationError, ShapeError, warn

__all__ = ["Objects", "check_mask", "check_mask_dtype", "check_target"]

Size = tuple[int, int]


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
        boxes: ``(M, 4)`` float32 xyxy.
        labels: ``(M,)`` int64, indices of logits.
        masks: ``(M, H, W)`` bool, or None.
        size: (H, W) that the annotation itself names, or None.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    size: Size | None = None


def check_target(
    target: Mapping[str, Any] | None,
    index: int,
    canvas: Size | None,
    *,
    first_label: FirstLabel = 0,
) -> Objects:
    """One detection-style dict as plain tensors.

    Args:
        target: ``{"boxes" and/or "masks", "labels"}`` or None.
        index: The image's place in the batch, for the error.
        canvas: (H, W) that the boxes must refer to, where it is known.
        first_label: The label of the first logit, or a mapping from labels to logits.

    Returns:
        Its objects. Boxes that are not given are those around the masks.

    Raises:
        AnnotationError: For what cannot be meant.
        ShapeError: For integer masks.
    """
    where = f"image {index}"
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    if target is None:
        return nothing
    if not isinstance(target, Mapping):
        raise AnnotationError(no_dict(target, where))
    boxes, masks = (as_tensor(target, name, where) for name in ("boxes", "masks"))
    given = masks if boxes is None else boxes
    if given is None:
        raise AnnotationError(no_region(target, where))
    count = len(given) if given.ndim else 0
    many = f"{count} {'masks' if boxes is None else 'boxes'}"
    if given.ndim and not count:
        check_nothing_else(target, many, where)
        return nothing
    if masks is None:
        check_spelling(target, where)
    size = _named_size(boxes, where, canvas)
    if boxes is not None:
        boxes = _as_xyxy(boxes, where)
    if masks is not None:
        masks = _as_masks(masks, count, many, where, canvas or size)
        size = (int(masks.shape[1]), int(masks.shape[2]))
    labels = _check_labels(target, count, many, where)
    labels = to_logits(labels, first_label, where=where)
    if boxes is not None and boxes.device.type == "cpu":
        _check_values(boxes, where, canvas or size)
    if masks is not None:
        boxes, labels, masks = _with_pixels(boxes, labels, masks)
    assert boxes is not None
    return Objects(boxes, labels.to(boxes.device), masks, size)


def check_mask_dtype(mask: Tensor) -> None:
    """Refuse integer masks: 0/255 and 0/1 cannot be told apart without reading values."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ShapeError(
            f"the mask has dtype {mask.dtype}, which may hold 0/1 or 0/255. "
            "Use `mask > 0`. bool, or floating point in [0, 1], is allowed."
        )


def check_mask(mask: Tensor) -> None:
    """Refuse integer masks and, on the host, values outside [0, 1]."""
    check_mask_dtype(mask)
    if mask.dtype == torch.bool or mask.device.type != "cpu":
        return
    outside = ~((mask >= 0) & (mask <= 1))  # NaN is outside, too
    if bool(outside.any()):
        raise AnnotationError(
            f"the mask holds {float(mask[outside][0]):g}. Use `mask > 0`, or divide by the "
            "largest value that it may have. bool, or floating point in [0, 1], is allowed."
        )


def _named_size(boxes: Any, where: str, canvas: Size | None) -> Size | None:
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        return None
    size = (int(boxes.canvas_size[0]), int(boxes.canvas_size[1]))
    if canvas is not None and size != canvas:
        raise AnnotationError(
            f"{where} has boxes for a canvas of {size[0]} x {size[1]}, but the model's input is "
            f"{canvas[0]} x {canvas[1]}. Resize image and boxes together with "
            "torchvision.transforms.v2. Boxes are in pixels of the model's input."
        )
    return size


def _as_xyxy(boxes: Tensor, where: str) -> Tensor:
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        boxes = _from_format(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        fix = "Use one row of four numbers an object."
        if boxes.shape == (4,):
            fix = "Write `boxes[None]` for a single box."
        raise AnnotationError(
            f"{where} has boxes of shape {tuple(boxes.shape)}. {fix} (M, 4) xyxy in pixels is "
            "allowed."
        )
    return boxes.as_subclass(Tensor).float()


def _from_format(boxes: tv_tensors.BoundingBoxes) -> Tensor:
    """Any tv_tensors format as xyxy; a rotated box as the upright box around it."""
    named = boxes.format.value
    # In floating point first: half a pixel counts.
    boxes = tv_tensors.wrap(boxes.as_subclass(Tensor).float(), like=boxes)
    if named in ("XYXY", "XYWH", "CXCYWH"):
        return transforms.convert_bounding_box_format(boxes, new_format="XYXY")
    corners = transforms.convert_bounding_box_format(boxes, new_format="XYXYXYXY")
    corners = corners.as_subclass(Tensor).unflatten(-1, (4, 2))
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def _check_labels(target: Mapping[str, Any], count: int, many: str, where: str) -> Tensor:
    labels = as_tensor(target, "labels", where)
    if labels is None:
        hint = nearest_key(target, "labels")
        raise AnnotationError(
            f"{where} has {many.split()[1]} but no 'labels'.{hint} Give the class index of each. (M,) "
            "int64 is allowed."
        )
    labels = labels.as_subclass(Tensor)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or len(labels) != count or not whole:
        raise AnnotationError(
            f"{where} has {many} but labels of shape {tuple(labels.shape)} and dtype "
            f"{labels.dtype}. Give one class index each. (M,) int64 is allowed."
        )
    labels = labels.long()
    if labels.device.type == "cpu" and bool((labels < 0).any()):
        raise AnnotationError(
            f"{where} has label {int(labels.min())}. Leave out objects without a class. Labels "
            "count from 0."
        )
    return labels


def _as_masks(masks: Tensor, count: int, many: str, where: str, canvas: Size | None) -> Tensor:
    masks = masks.as_subclass(Tensor)
    if masks.ndim == 4 and masks.shape[1] == 1:  # as torchvision's detectors return them
        masks = masks[:, 0]
    if masks.ndim != 3 or len(masks) != count:
        fix = "Write `masks[None]` for a single mask." if masks.ndim == 2 else "Give one an object."
        raise AnnotationError(
            f"{where} has {many} but masks of shape {tuple(masks.shape)}. {fix} (M, H, W) bool is "
            "allowed."
        )
    check_mask(masks)
    if canvas is not None and tuple(masks.shape[1:]) != canvas:
        raise AnnotationError(
            f"{where} has masks of {masks.shape[1]} x {masks.shape[2]}, but the model's input is "
            f"{canvas[0]} x {canvas[1]}. Resize image and masks together with "
            "torchvision.transforms.v2. Masks have the size of the model's input."
        )
    return masks if masks.dtype == torch.bool else masks >= 0.5


def _with_pixels(
    boxes: Tensor | None, labels: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The objects whose mask has a pixel, with a box each."""
    boxes = _around(masks) if boxes is None else boxes
    if masks.device.type != "cpu":
        return boxes, labels, masks
    kept = masks.flatten(1).any(1)
    if not bool(kept.all()):
        warn(
            "the mask of an object has no pixel, and the object is left out. Drop such "
            "objects, as a crop leaves them: `masks.flatten(1).any(1)` are those to keep."
        )
    return boxes[kept.to(boxes.device)], labels[kept.to(labels.device)], masks[kept]


def _around(masks: Tensor) -> Tensor:
    """``(M, H, W)`` bool to the boxes that cover the masks' pixels, ``(M, 4)``; no value is read.

    Right and bottom are one past the last pixel, where torchvision's `masks_to_boxes` gives the
    last pixel itself.
    """

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.int().argmax(1), line.shape[1] - line.flip(1).int().argmax(1)

    (x1, x2), (y1, y2) = ends(masks.any(1)), ends(masks.any(2))
    return torch.stack([x1, y1, x2, y2], 1).float()


def _check_values(boxes: Tensor, where: str, canvas: Size | None) -> None:
    if not bool(boxes.isfinite().all()):
        raise AnnotationError(
            f"{where} has a box that is not finite: {_first(boxes, ~boxes.isfinite().all(1))}. "
            "Look for a division by zero in the transforms. Boxes are finite."
        )
    x1, y1, x2, y2 = boxes.unbind(1)
    inverted = (x2 < x1) | (y2 < y1)
    if bool(inverted.any()):
        raise AnnotationError(
            f"{where} has an inverted box {_first(boxes, inverted)}. If it is (x, y, width, "
            "height), wrap it in tv_tensors.BoundingBoxes(format='XYWH'). Boxes are (x1, y1, x2, "
            "y2) with x1 < x2 and y1 < y2."
        )
    small = canvas is not None and min(canvas) <= 2
    if not small and bool(((boxes >= 0) & (boxes <= 1)).all()):
        by = "(W, H, W, H)"
        if canvas is not None:
            by += f" = ({canvas[1]}, {canvas[0]}, {canvas[1]}, {canvas[0]})"
        raise AnnotationError(
            f"{where} has boxes in [0, 1]: {_first(boxes, torch.ones_like(inverted))}. Multiply "
            f"by {by}. Boxes are in pixels."
        )
    empty = (x2 <= x1) | (y2 <= y1)
    if bool(empty.any()):
        raise AnnotationError(
            f"{where} has an empty box {_first(boxes, empty)}. Drop it, as "
            "transforms.v2.SanitizeBoundingBoxes does. Boxes have a positive width and height."
        )
    if canvas is not None:
        outside = (x2 <= 0) | (y2 <= 0) | (x1 >= canvas[1]) | (y1 >= canvas[0])
        if bool(outside.any()):
            raise AnnotationError(
                f"{where} has a box {_first(boxes, outside)} outside the image of {canvas[0]} x "
                f"{canvas[1]}. Were the boxes resized with the image? They are clipped to the "
                "image but must meet it."
            )
        limit = boxes.new_tensor([canvas[1], canvas[0]])
        inside = (torch.minimum(boxes[:, 2:], limit) - boxes[:, :2].clamp(min=0)).prod(1)
        if bool((inside < 0.5 * (x2 - x1) * (y2 - y1)).any()):
            warn(
                "a box lies more outside the image than in it; it is clipped. Were the "
                "boxes resized with the image? Boxes are in pixels of the model's input."
            )


def _first(boxes: Tensor, bad: Tensor) -> list[float]:
    return [round(v, 3) for v in boxes[bad][0].tolist()]
