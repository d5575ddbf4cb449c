"""What the losses share: the check of their arguments, and how a map is normalised."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from explainguide.annotations.masks import check_mask_dtype
from explainguide.errors import ShapeError

__all__ = [
    "Normalize",
    "check_maps",
    "keep_positive",
    "over_pixels",
    "positive_part",
    "root",
    "scale_by_max",
]

Normalize = bool | Literal["paper"]


def keep_positive(attribution: Tensor) -> Tensor:
    """The positive part; its gradient is 0 where the map is 0, on every version of torch."""
    return torch.relu(attribution)


def scale_by_max(attribution: Tensor) -> Tensor:
    """Each map over its own largest magnitude, which is differentiated too; zero maps stay."""
    largest = attribution.abs().amax((-2, -1), keepdim=True)
    return attribution / torch.where(largest == 0, 1, largest)


def positive_part(attribution: Tensor, normalize: Normalize = True) -> Tensor:
    """The normalised positive part that `l1_loss` and `ppce_loss` compare with the mask."""
    # Where the largest value is positive it is that of the positive part, so that "paper" is True.
    positive = keep_positive(attribution)
    return scale_by_max(positive) if normalize else positive


def over_pixels(maps: Tensor) -> Tensor:
    """The sum of each map, ``(N, H, W) -> (N,)``."""
    return maps.sum((-2, -1))


def root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    zero = squared == 0
    return torch.where(zero, 0, torch.sqrt(torch.where(zero, 1, squared)))


def check_maps(attribution: Tensor, mask: Tensor) -> Tensor:
    """The mask in the attribution's dtype."""
    if attribution.ndim != 3 or attribution.shape != mask.shape:
        raise ShapeError(
            f"attribution has shape {tuple(attribution.shape)} but mask has shape "
            f"{tuple(mask.shape)}; both must be (N, H, W)."
        )
    check_mask_dtype(mask)
    return mask.to(attribution.dtype)
