"""IoU of the mask and the thresholded map, at a threshold that is given or fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from explainguide.errors import OptionError, constructor, method, named
from explainguide.metrics.checks import Undefined, check_maps, check_threshold, check_undefined
from explainguide.metrics.image_mean import ImageMean, mark_undefined
from explainguide.metrics.table import map_metric
from explainguide.metrics.thresholded import GRID, iou_scores

__all__ = ["LocalizationIoU", "localization_iou"]


@named("localization_iou")
def localization_iou(
    attribution: Tensor,
    mask: Tensor,
    *,
    threshold: float = 0.5,
    undefined: Undefined = "exclude",
) -> Tensor:
    r"""Intersection over union of the mask and the thresholded map.

    The positive part of each map is min-max normalised, P, and a pixel is predicted where
    P > ``threshold``, strictly. A positive part that is constant (a range below 1e-7) is divided by
    its maximum instead, so all of its pixels are predicted. For a mask with values between 0 and 1,
    intersection and union are sums of products, ``P M`` and ``P + M - P M``.

    Undefined where neither map nor mask has anything: the union is empty.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: Region that should hold the attribution, same shape, bool or in [0, 1].
        threshold: In [0, 1). `LocalizationIoU` can choose it on held-out data.
        undefined: What an undefined image scores: ``"exclude"`` NaN, ``"zero"`` 0.

    Returns:
        Score of each image, ``(N,)``, in [0, 1]; higher is better. No gradient. NaN where a map or
        mask is not finite, under either rule.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Rao et al., 2023, Section 3.3, which thresholds the map and does not say how it is scaled. Its
        program normalises as above.

    Example:
        Normalised, the map is (1, 0.5, 0.25, 0). Above 0.4 lie the two pixels of the upper row; one
        of them is in the mask, and map and mask together have three.

        >>> attribution = torch.tensor([[[4.0, 2.0], [1.0, -1.0]]])
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> localization_iou(attribution, mask, threshold=0.4)
        tensor([0.3333])
    """
    check_undefined(undefined)
    check_threshold([threshold])
    attribution, mask = check_maps(attribution, mask=mask)
    scores, defined = iou_scores(attribution, mask, [threshold])
    return mark_undefined(scores[:, 0], defined, undefined)


@map_metric(
    "iou",
    title="IoU",
    options=("threshold",),
    default=True,
    each=localization_iou,
)
class LocalizationIoU(ImageMean):
    """Intersection over union of the mask and the thresholded map, averaged over images.

    The positive part of each map is min-max normalised and a pixel is predicted strictly above the
    threshold; `localization_iou` has the details.

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1].
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of images where map and mask
      are both ``"empty"``, or one of them is ``"not_finite"``; the latter are never averaged in.
    - ``best_threshold``: after ``compute()``, the threshold that the returned value belongs to.

    With ``threshold="fit"`` the mean IoU is kept for a whole grid of thresholds, and ``compute()``
    returns the highest (of equal ones the lowest threshold). Fit on held-out data and hand the
    result to a second metric for the test data; a value that was fitted on the images it describes
    is too high::

        fit = LocalizationIoU(threshold="fit")
        for maps, masks in validation:
            fit.update(maps, masks)
        fit.compute()
        metric = LocalizationIoU(threshold=fit.best_threshold)
        for maps, masks in test:
            metric.update(maps, masks)

    Args:
        threshold: In [0, 1), or ``"fit"``.
        grid: The thresholds to fit among, each in [0, 1); None for 0, 0.05, ... 0.95. The cost of
            ``update`` grows with their number.
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them as
            0, as the published tables do.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Rao et al., 2023, "Studying How to Efficiently and Effectively Guide Models with
        Explanations", Section 3.3, which chooses the threshold on held-out data; its program has
        0.5.

    Example:
        Normalised, the map is (1, 0.5, 0.25, 0) and the mask holds its two highest pixels. Above
        0.5 lies one of them (1 of 2); above 0.3 lie both.

        >>> attribution = torch.tensor([[[4.0, 2.0], [1.0, -1.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> metric = LocalizationIoU(threshold=0.5)
        >>> metric.update(attribution, mask)
        >>> metric.compute()
        tensor(0.5000)
        >>> fit = LocalizationIoU(threshold="fit", grid=(0.1, 0.3, 0.5))
        >>> fit.update(attribution, mask)
        >>> fit.compute(), fit.best_threshold
        (tensor(1.), 0.3)
    """

    kind = "empty"

    @constructor
    def __init__(
        self,
        *,
        threshold: float | Literal["fit"] = 0.5,
        grid: Sequence[float] | None = None,
        undefined: Undefined = "exclude",
        **kwargs: Any,
    ) -> None:
        if isinstance(threshold, str) and threshold != "fit":
            raise OptionError(
                f"unknown threshold={threshold!r}. Use 'fit' to choose it on held-out "
                "data. It must be a number in [0, 1) or 'fit'."
            )
        if grid is not None and threshold != "fit":
            raise OptionError(
                f"grid was given with threshold={threshold!r}. Use threshold='fit' to "
                "choose from the grid. A fixed threshold takes no grid."
            )
        if grid is not None and len(grid) == 0:
            raise OptionError(
                "grid is empty. Leave it out for 0, 0.05, ... 0.95. It must hold at least "
                "one threshold in [0, 1)."
            )
        thresholds: tuple[Any, ...] = (threshold,)
        if threshold == "fit":
            thresholds = tuple(grid) if grid is not None else GRID
        check_threshold(thresholds, name="grid" if threshold == "fit" else "threshold")
        options = f"threshold={threshold!r}"
        if threshold == "fit":
            options += f", grid={thresholds}"
        super().__init__(undefined, options=options, width=len(thresholds), **kwargs)
        self.threshold = threshold
        self.thresholds = thresholds
        self._best = torch.tensor(-1)

    @method
    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps(attribution, mask=mask)
        self._add(*iou_scores(attribution, mask, self.thresholds))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes, at the (best) threshold."""
        highest = self._mean().max(0)
        self._best = torch.where(highest.values.isnan(), -1, highest.indices)
        return highest.values

    @property
    @method
    def best_threshold(self) -> float:
        """The threshold of the value that `compute` returned; NaN where that is NaN."""
        if self.threshold != "fit":
            return float(self.threshold)
        self._of_compute("best_threshold")
        best = int(self._best)
        return float(self.thresholds[best]) if best >= 0 else math.nan
