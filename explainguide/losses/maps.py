"""What the losses share, of :mod:`explainguide.losses.normalization`, under their first name."""

from explainguide.losses.normalization import (
    Normalize,
    check_maps,
    keep_positive,
    over_pixels,
    positive_part,
    root,
    scale_by_max,
)
from explainguide.losses.table import Loss

__all__ = [
    "Loss",
    "Normalize",
    "check_maps",
    "keep_positive",
    "over_pixels",
    "positive_part",
    "root",
    "scale_by_max",
]
