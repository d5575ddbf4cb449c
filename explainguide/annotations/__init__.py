"""Boxes, masks and labels of a batch as masks on the device."""

from explainguide.annotations.batch import Annotations, collate
from explainguide.annotations.boxes import rasterize_boxes
from explainguide.annotations.subset import LimitedAnnotations

__all__ = ["Annotations", "LimitedAnnotations", "collate", "rasterize_boxes"]
