"""Boxes: the pixels that they cover, and what they must be. Values are read only on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from explainguide.errors import AnnotationError, warn
from explainguide.host import host_array

__all__ = ["as_xyxy", "box_masks", "check_values", "named_size", "rasterize_boxes", "spans"]

Size = tuple[int, int]


def box_masks(boxes: Tensor, size: Size) -> Tensor:
    """Each box by itself, as a mask.

    Pixel (row i, column j) is covered when ``floor(x1) <= j < ceil(x2)`` and
    ``floor(y1) <= i < ceil(y2)``.

    Args:
        boxes: ``(..., 4)`` xyxy in pixels.
        size: (H, W).

    Returns:
        ``(..., H, W)`` bool.

    Example:
        >>> box_masks(torch.tensor([[1.0, 0.0, 2.5, 1.0]]), (2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    rows, columns = _rows_and_columns(boxes, size)
    return rows[..., :, None] & columns[..., None, :]


def rasterize_boxes(boxes: Tensor, chosen: Tensor, size: Size) -> Tensor:
    """The union of the chosen boxes of each image, by the pixel rule of `box_masks`.

    Args:
        boxes: ``(N, M, 4)`` xyxy in pixels.
        chosen: ``(..., N, M)`` float in {0, 1}.
        size: (H, W).

    Returns:
        ``(..., N, H, W)`` float32 in {0, 1}.

    Example:
        >>> rasterize_boxes(torch.tensor([[[1.0, 0.0, 3.0, 1.0]]]), torch.ones(1, 1), (2, 4))
        tensor([[[0., 1., 1., 0.],
                 [0., 0., 0., 0.]]])
    """
    rows, columns = _rows_and_columns(boxes, size)
    # How many boxes cover each pixel, as one matrix product; above zero in any precision.
    union = torch.einsum("...nm,nmh,nmw->...nhw", chosen, rows.float(), columns.float())
    return (union > 0).float()


def _rows_and_columns(boxes: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Which rows and which columns each box covers, ``(..., H)`` and ``(..., W)`` bool."""

    def covered(span: tuple[Tensor, Tensor], length: int) -> Tensor:
        place = torch.arange(length, device=boxes.device)
        return (place >= span[0][..., None]) & (place < span[1][..., None])

    (top, left), (bottom, right) = spans(boxes, size)
    return covered((top, bottom), size[0]), covered((left, right), size[1])


def spans(boxes: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The pixels of boxes, by the rule of `box_masks` and clipped to the image.

    Args:
        boxes: ``(..., 4)`` xyxy in pixels.
        size: (H, W).

    Returns:
        The first pixel that is covered and one past the last, of rows and then of columns, twice
        ``(2, ...)`` float. The second is no larger than the first where none is, as in a box that is
        not a number.
    """
    xy = boxes.float().unflatten(-1, (2, 2)).movedim((-2, -1), (0, 1)).flip(1)
    limit = boxes.new_full((2, *(1,) * (boxes.ndim - 1)), size[0], dtype=torch.float32)
    limit[1] = size[1]
    low = torch.minimum(xy[0].floor().nan_to_num(nan=torch.inf).clamp(min=0), limit)
    high = torch.minimum(xy[1].ceil().nan_to_num(nan=0).clamp(min=0), limit)
    return low, high


def named_size(boxes: Any, where: str, canvas: Size | None) -> Size | None:
    """(H, W) that tv_tensors say; refused where it is not the canvas."""
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


def as_xyxy(boxes: Tensor, where: str) -> Tensor:
    """Boxes of any known format as plain ``(M, 4)`` float32 xyxy; nothing is read."""
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


def check_values(boxes: Tensor, where: str, canvas: Size | None) -> None:
    """Refuse what cannot be ``(M, 4)`` xyxy in pixels of the canvas; warn of boxes that are cut."""
    if not host_array(boxes.isfinite()).all():
        raise AnnotationError(
            f"{where} has a box that is not finite: {_first(boxes, ~boxes.isfinite().all(1))}. "
            "Look for a division by zero in the transforms. Boxes are finite."
        )
    x1, y1, x2, y2 = boxes.unbind(1)
    inverted = (x2 < x1) | (y2 < y1)
    if host_array(inverted).any():
        raise AnnotationError(
            f"{where} has an inverted box {_first(boxes, inverted)}. If it is (x, y, width, "
            "height), wrap it in tv_tensors.BoundingBoxes(format='XYWH'). Boxes are (x1, y1, x2, "
            "y2) with x1 < x2 and y1 < y2."
        )
    small = canvas is not None and min(canvas) <= 2
    if not small and host_array((boxes >= 0) & (boxes <= 1)).all():
        by = "(W, H, W, H)"
        if canvas is not None:
            by += f" = ({canvas[1]}, {canvas[0]}, {canvas[1]}, {canvas[0]})"
        raise AnnotationError(
            f"{where} has boxes in [0, 1]: {_first(boxes, torch.ones_like(inverted))}. Multiply "
            f"by {by}. Boxes are in pixels."
        )
    empty = (x2 <= x1) | (y2 <= y1)
    if host_array(empty).any():
        raise AnnotationError(
            f"{where} has an empty box {_first(boxes, empty)}. Drop it, as "
            "transforms.v2.SanitizeBoundingBoxes does. Boxes have a positive width and height."
        )
    if canvas is not None:
        outside = (x2 <= 0) | (y2 <= 0) | (x1 >= canvas[1]) | (y1 >= canvas[0])
        if host_array(outside).any():
            raise AnnotationError(
                f"{where} has a box {_first(boxes, outside)} outside the image of {canvas[0]} x "
                f"{canvas[1]}. Were the boxes resized with the image? They are clipped to the "
                "image but must meet it."
            )
        limit = boxes.new_tensor([canvas[1], canvas[0]])
        inside = (torch.minimum(boxes[:, 2:], limit) - boxes[:, :2].clamp(min=0)).prod(1)
        if host_array(inside < 0.5 * (x2 - x1) * (y2 - y1)).any():
            warn(
                "a box lies more outside the image than in it; it is clipped. Were the "
                "boxes resized with the image? Boxes are in pixels of the model's input."
            )


def _first(boxes: Tensor, bad: Tensor) -> list[float]:
    return [round(v, 3) for v in boxes[bad][0].tolist()]
