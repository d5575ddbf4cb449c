"""IoU of mask and map at several thresholds, of maps brought to [0, 1] first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from explainguide.metrics.image_mean import PIXELS, mark_broken

__all__ = ["GRID", "IoUScale", "iou_scores"]

IoUScale = Literal["minmax", "max"]
# Divided rather than multiplied by 0.05, so that 0.15 reads 0.15.
GRID = tuple(i / 20 for i in range(20))
# Below this range the authors' program no longer subtracts the minimum.
_FLAT = 1e-7


def iou_scores(
    attribution: Tensor,
    mask: Tensor,
    thresholds: Sequence[float],
    *,
    normalize: IoUScale = "minmax",
) -> tuple[Tensor, Tensor]:
    """IoU at each threshold, ``(N, T)``, and whether map or mask has anything at all, ``(N,)``."""
    positive = attribution.clamp(min=0)
    peak = positive.amax(PIXELS)
    area = mask.sum(PIXELS)
    if normalize == "minmax":
        lowest = positive.amin(PIXELS)
        flat = peak - lowest < _FLAT
        offset = torch.where(flat, 0.0, lowest)
        positive, scale = positive - offset[:, None, None], torch.where(flat, peak, peak - lowest)
    else:
        scale = peak
    normalised = positive / torch.where(peak == 0, 1.0, scale)[:, None, None]

    # One threshold after the other: all at once would need T copies of the batch.
    columns = []
    for threshold in thresholds:
        above = (normalised > threshold).to(mask.dtype)
        intersection = (above * mask).sum(PIXELS)
        union = above.sum(PIXELS) + area - intersection
        columns.append(intersection / torch.where(union > 0, union, 1.0))
    scores = torch.stack(columns, dim=1)
    return mark_broken(scores, attribution, mask), (peak > 0) | (area > 0)
