"""Energy: the share of the positive attribution in the mask, or of that in the box on the object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explainguide.errors import constructor, method, named
from explainguide.metrics.checks import Undefined, check_energy, check_maps, check_undefined
from explainguide.metrics.image_mean import PIXELS, ImageMean, mark_broken, mark_undefined
from explainguide.metrics.table import map_metric

__all__ = ["EnergyPointingGame", "OnObjectEnergy", "energy_pointing_game", "on_object_energy"]


@named("energy_pointing_game")
def energy_pointing_game(
    attribution: Tensor,
    mask: Tensor,
    *,
    undefined: Undefined = "exclude",
    min_energy: float = 0.0,
) -> Tensor:
    r"""Share of the positive attribution that falls inside the mask (EPG).

    .. math:: \mathrm{EPG} = \frac{\sum_p M_p A^+_p}{\sum_p A^+_p}

    Undefined for a map without a positive part. An empty mask is defined and scores 0.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: Region that should hold the attribution, same shape, bool or in [0, 1].
        undefined: What an undefined image scores: ``"exclude"`` NaN, ``"zero"`` 0.
        min_energy: A map whose positive part sums to less is undefined too. 0 keeps the metric free
            of scale; the program of Rao et al. uses 1e-7.

    Returns:
        Score of each image, ``(N,)``, in [0, 1]; higher is better. Differentiable. NaN where a map or
        mask is not finite, under either rule.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Rao et al., 2023, "Studying How to Efficiently and Effectively Guide Models with
        Explanations", Eq. 2. Introduced by Wang et al., 2020, "Score-CAM".

    Example:
        Positive attribution is 3 + 1 = 4, of which 3 lies in the left column.

        >>> attribution = torch.tensor([[[3.0, 1.0], [-2.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> energy_pointing_game(attribution, mask)
        tensor([0.7500])
    """
    check_undefined(undefined)
    check_energy(min_energy)
    attribution, mask = check_maps(attribution, mask=mask)
    return mark_undefined(*_energy_scores(attribution, mask, min_energy), undefined)


@map_metric(
    "epg",
    title="EPG",
    default=True,
    counts_undefined=True,
    each=energy_pointing_game,
)
class EnergyPointingGame(ImageMean):
    r"""Share of the positive attribution that falls inside the mask, averaged over images (EPG).

    .. math:: \frac{1}{N} \sum_i \frac{\sum_p M_{ip} A^+_{ip}}{\sum_p A^+_{ip}}

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1]. For several classes an image, one row for each
      (image, class) pair.
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of maps that are
      ``"without_positive_part"``, or, map or mask, ``"not_finite"``, which are never averaged in.

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
    kind = "without_positive_part"

    @constructor
    def __init__(
        self, *, undefined: Undefined = "exclude", min_energy: float = 0.0, **kwargs: Any
    ) -> None:
        check_energy(min_energy)
        super().__init__(undefined, options=f"min_energy={min_energy}", **kwargs)
        self.min_energy = min_energy

    @method
    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps(attribution, mask=mask)
        self._add(*_energy_scores(attribution, mask, self.min_energy))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


@named("on_object_energy")
def on_object_energy(
    attribution: Tensor,
    mask: Tensor,
    box_mask: Tensor,
    *,
    undefined: Undefined = "exclude",
    min_energy: float = 0.0,
) -> Tensor:
    r"""Share of the positive attribution inside the box that falls on the object itself.

    .. math:: \frac{\sum_p M_p B_p A^+_p}{\sum_p B_p A^+_p}

    Attribution outside the box plays no part, also where the segmentation sticks out of it.
    Undefined for a map without a positive part inside the box.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: Segmentation M of the object, same shape, bool or in [0, 1].
        box_mask: The object's boxes B as a mask, same shape, bool or in [0, 1].
        undefined: What an undefined image scores: ``"exclude"`` NaN, ``"zero"`` 0.
        min_energy: Undefined too where the positive attribution in the box sums to less.

    Returns:
        Score of each image, ``(N,)``, in [0, 1]; higher is better. Differentiable. NaN where a map or
        mask is not finite, under either rule.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Rao et al., 2023, Section B.4 ("On-object EPG").

    Example:
        The box is the upper row and holds 3 + 1; the object is its left pixel.

        >>> attribution = torch.tensor([[[3.0, 1.0], [5.0, 0.0]]])
        >>> segmentation = torch.tensor([[[True, False], [False, False]]])
        >>> box = torch.tensor([[[True, True], [False, False]]])
        >>> on_object_energy(attribution, segmentation, box)
        tensor([0.7500])
    """
    check_undefined(undefined)
    check_energy(min_energy)
    attribution, mask, box_mask = check_maps(attribution, mask=mask, box_mask=box_mask)
    scores = _energy_scores(attribution, mask, min_energy, box_mask)
    return mark_undefined(*scores, undefined)


@map_metric(
    "on_object_epg",
    title="On-object EPG",
    needs=("segmentation", "boxes"),
    default=True,
    each=on_object_energy,
)
class OnObjectEnergy(ImageMean):
    r"""Share of the positive attribution inside the box that falls on the object, over images.

    .. math:: \frac{1}{N} \sum_i \frac{\sum_p M_{ip} B_{ip} A^+_{ip}}{\sum_p B_{ip} A^+_{ip}}

    - ``update(attribution, mask, box_mask)``: signed maps of any scale, ``(N, H, W)`` or
      ``(N, 1, H, W)``; the segmentation M and the boxes B as masks of the same shape, bool or in
      [0, 1]. Here ``mask`` is the segmentation, so a `torchmetrics.MetricCollection` that hands one
      ``mask`` to all is right only if the others are to see the segmentation too.
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no image was defined.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of maps that are
      ``"without_positive_part_in_box"``, or, map or a mask, ``"not_finite"`` (if only outside the
      box), which are never averaged in.

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
    kind = "without_positive_part_in_box"

    @constructor
    def __init__(
        self, *, undefined: Undefined = "exclude", min_energy: float = 0.0, **kwargs: Any
    ) -> None:
        check_energy(min_energy)
        super().__init__(undefined, options=f"min_energy={min_energy}", **kwargs)
        self.min_energy = min_energy

    @method
    def update(self, attribution: Tensor, mask: Tensor, box_mask: Tensor) -> None:
        """Add the maps, segmentations and box masks of a batch."""
        attribution, mask, box_mask = check_maps(attribution, mask=mask, box_mask=box_mask)
        self._add(*_energy_scores(attribution, mask, self.min_energy, box_mask))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


def _energy_scores(
    attribution: Tensor, mask: Tensor, min_energy: float, box_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Share of the positive part inside the mask; undefined where there is nothing to share."""
    energy, given = attribution.clamp(min=0), [attribution, mask]
    if box_mask is not None:
        energy, given = energy * box_mask, [*given, box_mask]
    total = energy.sum(PIXELS)
    defined = (total > 0) & (total >= min_energy)
    share = (energy * mask).sum(PIXELS) / torch.where(defined, total, 1.0)
    # A sum beyond the range of its dtype is worth no more than an infinite pixel.
    return mark_broken(share, *given, total[:, None, None]), defined
