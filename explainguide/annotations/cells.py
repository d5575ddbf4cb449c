"""Boxes without their pixels: the cells between their edges, and those that the union covers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.annotations.boxes import spans

__all__ = ["Cells", "ChosenBoxes", "between_edges", "have_pixels"]

Size = tuple[int, int]


class ChosenBoxes(NamedTuple):
    """Regions that are unions of boxes.

    Attributes:
        boxes: ``(N, M, 4)`` xyxy in pixels.
        chosen: Which of them a region is made of, ``(..., N, M)`` float in {0, 1}.
    """

    boxes: Tensor
    chosen: Tensor


class Cells(NamedTuple):
    """An image cut along the edges of its M boxes, in P = 2 M + 1 stripes each way.

    A cell is covered as a whole or not at all. Stripes between two edges that coincide are empty.

    Attributes:
        rows: The first row of each stripe, and H, ``(N, P + 1)`` int64, ascending from 0.
        columns: The first column of each stripe, and W, likewise.
        covered: Which cells the union covers, ``(..., N, P, P)`` bool.
    """

    rows: Tensor
    columns: Tensor
    covered: Tensor


def between_edges(found: ChosenBoxes, size: Size) -> Cells:
    """The union of the chosen boxes of each image, exactly; no value is read.

    Args:
        found: Which boxes.
        size: (H, W) of the images.

    Example:
        >>> boxes = torch.tensor([[[1.0, 0.0, 3.0, 1.0]]])
        >>> cells = between_edges(ChosenBoxes(boxes, torch.ones(1, 1)), (2, 4))
        >>> cells.columns
        tensor([[0, 1, 3, 4]])
        >>> cells.covered[0, 1]  # an empty stripe lies above
        tensor([False,  True, False])
    """
    of_rows, of_columns = spans(found.boxes, size)
    rows, in_row = _stripes(*of_rows, size[0])
    columns, in_column = _stripes(*of_columns, size[1])
    # How many boxes cover each cell; above zero in any precision.
    count = torch.einsum("...nm,nmp,nmq->...npq", found.chosen, in_row.float(), in_column.float())
    return Cells(rows, columns, count > 0)


def _stripes(low: Tensor, high: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The edges in order, ``(N, P + 1)``, and the stripes in each box, ``(N, M, P)`` bool."""
    edges = torch.cat([F.pad(low, (1, 0)), F.pad(high, (0, 1), value=length)], 1).sort(1).values
    start, end = edges[:, None, :-1], edges[:, None, 1:]
    inside = (low[..., None] <= start) & (high[..., None] >= end) & (start < end)
    return edges.long(), inside


def have_pixels(found: ChosenBoxes, size: Size) -> Tensor:
    """Which regions cover a pixel, ``(..., N)`` bool."""
    (top, bottom), (left, right) = spans(found.boxes, size)
    return ((found.chosen > 0) & (top < bottom) & (left < right)).any(-1)
