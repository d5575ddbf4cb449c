"""Sums over the pixels of upsampled maps, taken of the maps themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.annotations.cells import Cells

__all__ = ["Sums", "upsampling"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Sums:
    r"""Sums over the pixels of maps that are upsampled bilinearly, where the mask is made of boxes.

    Upsampling is linear and acts on each axis by itself: row y, column x of the upsampled map is
    :math:`\sum_{ij} U_{yi} V_{xj} a_{ij}`. So its sum over a rectangle of pixels is that of the map,
    weighted by the sums of U over the rows and of V over the columns; and the sum of its squares is
    one of products of neighbours, weighted by sums of :math:`U_{yi} U_{yi'}` and
    :math:`V_{xj} V_{xj'}`. The values are those of the upsampled map up to rounding, and so are the
    gradients; no tensor has the size of the image.

    Attributes:
        masks: Makes their cells, ``(..., N)`` of them; maps are flattened, N of them below.
        places: (h, w) of the maps.
        size: (H, W) of the image.
        non_negative: Whether no value of the maps is negative, so that a clamp before upsampling is
            one after it.
    """

    masks: Callable[[], Cells]
    places: Size
    size: Size
    non_negative: bool

    @property
    def cells(self) -> Cells:
        """The masks."""
        return self.masks()

    @property
    def pixels(self) -> int:
        """H * W."""
        return self.size[0] * self.size[1]

    def weights(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """What each place of the maps counts for in the sum inside the mask, and outside.

        Both together are the sum over all pixels, and the weights of a map of ones in it H * W.

        Args:
            maps: ``(N, h, w)``; only their dtype is looked at.

        Returns:
            Twice ``(N, h, w)``, non-negative.
        """
        covered = self.cells.covered
        both = torch.stack([covered, ~covered])
        inside, outside = self._over_cells(lambda table: table, both, maps).chunk(2)
        return inside, outside

    def squares_outside(self, maps: Tensor) -> Tensor:
        """The sum of the upsampled maps' squares outside the mask, ``(N, h, w) -> (N,)``."""
        weights = self._over_cells(_with_products, ~self.cells.covered, maps)
        at, beside = weights.tensor_split([maps.shape[-1]], -1)
        # Rows with themselves, then with the next one, which counts twice; and of columns both orders.
        upper = torch.cat([maps, 2 * maps[:, :-1]], 1)
        lower = torch.cat([maps, maps[:, 1:]], 1)
        mixed = upper[..., :-1] * lower[..., 1:] + upper[..., 1:] * lower[..., :-1]
        squares = (upper * lower * at).sum((-2, -1)) + (mixed * beside).sum((-2, -1))
        # Neighbours of two signs may cancel, and then round to less than nothing.
        return torch.relu(squares)

    def _over_cells(
        self, tabulate: Callable[[Tensor], Tensor], chosen: Tensor, like: Tensor
    ) -> Tensor:
        """The sums over the chosen cells of what a row gives times what a column gives.

        Args:
            tabulate: What that is, of an axis's weights: ``(pixels, places) -> (pixels, k)``.
            chosen: ``(..., N, P, P)``.
            like: Of the dtype of the result.

        Returns:
            ``(... * N, k, k')``.
        """
        edges = self.cells.edges
        axes = list(zip(self.places, self.size, strict=True))
        if axes[0] == axes[1]:
            rows, columns = _by_stripe(tabulate(upsampling(*axes[0], device=edges.device)), edges)
        else:
            rows, columns = (
                _by_stripe(tabulate(upsampling(*axis, device=edges.device)), of_axis)
                for axis, of_axis in zip(axes, edges, strict=True)
            )
        # In half precision the weights would be others; in float32 on tensor cores, too.
        with torch.autocast(like.device.type, enabled=False):
            sums = rows.mT @ chosen.to(rows.dtype) @ columns
        return sums.flatten(0, -3).to(like.dtype)


def upsampling(places: int, pixels: int, *, device: torch.device) -> Tensor:
    """The weights of bilinear upsampling along one axis.

    Args:
        places: How many values there are.
        pixels: How many there will be.
        device: Where.

    Returns:
        ``(pixels, places)``, by the rule of `torch.nn.functional.interpolate` with
        ``mode="bilinear", align_corners=False``; float32 on devices that have no float64.

    Example:
        >>> upsampling(2, 4, device=torch.device("cpu"))
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    pixel = torch.arange(pixels, dtype=dtype, device=device)
    place = torch.arange(places, dtype=dtype, device=device)
    centre = ((pixel + 0.5) * (places / pixels) - 0.5).clamp(0, places - 1)
    return torch.relu(1 - (centre[:, None] - place).abs())


def _with_products(table: Tensor) -> Tensor:
    """Squares of an axis's weights, then products with the next: ``(pixels, 2 places - 1)``."""
    return torch.cat([table.square(), table[:, :-1] * table[:, 1:]], 1)


def _by_stripe(table: Tensor, edges: Tensor) -> Tensor:
    """The sums of a table ``(length, k)`` between edges ``(..., P + 1)``: ``(..., P, k)``.

    As differences of running sums. These are in whole numbers, so that they are the same in any
    order, on any device, and a place counts for exactly nothing in a stripe that it does not reach.
    """
    one = 2.0 ** min(50, 62 - len(table).bit_length())  # as many of them fit as there are pixels
    running = F.pad((table * one).round().long().cumsum(0), (0, 0, 1, 0))
    return running[edges].diff(dim=-2).to(table.dtype) * (1 / one)
