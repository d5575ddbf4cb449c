"""How alike two maps of one image are: by the ranks of their pixels, and by structure."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

__all__ = ["rank_correlation", "structural_similarity"]


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of the pixels of two maps, ``(N,)``; equal values share their mean rank.

    Args:
        one: ``(N, H, W)``, neither constant nor with NaN: there it is NaN.
        other: The same.

    Example:
        Squares of positive numbers have the same order.

        >>> one = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]])
        >>> rank_correlation(one, one**2), rank_correlation(one, -one)
        (tensor([1.]), tensor([-1.]))
    """
    first, second = (_centred_ranks(maps) for maps in (one, other))
    spread = (first.square().sum(1) * second.square().sum(1)).sqrt()
    return ((first * second).sum(1) / spread).to(one.dtype)


def structural_similarity(one: Tensor, other: Tensor, *, lowest: float) -> Tensor:
    """SSIM of two maps, each divided by its largest magnitude, ``(N,)``, by torchmetrics.

    Args:
        one: ``(N, H, W)``, 11 pixels or more on each side.
        other: The same.
        lowest: Of the values then: -1 for signed maps, 0 for those that are not negative.
    """
    first, second = (
        (maps / maps.abs().amax((1, 2), keepdim=True)).clamp(lowest, 1)[:, None]
        for maps in (one, other)
    )
    similarity = structural_similarity_index_measure(
        first, second, data_range=1 - lowest, reduction="none"
    )
    assert isinstance(similarity, Tensor)
    return similarity.reshape(-1)


def _centred_ranks(maps: Tensor) -> Tensor:
    """Mean ranks in float64, less their mean, ``(N, H * W)``."""
    values = maps.flatten(1)
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    upto = torch.searchsorted(ordered, values, right=True)
    ranks = (below + upto).double() / 2
    return ranks - ranks.mean(1, keepdim=True)
