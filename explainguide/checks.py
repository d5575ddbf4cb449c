"""What one image's annotation must be. Values are read only where the tensors are on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from explainguide.errors import AnnotationError, ShapeError

__all__ = ["check_mask_dtype", "check_target"]

_CALLER = "Annotations.from_targets"
Size = tuple[int, int]


def check_target(
    target: Mapping[str, Any] | None, index: int, canvas: Size | None
) -> tuple[Tensor, Tensor, Tensor | None, Size | None]:
    """One detection-style dict as plain tensors.

    Args:
        target: ``{"boxes", "labels"[, "masks"]}`` or None.
        index: The image's place in the batch, for the error.
        canvas: (H, W) that the boxes must refer to, where it is known.

    Returns:
        Boxes ``(M, 4)`` float32 xyxy, labels ``(M,)`` int64, masks ``(M, H, W)`` bool or None, and
        the (H, W) that the annotation itself names, or None.

    Raises:
        AnnotationError: For what cannot be meant.
    """
    where = f"{_CALLER}: image {index}"
    if target is None:
        return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, None
    if not isinstance(target, Mapping):
        raise AnnotationError(
            f"{where} has a {type(target).__name__}. Use a dict with 'boxes' and 'labels'. None "
            "stands for an image without annotation."
        )
    boxes = target.get("boxes")
    if boxes is None or len(boxes) == 0:
        return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, None
    size = _named_size(boxes, where, canvas)
    boxes = _as_xyxy(boxes, where)
    labels = _check_labels(target.get("labels"), len(boxes), where)
    masks = _check_masks(target.get("masks"), len(boxes), where, canvas or size)
    if masks is not None:
        size = (int(masks.shape[1]), int(masks.shape[2]))
    if boxes.device.type == "cpu":
        _check_values(boxes, where, canvas or size)
    return boxes, labels.to(boxes.device), masks, size


def check_mask_dtype(mask: Tensor, caller: str) -> None:
    """Refuse integer masks: 0/255 and 0/1 cannot be told apart without reading values."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ShapeError(
            f"{caller}: the mask has dtype {mask.dtype}, which may hold 0/1 or 0/255. "
            "Use `mask > 0`. bool, or floating point in [0, 1], is allowed."
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


def _as_xyxy(boxes: Any, where: str) -> Tensor:
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        boxes = _from_format(boxes)
    boxes = torch.as_tensor(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise AnnotationError(
            f"{where} has boxes of shape {tuple(boxes.shape)}. Use one row of four numbers an "
            "object. (M, 4) xyxy in pixels is allowed."
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


def _check_labels(labels: Any, count: int, where: str) -> Tensor:
    if labels is None:
        raise AnnotationError(
            f"{where} has boxes but no 'labels'. Give the class index of each box. (M,) int64 is "
            "allowed."
        )
    labels = torch.as_tensor(labels).as_subclass(Tensor)
    if labels.ndim != 1 or len(labels) != count or labels.is_floating_point():
        raise AnnotationError(
            f"{where} has {count} boxes but labels of shape {tuple(labels.shape)} and dtype "
            f"{labels.dtype}. Give one class index a box. (M,) int64 is allowed."
        )
    if labels.device.type == "cpu" and bool((labels < 0).any()):
        raise AnnotationError(
            f"{where} has label {int(labels.min())}. Leave out objects without a class. Labels "
            "count from 0."
        )
    return labels.long()


def _check_masks(masks: Any, count: int, where: str, canvas: Size | None) -> Tensor | None:
    if masks is None:
        return None
    masks = torch.as_tensor(masks).as_subclass(Tensor)
    if masks.ndim != 3 or len(masks) != count:
        raise AnnotationError(
            f"{where} has {count} boxes but masks of shape {tuple(masks.shape)}. Give one mask a "
            "box. (M, H, W) bool is allowed."
        )
    check_mask_dtype(masks, where)
    if canvas is not None and tuple(masks.shape[1:]) != canvas:
        raise AnnotationError(
            f"{where} has masks of {masks.shape[1]} x {masks.shape[2]}, but the model's input is "
            f"{canvas[0]} x {canvas[1]}. Resize image and masks together with "
            "torchvision.transforms.v2. Masks have the size of the model's input."
        )
    return masks if masks.dtype == torch.bool else masks >= 0.5


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


def _first(boxes: Tensor, bad: Tensor) -> list[float]:
    return [round(v, 3) for v in boxes[bad][0].tolist()]
