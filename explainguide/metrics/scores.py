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

__all__ = ["agreement_scores", "energy_scores", "iou_scores", "mean_iou", "pointing_scores"]

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


def agreement_scores(attribution: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the pixels that are rightly foreground and rightly background, and the AP, ``(N, 3)``.

    Undefined for a constant map. Of any other, some pixels are above the mean and some are not.
    """
    lowest = attribution.amin(_PIXELS, keepdim=True)
    spread = attribution.amax(_PIXELS, keepdim=True) - lowest
    # Normalised first: in the mean of large values that differ little, rounding would decide.
    unit = (attribution - lowest) / torch.where(spread == 0, 1.0, spread)
    above, inside = unit > unit.mean(_PIXELS, keepdim=True), mask > 0.5
    shares = [both.to(unit.dtype).mean(_PIXELS) for both in (above & inside, ~(above | inside))]
    scores = torch.stack([*shares, _average_precision(unit, inside)], dim=1)
    spread = spread[:, 0, 0]
    return torch.where(spread.isfinite()[:, None], scores, torch.nan), spread != 0


def mean_iou(front: Tensor, back: Tensor) -> Tensor:
    """Mean IoU of foreground and background, from the shares of pixels that are rightly so."""
    wrong = 1 - (front + back)  # the union of either class is its right pixels and all wrong ones
    return (front / (front + wrong) + back / (back + wrong)) / 2


def _average_precision(unit: Tensor, inside: Tensor) -> Tensor:
    """AP of telling object from background, over two decisions a pixel: it is one, it is the other.

    Equal scores are one step of the curve, as in scikit-learn.
    """
    scores = torch.stack([unit, 1 - unit], dim=1).flatten(1)
    order = scores.argsort(descending=True)
    falling = -scores.gather(1, order)
    right = torch.stack([inside, ~inside], dim=1).flatten(1).gather(1, order)
    taken = torch.searchsorted(falling, falling, right=True)  # up to the last of equal scores
    found = right.cumsum(1).gather(1, (taken - 1).clamp(0, max(taken.shape[1] - 1, 0)))
    precision = found.to(unit.dtype) / taken.to(unit.dtype)
    # Each pixel is right in one of its two decisions, so half of the decisions are.
    return (precision * right).mean(1) * 2


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
