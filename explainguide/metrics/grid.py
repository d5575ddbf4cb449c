"""The grid pointing game: whether the map of a class falls on the one cell that shows the class."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, check_option, constructor, method, named
from explainguide.metrics.checks import Undefined, check_maps, check_undefined
from explainguide.metrics.image_mean import ImageMean, mark_undefined
from explainguide.metrics.table import map_metric

__all__ = ["CellOrder", "GridPointingGame", "check_grid", "grid_pointing_game"]

CellOrder = Literal["column", "row"]


@named("grid_pointing_game")
def grid_pointing_game(
    attribution: Tensor,
    cell: Tensor,
    *,
    n: int = 3,
    smoothing: int = 0,
    order: CellOrder = "column",
    undefined: Undefined = "exclude",
) -> Tensor:
    r"""Share of the positive attribution that falls into one cell of a grid of n x n images (GridPG).

    .. math:: \frac{\sum_{p \in \text{cell}} A^+_p}{\sum_p A^+_p}

    Each map is that of a grid image for the class of the image in one cell. A map that knows nothing
    scores about :math:`1/n^2`. Undefined for a map without a positive part, after smoothing.

    Args:
        attribution: Signed maps of the grid images, of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``; H
            and W are multiples of n, so that each pixel belongs to one cell.
        cell: The cell that shows the class of the map, ``(N,)``, whole numbers from 0 to n * n - 1.
        n: Images in height and in width.
        smoothing: Side in pixels of the square over which the signed map is averaged first, around
            each pixel and with zeros outside of the map, 0 or odd. It moves mass over the borders of
            cells.
        order: ``"column"``, as published: cell k is in row k % n and column k // n. ``"row"``: in row
            k // n and column k % n.
        undefined: What an undefined map scores: ``"exclude"`` NaN, ``"zero"`` 0, as the published
            program does.

    Returns:
        Score of each map, ``(N,)``, in [0, 1]; higher is better. Differentiable. NaN for a map that is
        not finite, and for a cell that the grid has not where it cannot be refused without waiting for
        a device.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does, or a cell, where it is on the host.

    References:
        Böhle et al., 2021, "Convolutional Dynamic Alignment Networks for Interpretable
        Classifications"; smoothing: Rao et al., 2022, "Towards Better Understanding Attribution
        Methods".

    Example:
        A grid of 2 x 2 images of 1 pixel. Cell 1 lies below cell 0 and has 3 of 4 units.

        >>> attribution = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])
        >>> grid_pointing_game(attribution, torch.tensor([1]), n=2)
        tensor([0.7500])
        >>> grid_pointing_game(attribution, torch.tensor([1]), n=2, order="row")
        tensor([0.])
    """
    check_undefined(undefined)
    _check_game(n, smoothing, order)
    scores, defined = _grid_scores(attribution, cell, n, smoothing, order)
    return torch.where(scores.isnan(), scores, mark_undefined(scores, defined, undefined))


@map_metric(
    "gridpg",
    title="GridPG",
    needs=("cell",),
    counts_undefined=True,
)
class GridPointingGame(ImageMean):
    r"""Share of the positive attribution in the cell that shows the class, averaged over maps (GridPG).

    `grid_pointing_game` has the details, and the score of each map;
    `explainguide.evaluation.grid_game` makes the grids and plays the game.

    - ``update(attribution, cell)``: signed maps of grid images, ``(N, H, W)`` or ``(N, 1, H, W)``, H
      and W multiples of n, and the cell that shows each map's class, ``(N,)``.
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no map was defined. A map that
      knows nothing scores about :math:`1/n^2`.
    - ``undefined``: after ``compute()``, the number of maps without a positive part.

    Args:
        n: Images in height and in width.
        smoothing: Side in pixels of the square over which maps are averaged first, 0 or odd.
        order: How cells are counted: ``"column"``, as published, goes down first, ``"row"`` right.
        undefined: ``"exclude"`` leaves undefined maps out of the mean; ``"zero"`` counts them as 0, as
            the published program does.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does; in ``update``, if a cell does and is on the host.

    References:
        Böhle et al., 2021, "Convolutional Dynamic Alignment Networks for Interpretable
        Classifications".

    Example:
        One map for each of the four cells, all of them alike: cell 1 has 3 units, cell 3 one.

        >>> import torch
        >>> metric = GridPointingGame(n=2)
        >>> metric.update(torch.tensor([[0.0, 0.0], [3.0, 1.0]]).expand(4, 2, 2), torch.arange(4))
        >>> metric.compute()
        tensor(0.2500)
    """

    is_differentiable: bool | None = True

    kind = "without_positive_part"

    @constructor
    def __init__(
        self,
        *,
        n: int = 3,
        smoothing: int = 0,
        order: CellOrder = "column",
        undefined: Undefined = "exclude",
        **kwargs: Any,
    ) -> None:
        _check_game(n, smoothing, order)
        options = f"n={n}, smoothing={smoothing}, order={order!r}"
        super().__init__(undefined, options=options, **kwargs)
        self.n, self.smoothing, self.order = n, smoothing, order

    @method
    def update(self, attribution: Tensor, cell: Tensor) -> None:
        """Add the maps of a batch."""
        self._add(*_grid_scores(attribution, cell, self.n, self.smoothing, self.order))

    def compute(self) -> Tensor:
        """The mean over all maps so far, in all processes."""
        return self._mean()


def check_grid(n: int, order: str) -> None:
    """Refuse a number of images that makes no grid, and an unknown order of its cells."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise OptionError(
            f"n is {n!r}. Use 3 for a grid of 3 x 3 images. A whole number from 1 on is allowed."
        )
    check_option("order", order, ("column", "row"))


def _check_game(n: int, smoothing: int, order: str) -> None:
    """Refuse a grid that is none, and a smoothing that would change the size of a map."""
    check_grid(n, order)
    if not isinstance(smoothing, int) or isinstance(smoothing, bool) or smoothing < 0:
        raise OptionError(
            f"smoothing is {smoothing!r}. Use 0 for none. 0 and odd sides are allowed."
        )
    if smoothing and smoothing % 2 == 0:
        raise OptionError(
            f"smoothing is {smoothing}, a square without a middle. Use {smoothing + 1}. 0 and odd "
            "sides are allowed."
        )


def _check_cells(cell: Tensor, count: int, n: int) -> None:
    """Refuse cells that are no numbers of cells; their values where they are on the host."""
    if not isinstance(cell, Tensor) or cell.is_floating_point() or cell.dtype == torch.bool:
        kind = f"dtype {cell.dtype}" if isinstance(cell, Tensor) else f"type {type(cell).__name__}"
        raise ShapeError(
            f"cell has {kind}. Give the number of the cell that shows each map's class. Whole "
            f"numbers (N,) from 0 to {n * n - 1} are allowed."
        )
    if tuple(cell.shape) != (count,):
        raise ShapeError(
            f"cell has shape {tuple(cell.shape)} for {count} maps. Give one cell a map. (N,) is "
            "allowed."
        )
    if cell.device.type == "cpu":
        wrong = [k for k in cell.tolist() if not 0 <= k < n * n]
        if wrong:
            raise OptionError(
                f"cell holds {wrong[0]}, but a grid of {n} x {n} has {n * n} cells. Count them from "
                f"0, or say n=. 0 to {n * n - 1} are allowed."
            )


def _grid_scores(
    attribution: Tensor, cell: Tensor, n: int, smoothing: int, order: str
) -> tuple[Tensor, Tensor]:
    """Share of the positive part in the own cell; undefined where there is nothing to share."""
    (maps,) = check_maps(attribution)
    _check_cells(cell, len(maps), n)
    height, width = maps.shape[-2:]
    if height % n or width % n or not height * width:
        fix = tuple(max(n, round(side / n) * n) for side in (height, width))
        raise ShapeError(
            f"attribution has shape {tuple(maps.shape)}, whose height and width do not divide into "
            f"n={n} cells each. Resize it: torch.nn.functional.interpolate(attribution, {fix}) on "
            "(N, 1, H, W). Multiples of n are allowed."
        )
    finite = maps.isfinite().flatten(1).all(1)
    if smoothing > 1:
        padding = (smoothing - 1) // 2  # of zeros, which count in the average
        maps = F.avg_pool2d(maps[:, None], smoothing, stride=1, padding=padding)[:, 0]
    energy = maps.clamp(min=0).unflatten(1, (n, height // n)).unflatten(3, (n, width // n))
    cells = energy.sum((2, 4))  # rows, columns
    cells = (cells.mT if order == "column" else cells).flatten(1)
    total = cells.sum(1)
    known = (cell >= 0) & (cell < n * n)
    own = cells.gather(1, cell.long().clamp(0, n * n - 1)[:, None])[:, 0]
    defined = total > 0
    scores = own / torch.where(defined, total, 1.0)
    return torch.where(finite & known, scores, torch.nan), defined | ~(finite & known)
