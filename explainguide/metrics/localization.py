"""Localization metrics that accumulate over a data set, as torchmetrics classes.

Each is the mean of a function of `explainguide.metrics.functional` over the images, or (image,
class) pairs, where that function is defined. States are sums in float64 and counts, so that any
split into batches and processes gives the same result.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from explainguide.metrics.checks import Undefined, check_energy, check_maps, check_tolerance
from explainguide.metrics.image_mean import ImageMean
from explainguide.metrics.iou import LocalizationIoU
from explainguide.metrics.scores import energy_scores, pointing_scores

__all__ = ["EnergyPointingGame", "LocalizationIoU", "OnObjectEnergy", "PointingGame"]


class EnergyPointingGame(ImageMean):
    r"""Share of the positive attribution that falls inside the mask, averaged over images (EPG).

    .. math:: \frac{1}{N} \sum_i \frac{\sum_p M_{ip} A^+_{ip}}{\sum_p A^+_{ip}}

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1]. For several classes an image, one row for each
      (image, class) pair.
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined.
    - ``undefined``: after ``compute()``, the number of maps without a positive part.

    Args:
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them as
            0, as the published tables do.
        min_energy: A map whose positive part sums to less is undefined too (1e-7 in the program of
            Rao et al.).
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    Note:
        States are float64. On a device that has none (MPS), call
        ``metric.set_dtype(torch.float32)`` before moving the metric; so for the other metrics.

    References:
        Rao et al., 2023, "Studying How to Efficiently and Effectively Guide Models with
        Explanations", Eq. 2. Introduced by Wang et al., 2020, "Score-CAM".

    Example:
        Of the first map's 4 units 3 lie in the left column, of the second's 2 only 1; the third has
        nothing positive and is counted apart.

        >>> import torch
        >>> metric = EnergyPointingGame()
        >>> maps = [[[3.0, 1.0], [-2.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]]]
        >>> left = torch.tensor([[True, False], [True, False]]).expand(3, 2, 2)
        >>> metric.update(torch.tensor(maps), left)
        >>> metric.compute()
        tensor(0.6250)
        >>> metric.undefined
        1
    """

    is_differentiable: bool | None = True

    def __init__(
        self, *, undefined: Undefined = "exclude", min_energy: float = 0.0, **kwargs: Any
    ) -> None:
        check_energy(type(self).__name__, min_energy)
        super().__init__(undefined, options=f"min_energy={min_energy}", **kwargs)
        self.min_energy = min_energy

    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps("EnergyPointingGame.update", attribution, mask=mask)
        self._add(*energy_scores(attribution.clamp(min=0), mask, self.min_energy))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


class OnObjectEnergy(ImageMean):
    r"""Share of the positive attribution inside the box that falls on the object, over images.

    .. math:: \frac{1}{N} \sum_i \frac{\sum_p M_{ip} B_{ip} A^+_{ip}}{\sum_p B_{ip} A^+_{ip}}

    - ``update(attribution, mask, box_mask)``: signed maps of any scale, ``(N, H, W)`` or
      ``(N, 1, H, W)``; the segmentation M and the boxes B as masks of the same shape, bool or in
      [0, 1]. Here ``mask`` is the segmentation, so a `torchmetrics.MetricCollection` that hands one
      ``mask`` to all is right only if the others are to see the segmentation too.
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined.
    - ``undefined``: after ``compute()``, the number of maps without a positive part in the box.

    Args:
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them
            as 0.
        min_energy: Undefined too where the positive attribution in the box sums to less.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Rao et al., 2023, "Studying How to Efficiently and Effectively Guide Models with
        Explanations", Section B.4 ("On-object EPG").

    Example:
        The box is the upper row and holds 3 + 1; the object is its left pixel.

        >>> import torch
        >>> metric = OnObjectEnergy()
        >>> attribution = torch.tensor([[[3.0, 1.0], [5.0, 0.0]]])
        >>> segmentation = torch.tensor([[[True, False], [False, False]]])
        >>> box = torch.tensor([[[True, True], [False, False]]])
        >>> metric.update(attribution, segmentation, box)
        >>> metric.compute()
        tensor(0.7500)
    """

    is_differentiable: bool | None = True

    def __init__(
        self, *, undefined: Undefined = "exclude", min_energy: float = 0.0, **kwargs: Any
    ) -> None:
        check_energy(type(self).__name__, min_energy)
        super().__init__(undefined, options=f"min_energy={min_energy}", **kwargs)
        self.min_energy = min_energy

    def update(self, attribution: Tensor, mask: Tensor, box_mask: Tensor) -> None:
        """Add the maps, segmentations and box masks of a batch."""
        attribution, mask, box_mask = check_maps(
            "OnObjectEnergy.update", attribution, mask=mask, box_mask=box_mask
        )
        self._add(*energy_scores(attribution.clamp(min=0) * box_mask, mask, self.min_energy))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


class PointingGame(ImageMean):
    """Share of the images whose map has its highest point in the mask.

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1].
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined. Where
      several pixels share a map's maximum, that image counts with the share of them that hit.
    - ``undefined``: after ``compute()``, the number of maps without a positive part.

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

    def __init__(
        self, *, tolerance: int = 0, undefined: Undefined = "exclude", **kwargs: Any
    ) -> None:
        check_tolerance(type(self).__name__, tolerance)
        super().__init__(undefined, options=f"tolerance={tolerance}", **kwargs)
        self.tolerance = tolerance

    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps("PointingGame.update", attribution, mask=mask)
        self._add(*pointing_scores(attribution, mask, self.tolerance))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()
