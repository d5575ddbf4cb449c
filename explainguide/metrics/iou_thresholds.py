"""IoU of the mask and the thresholded map over all thresholds, and the area under it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainguide.errors import OptionError, check_option, constructor, method, named
from explainguide.metrics.checks import Undefined, check_maps, check_threshold, check_undefined
from explainguide.metrics.image_mean import ImageMean, mark_undefined
from explainguide.metrics.table import map_metric
from explainguide.metrics.thresholded import GRID, IoUScale, iou_scores

__all__ = ["Curve", "IoUCurve", "iou_curve"]


class Curve(NamedTuple):
    """What `iou_curve` returns: a curve an image.

    Attributes:
        thresholds: Where it was measured, ``(T,)``.
        values: The IoU there, ``(N, T)``.
        area: The area under each curve, ``(N,)``.
    """

    thresholds: Tensor
    values: Tensor
    area: Tensor


@named("iou_curve")
def iou_curve(
    attribution: Tensor,
    mask: Tensor,
    *,
    thresholds: Sequence[float] | None = None,
    normalize: IoUScale = "minmax",
    undefined: Undefined = "exclude",
) -> Curve:
    r"""Intersection over union of mask and map at every threshold, and the area under that curve.

    At each threshold the score is that of `localization_iou`: predicted is what lies strictly above
    it. The area is the integral by trapezoids, divided by the distance of the last threshold from
    the first: the mean height of the curve. It needs no threshold to be chosen.

    Undefined where neither map nor mask has anything.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: Region that should hold the attribution, same shape, bool or in [0, 1].
        thresholds: Two or more, each in [0, 1), ascending; None for 0, 0.05, ... 0.95. The cost grows
            with their number.
        normalize: How the positive part A+ of each map is brought to [0, 1]: ``"minmax"``, as in
            `localization_iou` and the program of Rao et al., or ``"max"``, A+ / max A+, where a
            map that is positive everywhere keeps its floor.
        undefined: What an undefined image scores: ``"exclude"`` NaN, ``"zero"`` 0.

    Returns:
        Thresholds, IoUs and areas of each image, in [0, 1]; higher is better. No gradient. NaN for
        an image whose map or mask is not finite.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Zhang et al., 2024 (COMET), Tab. 3, which gives the area and does not say how maps are scaled.

    Example:
        Normalised, the map is (1, 0.5, 0.25, 0) and the mask holds its two highest pixels. Of the
        three pixels above 0.1 two are in the mask; above 0.3 lie these two; above 0.5 one of them.

        >>> attribution = torch.tensor([[[4.0, 2.0], [1.0, -1.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> curve = iou_curve(attribution, mask, thresholds=(0.1, 0.3, 0.5))
        >>> curve.values, curve.area
        (tensor([[0.6667, 1.0000, 0.5000]]), tensor([0.7917]))
    """
    check_undefined(undefined)
    grid = _check_curve(thresholds, normalize)
    attribution, mask = check_maps(attribution, mask=mask)
    scores, defined = iou_scores(attribution, mask, grid, normalize=normalize)
    return _with_area(grid, mark_undefined(scores, defined[:, None], undefined))


@map_metric("iou_curve", title="IoU curve")
class IoUCurve(ImageMean):
    """Intersection over union of mask and map at every threshold, averaged over images.

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1].
    - ``compute()``: a dict; ``"thresholds"`` and ``"values"``, the mean IoU at each, both ``(T,)``,
      and ``"area"``, a scalar: the integral by trapezoids over the distance of the last threshold
      from the first. Values and area are in [0, 1], higher is better; NaN where no image was
      defined.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of images where map and mask
      are both ``"empty"``, or one of them is ``"not_finite"``.

    Args:
        thresholds: Two or more, each in [0, 1), ascending; None for 0, 0.05, ... 0.95. The cost of
            ``update`` grows with their number.
        normalize: How the positive part of each map is brought to [0, 1]: ``"minmax"``, as in
            `LocalizationIoU`, or ``"max"``, divided by its maximum.
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them as 0
            at every threshold, but for those that are not finite, which are always left out.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Zhang et al., 2024 (COMET), Tab. 3, which gives the area and does not say how maps are scaled.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [1.0, -1.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> metric = IoUCurve(thresholds=(0.1, 0.3, 0.5))
        >>> metric.update(attribution, mask)
        >>> metric.compute()["area"]
        tensor(0.7917)
    """

    kind = "empty"

    @constructor
    def __init__(
        self,
        *,
        thresholds: Sequence[float] | None = None,
        normalize: IoUScale = "minmax",
        undefined: Undefined = "exclude",
        **kwargs: Any,
    ) -> None:
        grid = _check_curve(thresholds, normalize)
        options = f"thresholds={grid}, normalize={normalize!r}"
        super().__init__(undefined, options=options, width=len(grid), **kwargs)
        self.thresholds = grid
        self.normalize: IoUScale = normalize

    @method
    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps(attribution, mask=mask)
        self._add(*iou_scores(attribution, mask, self.thresholds, normalize=self.normalize))

    def compute(self) -> dict[str, Tensor]:
        """The mean curve over all images so far, in all processes, and the area under it."""
        return _with_area(self.thresholds, self._mean())._asdict()


def _check_curve(thresholds: Sequence[float] | None, normalize: str) -> tuple[float, ...]:
    check_option("normalize", normalize, ("minmax", "max"))
    if thresholds is None:
        return GRID
    if isinstance(thresholds, (str, int, float)) or len(thresholds) < 2:
        raise OptionError(
            f"thresholds is {thresholds!r}. A curve needs two; LocalizationIoU takes one. Leave it out "
            "for 0, 0.05, ... 0.95. Two or more ascending numbers in [0, 1) are allowed."
        )
    check_threshold(thresholds, name="thresholds")
    grid = tuple(float(threshold) for threshold in thresholds)
    if any(later <= earlier for earlier, later in pairwise(grid)):
        raise OptionError(
            f"thresholds are {grid}, which do not ascend. Use {tuple(sorted(set(grid)))}. Two or more "
            "ascending numbers in [0, 1) are allowed."
        )
    return grid


def _with_area(grid: Sequence[float], values: Tensor) -> Curve:
    """Curves ``(..., T)`` with their mean heights, straight between the thresholds."""
    places = torch.tensor(grid, dtype=values.dtype, device=values.device)
    return Curve(places, values, torch.trapezoid(values, places) / (grid[-1] - grid[0]))
