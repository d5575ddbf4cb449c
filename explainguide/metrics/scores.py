"""The maths of the localization metrics: ``(N, H, W)`` in, a score and a "defined" an image out.

Nothing is checked here and nothing leaves the device. A map that holds NaN, or whose maximum is
infinite where that matters, is *defined* with the score NaN: a broken map must spoil the mean
rather than disappear among the images without evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["energy_scores", "iou_scores", "pointing_scores"]

# Below this range the authors' program no longer subtracts the minimum.
_FLAT = 1e-7
_PIXELS = (-2, -1)


def energy_scores(energy: Tensor, mask: Tensor, min_energy: float) -> tuple[Tensor, Tensor]:
    """Share of a non-negative map inside the mask; undefined where there is nothing to share."""
    total = energy.sum(_PIXELS)
    # Written as a negation so that NaN counts as defined.
    defined = ~((total <= 0) | (total < min_energy))
    return (energy * mask).sum(_PIXELS) / torch.where(defined, total, 1.0), defined


def iou_scores(
    attribution: Tensor, mask: Tensor, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """IoU at each threshold, ``(N, T)``, and whether map or mask has anything at all, ``(N,)``."""
    positive = attribution.clamp(min=0)
    lowest, peak = positive.amin(_PIXELS), positive.amax(_PIXELS)
    area = mask.sum(_PIXELS)

    flat = peak - lowest < _FLAT
    offset = torch.where(flat, 0.0, lowest)
    scale = torch.where(flat, peak, peak - lowest)
    scale = torch.where(peak == 0, 1.0, scale)
    normalised = (positive - offset[:, None, None]) / scale[:, None, None]

    # One threshold after the other: all at once would need T copies of the batch.
    columns = []
    for threshold in thresholds:
        above = (normalised > threshold).to(mask.dtype)
        intersection = (above * mask).sum(_PIXELS)
        union = above.sum(_PIXELS) + area - intersection
        columns.append(intersection / torch.where(union > 0, union, 1.0))
    scores = torch.stack(columns, dim=1)
    scores = torch.where(peak.isfinite()[:, None], scores, torch.nan)
    return scores, ~((peak <= 0) & (area <= 0))


def pointing_scores(attribution: Tensor, mask: Tensor, tolerance: int) -> tuple[Tensor, Tensor]:
    """Share of the map's highest pixels that lie within ``tolerance`` pixels of the mask."""
    peak = attribution.amax(_PIXELS)
    highest = (attribution == peak[:, None, None]).to(mask.dtype)
    hits = (highest * _dilate(mask, tolerance)).sum(_PIXELS)
    return hits / highest.sum(_PIXELS), ~(peak <= 0)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """The maximum of the mask over the disc around each pixel, a row of the disc at a time."""
    if radius == 0 or mask.numel() == 0:
        return mask
    height, width = mask.shape[-2:]
    reach = min(radius, height - 1)
    grown = mask
    for dy in range(-reach, reach + 1):
        half = min(math.isqrt(radius**2 - dy**2), width - 1)
        row = F.max_pool2d(mask[:, None], (1, 2 * half + 1), stride=1, padding=(0, half))[:, 0]
        start = reach + dy
        shifted = F.pad(row, (0, 0, reach, reach))[:, start : start + height]
        grown = torch.maximum(grown, shifted)
    return grown
