"""The pointing game: whether the highest point of a map hits the mask."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import constructor, method, named
from explainguide.metrics.checks import Undefined, check_maps, check_tolerance, check_undefined
from explainguide.metrics.image_mean import PIXELS, ImageMean, mark_broken, mark_undefined
from explainguide.metrics.table import map_metric

__all__ = ["PointingGame", "pointing_game"]


@named("pointing_game")
def pointing_game(
    attribution: Tensor,
    mask: Tensor,
    *,
    tolerance: int = 0,
    undefined: Undefined = "exclude",
) -> Tensor:
    r"""Whether the highest point of the map hits the mask.

    A hit is 1 and a miss 0. Where several pixels share the maximum, the score is the share of them
    that hit. Undefined for a map without a positive part, whose highest point is no evidence. An
    empty mask is defined and scores 0.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: Region to hit, same shape, bool or in [0, 1].
        tolerance: A point at most this many pixels away from the mask (Euclidean) still hits. Zhang
            et al. use 15; TorchRay asks for strictly less than its tolerance.
        undefined: What an undefined image scores: ``"exclude"`` NaN, ``"zero"`` 0.

    Returns:
        Score of each image, ``(N,)``, in [0, 1]; higher is better. No gradient. NaN where a map or
        mask is not finite, under either rule.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Zhang et al., 2018, "Top-down Neural Attention by Excitation Backprop".

    Example:
        The highest pixel is the last one, one step below the mask.

        >>> attribution = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> pointing_game(attribution, mask)
        tensor([0.])
        >>> pointing_game(attribution, mask, tolerance=1)
        tensor([1.])
    """
    check_undefined(undefined)
    check_tolerance(tolerance)
    attribution, mask = check_maps(attribution, mask=mask)
    return mark_undefined(*_pointing_scores(attribution, mask, tolerance), undefined)


@map_metric(
    "pointing_game",
    title="Pointing game",
    counts_undefined=True,
    each=pointing_game,
)
class PointingGame(ImageMean):
    """Share of the images whose map has its highest point in the mask.

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1].
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined. Where
      several pixels share a map's maximum, that image counts with the share of them that hit.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of maps that are
      ``"without_positive_part"``, or, map or mask, ``"not_finite"``, which are never averaged in.

    Zhang et al. average over classes; that is the mean of one `PointingGame` a class.

    Args:
        tolerance: A point at most this many pixels away from the mask still hits; 15 in the paper.
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them
            as 0.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Zhang et al., 2018, "Top-down Neural Attention by Excitation Backprop".

    Example:
        The first map points into the left column, the second does not.

        >>> import torch
        >>> metric = PointingGame()
        >>> left = torch.tensor([[True, False], [True, False]]).expand(2, 2, 2)
        >>> maps = torch.tensor([[[3.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]]])
        >>> metric.update(maps, left)
        >>> metric.compute()
        tensor(0.5000)
    """

    kind = "without_positive_part"

    @constructor
    def __init__(
        self, *, tolerance: int = 0, undefined: Undefined = "exclude", **kwargs: Any
    ) -> None:
        check_tolerance(tolerance)
        super().__init__(undefined, options=f"tolerance={tolerance}", **kwargs)
        self.tolerance = tolerance

    @method
    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps(attribution, mask=mask)
        self._add(*_pointing_scores(attribution, mask, self.tolerance))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


def _pointing_scores(attribution: Tensor, mask: Tensor, tolerance: int) -> tuple[Tensor, Tensor]:
    """Share of the map's highest pixels that lie within ``tolerance`` pixels of the mask."""
    peak = attribution.amax(PIXELS)
    highest = (attribution == peak[:, None, None]).to(mask.dtype)
    hits = (highest * _dilate(mask, tolerance)).sum(PIXELS)
    return mark_broken(hits / highest.sum(PIXELS), attribution, mask), peak > 0


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
