"""Choosing among checkpoints that trade classification against localization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, named

__all__ = ["pareto_front", "representative"]

# 0.85 - 0.05 is not exactly 0.8 in binary; a drop of exactly the limit must still pass.
_SLACK = 1e-9


@named("pareto_front")
def pareto_front(
    points: Sequence[Sequence[float]] | Tensor, *, bin: float | None = 0.005
) -> list[int]:
    """Indices of the points that no other point dominates; every coordinate is to be maximised.

    Coordinates are rounded to multiples of ``bin`` first (half to even), so that differences below
    the noise of a training run do not fill the front. Point i dominates j where it is at least as
    high in every coordinate and higher in one; of points that round to the same place, the earliest
    stays. Filtering after every epoch gives the same front as filtering once at the end.

    A point with a NaN (a run that diverged) is never on the front. Negate what should be minimised.
    Cost: all pairs of points, on the CPU in float64.

    Args:
        points: One row a checkpoint, e.g. (F1, EPG, IoU), ``(P, D)``.
        bin: Width of a bin, or None to compare the values as they are.

    Returns:
        Indices into ``points``, ascending.

    Raises:
        ShapeError: If the points are not P rows of D numbers.
        OptionError: If ``bin`` is not positive.

    References:
        Rao et al., 2023, Section 4 and Fig. 4; the bins are those of its program.

    Example:
        The second point is dominated by the first; the third rounds to the first and came later.

        >>> pareto_front([(0.80, 0.60), (0.70, 0.50), (0.801, 0.601), (0.60, 0.90)])
        [0, 3]
        >>> pareto_front([(0.80, 0.60), (0.70, 0.50), (0.801, 0.601), (0.60, 0.90)], bin=None)
        [2, 3]
    """
    cells = _as_table(points)
    if bin is not None:
        if not bin > 0:
            raise OptionError(
                f"bin is {bin!r}. Use bin=None to compare exact values. "
                "It must be a positive number or None."
            )
        cells = (cells / bin).round()
    count = len(cells)
    if count == 0:
        return []
    no_lower = torch.ones(count, count, dtype=torch.bool)  # [i, j]: i >= j in every coordinate
    for column in cells.unbind(1):
        no_lower &= column[:, None] >= column[None, :]
    # Where both are no lower than the other they are equal, and the earlier one wins.
    earlier = torch.ones(count, count, dtype=torch.bool).triu(diagonal=1)
    dominated = (no_lower & (~no_lower.T | earlier)).any(0)
    valid = ~cells.isnan().any(1)
    return (valid & ~dominated).nonzero()[:, 0].tolist()


@named("representative")
def representative(
    points: Sequence[Sequence[float]] | Tensor,
    baseline_f1: float,
    *,
    max_drop: float = 0.05,
    f1: int = 0,
    epg: int = 1,
) -> int | None:
    """The checkpoint to show: highest EPG with at most ``max_drop`` less F1 than the baseline.

    Of equal EPG the higher F1 wins, then the other coordinates in their order, then the earliest;
    so the choice lies on the exact front, ``pareto_front(points, bin=None)``.

    Args:
        points: One row a checkpoint, ``(P, D)``, as for `pareto_front`; F1 in [0, 1].
        baseline_f1: F1 of the model before guidance, in [0, 1].
        max_drop: How much F1 may be lost; 0.05 is five percentage points.
        f1: Column of the F1.
        epg: Column of the EPG.

    Returns:
        Index into ``points``, or None where every checkpoint loses more F1.

    Raises:
        ShapeError: If the points are not P rows of D numbers, or have no such column.
        OptionError: If ``baseline_f1`` is not in [0, 1].

    References:
        Rao et al., 2023, Section D.1 ("Selecting models to visualize").

    Example:
        The last checkpoint has the highest EPG but loses 0.2 of F1.

        >>> points = [(0.80, 0.50), (0.76, 0.60), (0.60, 0.90)]
        >>> representative(points, baseline_f1=0.80)
        1
    """
    if not 0 <= baseline_f1 <= 1:
        raise OptionError(
            f"baseline_f1 is {baseline_f1!r}. Divide percentages by 100. It must be in [0, 1]."
        )
    table = _as_table(points)
    width = table.shape[1]
    if len(table) and not (0 <= f1 < width and 0 <= epg < width):
        raise ShapeError(
            f"f1={f1} and epg={epg} but the points have {width} columns. "
            "Give rows of (f1, epg, ...), or name the columns. Both must be in "
            f"[0, {width - 1}]."
        )
    rows = table.tolist()
    lowest = baseline_f1 - max_drop - _SLACK
    allowed = [i for i, row in enumerate(rows) if row[f1] >= lowest and row[epg] == row[epg]]
    # max() keeps the first of equals.
    return max(allowed, key=lambda i: (rows[i][epg], rows[i][f1], rows[i]), default=None)


def _as_table(points: Sequence[Sequence[float]] | Tensor) -> Tensor:
    """The points as ``(P, D)`` in float64 on the CPU."""
    try:
        if isinstance(points, Tensor):
            table = points.detach().to("cpu", torch.float64)
        else:
            rows = [[float(value) for value in row] for row in points]
            table = torch.tensor(rows, dtype=torch.float64) if rows else torch.zeros(0, 1)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"points are not a table of numbers ({error}). Give one row a checkpoint, "
            "e.g. [(f1, epg, iou), ...]. All rows must have the same length."
        ) from error
    if table.ndim != 2 or table.shape[1] == 0:
        raise ShapeError(
            f"points have shape {tuple(table.shape)}. Give one row a checkpoint, e.g. "
            "[(f1, epg, iou), ...]. The shape must be (P, D)."
        )
    return table
