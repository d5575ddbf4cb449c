"""AggAtt: the maps of a whole data set in a few pictures, from the best localized to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, named
from explainguide.metrics.checks import check_maps

__all__ = ["PERCENTILES", "Aggregate", "aggregate_maps"]

PERCENTILES = (0, 2, 5, 50, 95, 98, 100)


class Aggregate(NamedTuple):
    """What `aggregate_maps` returns, for B bins from the best scores to the worst.

    Attributes:
        maps: Mean map of each bin, ``(B, H, W)``; NaN for an empty bin.
        counts: Maps in each bin, ``(B,)``, int64.
        scores: Mean score of each bin, ``(B,)``; NaN for an empty bin.
        undefined: How many maps have no score, and are in no bin, a scalar.
    """

    maps: Tensor
    counts: Tensor
    scores: Tensor
    undefined: Tensor


@named("aggregate_maps")
def aggregate_maps(
    attribution: Tensor, scores: Tensor, *, bins: Sequence[float] = PERCENTILES
) -> Aggregate:
    r"""Mean of the maps in each percentile bin of their scores (AggAtt).

    The maps are sorted by falling score, of equal ones the first first. Of M maps that have a score,
    the bin from a to b percent holds those of rank :math:`\lfloor aM/100 \rfloor` up to
    :math:`\lfloor bM/100 \rfloor - 1`, counted from 0. So a bin can be empty where there are few maps:
    that of 0 to 2 percent is below 50.

    Maps are averaged as they are. Give their positive part for the published pictures, and divide each
    by its maximum where no map should outshine the others.

    Args:
        attribution: Maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``. They should show one cell's
            class each, and that cell in one place.
        scores: Of each map, ``(N,)``, higher is better; NaN for an undefined one, which is left out.
        bins: Borders in percent, rising from 0 to 100.

    Returns:
        Mean maps, counts and mean scores of the bins, and how many maps were left out; all on the
        maps' device, and nothing is read from there.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If the borders do.

    References:
        Rao et al., 2022, "Towards Better Understanding Attribution Methods", Section 3.3.

    Example:
        >>> maps = torch.tensor([2.0, 4.0, 6.0]).view(3, 1, 1)
        >>> found = aggregate_maps(maps, torch.tensor([0.1, 0.9, 0.5]), bins=(0, 70, 100))
        >>> found.maps.flatten(), found.counts  # the mean of 4 and 6, and 2
        (tensor([5., 2.]), tensor([2, 1]))
    """
    borders = _check_bins(bins)
    (maps,) = check_maps(attribution)
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ShapeError(f"scores is {kind}. Give one score a map. Floating point (N,) is allowed.")
    if tuple(scores.shape) != (len(maps),):
        raise ShapeError(
            f"scores has shape {tuple(scores.shape)} for {len(maps)} maps. Give one score a map. "
            "(N,) is allowed."
        )
    scores = scores.to(maps.device)
    without = scores.isnan()
    count = len(scores) - without.sum()
    falling = torch.where(without, -torch.inf, scores).sort(descending=True, stable=True).indices
    # Those without a score come last: behind the others that are -inf too.
    order = falling[without[falling].long().argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    # In float64, up to its rounding: 98% of 50 maps are 49, and not 48.99.
    shares = torch.tensor(borders, dtype=torch.float64, device=maps.device) / 100
    limits = (shares * count + 1e-9).long()
    place = torch.searchsorted(limits, rank, right=True) - 1
    place = torch.where(without, len(borders) - 1, place)  # a bin of their own, which is dropped
    sums = maps.new_zeros((len(borders), *maps.shape[1:])).index_add(0, place, maps)
    totals = scores.new_zeros(len(borders)).index_add(0, place, torch.where(without, 0, scores))
    counts = limits.diff()
    return Aggregate(
        sums[:-1] / counts[:, None, None].to(sums.dtype),
        counts,
        totals[:-1] / counts.to(totals.dtype),
        without.sum(),
    )


def _check_bins(bins: Sequence[float]) -> list[float]:
    borders = list(bins) if isinstance(bins, Sequence) and not isinstance(bins, str) else []
    numbers = all(isinstance(b, Real) and not isinstance(b, bool) for b in borders)
    rising = numbers and all(a < b for a, b in pairwise(borders))
    if len(borders) < 2 or not rising or borders[0] != 0 or borders[-1] != 100:
        shares = rising and borders and borders[-1] == 1
        fix = tuple(round(100 * float(b), 6) for b in borders) if shares else PERCENTILES
        raise OptionError(
            f"bins is {bins!r}. Use {fix}. Percentages that rise from 0 to 100 are allowed."
        )
    return [float(b) for b in borders]
