"""Boxes, masks and labels of a batch as masks on the device."""

from explainguide.annotations.batch import (
    Annotations,
    LimitedAnnotations,
    collate,
    rasterize_boxes,
)

__all__ = ["Annotations", "LimitedAnnotations", "collate", "rasterize_boxes"]
