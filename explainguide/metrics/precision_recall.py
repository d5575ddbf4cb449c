"""Average precision of many pixels: exact, and of counts in bins, with what the bins may hide.

Average precision is the mean, over the pixels of the object, of the precision among all pixels that
score at least as high. Equal scores are one step, as in scikit-learn.

A bin holds p pixels of the object and n others; above it lie T and F. What order they have within the
bin is unknown. The i-th of the p then has a precision of at most (T + p) / (T + p + F), where all p
are equal and come first, and of at least (T + i) / (T + i + F + n), where they come last, one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Bounded",
    "average_precision",
    "bin_of",
    "binned_precision",
    "bins",
    "bounded_precision",
]


class Bounded(NamedTuple):
    """An average precision of which only the counts in bins are known."""

    lowest: float
    value: float
    highest: float

    @property
    def error(self) -> float:
        """How far the true value may be from the given one."""
        return max(self.value - self.lowest, self.highest - self.value)


def average_precision(scores: Tensor, inside: Tensor, counted: Tensor) -> Tensor:
    """Exact, of ``(P,)`` pixels with finite scores, by a sort; NaN where none is inside.

    Args:
        scores: Of the pixels.
        inside: Whether a pixel is of the object.
        counted: Whether it takes part.
    """
    falling, order = scores.masked_fill(~counted, -torch.inf).sort(descending=True)
    taken = counted[order]
    hits = inside[order] & taken
    last = torch.searchsorted(-falling, -falling, right=True) - 1  # of the equal scores
    precision = hits.cumsum(0)[last].to(scores.dtype) / taken.cumsum(0)[last].clamp(min=1)
    return (precision * hits).sum() / hits.sum()


def bins(bits: int) -> int:
    """How many bins `bin_of` knows."""
    return 2**bits + 1


def bin_of(scores: Tensor, bits: int) -> Tensor:
    """The bin of each finite score; a higher score is never in a lower bin.

    The bits of a float, read as an integer, rise with its absolute value. A bin holds the floats that
    share the first ``bits``: sign, exponent and the first of the fraction, so that the bins are
    narrow in proportion to the score, of any scale. Zero has a bin of its own, since many maps are
    zero at many pixels.
    """
    scores = scores.float() + 0.0  # -0 becomes 0
    raw = scores.view(torch.int32)
    ascending = raw ^ ((raw >> 31) & 0x7FFFFFFF)  # negative ones the other way round
    return (ascending >> (32 - bits)).long() + 2 ** (bits - 1) + (scores > 0)


def binned_precision(outside: Tensor, inside: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the counts in bins, ``(B,)`` from the lowest to the highest, as if a bin were one score."""
    right, wrong = (counts.flip(0).cumsum(0).to(dtype) for counts in (inside, outside))
    precision = right / (right + wrong).clamp(min=1)
    return (inside.flip(0).to(dtype) * precision).sum() / right[-1]


def bounded_precision(outside: Tensor, inside: Tensor, *, equal: int) -> Bounded:
    """The same on the CPU, with the lowest and highest that pixels with these counts can have.

    Args:
        outside: Pixels that are not of the object.
        inside: Pixels that are.
        equal: A bin of which all scores are known to be equal.

    Returns:
        NaN where no pixel is inside.
    """
    p, n = inside.flip(0).double(), outside.flip(0).double()
    right, wrong = p.cumsum(0) - p, n.cumsum(0) - n  # above the bin
    found = p * (right + p) / (right + p + wrong + n).clamp(min=1)
    first = p * (right + p) / (right + p + wrong).clamp(min=1)
    # The sum over i of (T + i) / (T + i + c), with c = F + n, by the digamma function.
    others = wrong + n
    start, end = right + others + 1, right + p + others + 1
    last = torch.minimum(p - others * (end.digamma() - start.digamma()), found)
    known = len(p) - 1 - equal
    first[known] = last[known] = found[known]
    return Bounded(*(float(each.sum() / p.sum()) for each in (last, found, first)))
