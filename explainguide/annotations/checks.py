"""What one image's annotation must be. Values are read only where the tensors are on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainguide.annotations.boxes import as_xyxy, check_values, named_size
from explainguide.annotations.keys import (
    as_tensor,
    check_nothing_else,
    check_spelling,
    nearest_key,
    no_dict,
    no_region,
)
from explainguide.annotations.labels import FirstLabel, to_logits
from explainguide.annotations.masks import as_masks, with_pixels
from explainguide.annotations.segmentation import as_outlines, check_beside_boxes, draw_outlines
from explainguide.errors import AnnotationError
from explainguide.host import host_array

__all__ = ["Objects", "check_target"]

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
        target: ``{"boxes" and/or "masks" or "segmentation", "labels"}`` or None.
        index: The image's place in the batch, for the error.
        canvas: (H, W) that the boxes must refer to, where it is known.
        first_label: The label of the first logit, or a mapping from labels to logits.

    Returns:
        Its objects; polygons and run lengths are drawn as masks. Boxes that are not given are those
        around the masks.

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
    outlines = as_outlines(target, where)
    regions = {"boxes": boxes, "masks": masks, "segmentations": outlines}
    name, given = next(((k, v) for k, v in regions.items() if v is not None), ("", None))
    if given is None:
        raise AnnotationError(no_region(target, where))
    scalar = isinstance(given, Tensor) and not given.ndim  # refused below, with its shape
    count = 0 if scalar else len(given)
    many = f"{count} {name}"
    if not count and not scalar:
        check_nothing_else(target, many, where)
        return nothing
    if masks is None and outlines is None:
        check_spelling(target, where)
    size = named_size(boxes, where, canvas)
    if boxes is not None:
        boxes = as_xyxy(boxes, where)
    if outlines is not None:
        masks = draw_outlines(outlines, count, many, where, canvas or size)
    if masks is not None:
        masks = as_masks(masks, count, many, where, canvas or size)
        size = (int(masks.shape[1]), int(masks.shape[2]))
    labels = _check_labels(target, count, many, where)
    labels = to_logits(labels, first_label, where=where)
    if boxes is not None and boxes.device.type == "cpu":
        check_values(boxes, where, canvas or size)
        if outlines is not None and size is not None:
            check_beside_boxes(boxes, outlines, where, size)
    if masks is not None:
        boxes, labels, masks = with_pixels(boxes, labels, masks)
    assert boxes is not None
    return Objects(boxes, labels.to(boxes.device), masks, size)


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
    if labels.device.type == "cpu" and host_array(labels < 0).any():
        raise AnnotationError(
            f"{where} has label {int(labels.min())}. Leave out objects without a class. Labels "
            "count from 0."
        )
    return labels
