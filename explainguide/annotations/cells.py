"""Boxes without their pixels: the cells between their edges, and those that the union covers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
        edges: The first row of each stripe, and H; the first column of each stripe, and W:
            ``(2, N, P + 1)`` int64, ascending from 0.
        covered: Which cells the union covers, ``(..., N, P, P)`` bool.
    """

    edges: Tensor
    covered: Tensor


def between_edges(low: Tensor, high: Tensor, chosen: Tensor, size: Size) -> Cells:
    """The union of the chosen boxes of each image, exactly; no value is read.

    Args:
        low: The boxes' first pixels, as `spans` gives them, ``(2, N, M)``.
        high: One past their last ones, likewise.
        chosen: As in `ChosenBoxes`.
        size: (H, W) of the images.

    Example:
        >>> from explainguide.annotations.boxes import spans
        >>> low, high = spans(torch.tensor([[[1.0, 0.0, 3.0, 1.0]]]), (2, 4))
        >>> cells = between_edges(low, high, torch.ones(1, 1), (2, 4))
        >>> cells.edges[1]
        tensor([[0, 1, 3, 4]])
        >>> cells.covered[0, 1]  # an empty stripe lies above
        tensor([False,  True, False])
    """
    ends = low.new_zeros(2, low.shape[1], 2)
    ends[0, :, 1], ends[1, :, 1] = size
    edges = torch.cat([ends, low, high], -1).sort(-1).values
    start, end = edges[:, :, None, :-1], edges[:, :, None, 1:]
    inside = (low[..., None] <= start) & (high[..., None] >= end) & (start < end)
    in_row, in_column = inside.float()
    # How many boxes cover each cell; above zero in any precision.
    count = (chosen[..., None] * in_row).mT @ in_column
    return Cells(edges.long(), count > 0)


def have_pixels(low: Tensor, high: Tensor, chosen: Tensor) -> Tensor:
    """Which regions cover a pixel, ``(..., N)`` bool; the arguments are those of `between_edges`."""
    return ((chosen > 0) & (low < high).all(0)).any(-1)
