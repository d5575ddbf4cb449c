"""How well a map, cut at its own mean, segments the object."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainguide.errors import method, named
from explainguide.metrics.checks import Undefined, check_maps, check_undefined
from explainguide.metrics.image_mean import PIXELS, ImageMean, mark_broken, mark_undefined
from explainguide.metrics.table import map_metric

__all__ = ["Agreement", "SegmentationAgreement", "segmentation_agreement"]


class Agreement(NamedTuple):
    """What `segmentation_agreement` returns: three scores an image.

    Attributes:
        pixel_accuracy: Share of the pixels that are put where they belong, ``(N,)``.
        miou: Mean of the IoU of the foreground and the IoU of the background, ``(N,)``.
        average_precision: Of the map as a score of every pixel, ``(N,)``.
    """

    pixel_accuracy: Tensor
    miou: Tensor
    average_precision: Tensor


@named("segmentation_agreement")
def segmentation_agreement(
    attribution: Tensor, mask: Tensor, *, undefined: Undefined = "exclude"
) -> Agreement:
    r"""How well a map, cut at its own mean, segments the object.

    A pixel is foreground where the map is above its mean over the image, strictly, and background
    elsewhere. The signed map counts, not its positive part. The average precision needs no
    threshold: with the min-max normalised map r, every pixel is two decisions, foreground with the
    score r and background with the score 1 - r, and all of an image's decisions make one
    precision-recall curve.

    Undefined for a constant map. Any other has pixels above its mean and pixels that are not.

    Args:
        attribution: Signed maps of any scale and offset, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: The object, same shape, bool or in [0, 1]; above 0.5 is foreground.
        undefined: What an undefined image scores: ``"exclude"`` NaN, ``"zero"`` 0.

    Returns:
        Scores of each image, each ``(N,)`` in [0, 1]; higher is better. No gradient. NaN where a map or
        mask is not finite, under either rule.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Chefer et al., 2022 (RobustViT), Tab. 3, with the metrics of "Transformer Interpretability
        Beyond Attention Visualization" (Chefer et al., 2021), as its program computes them.

    Example:
        The mean is 2, so the upper row is foreground; of the two pixels of the object it has one.

        >>> attribution = torch.tensor([[[4.0, 3.0], [1.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> scores = segmentation_agreement(attribution, mask)
        >>> scores.pixel_accuracy, scores.miou  # 2 of 4 pixels; 1 of 3 and 1 of 3
        (tensor([0.5000]), tensor([0.3333]))
    """
    check_undefined(undefined)
    attribution, mask = check_maps(attribution, mask=mask)
    scores, defined = _agreement_scores(attribution, mask)
    front, back, precision = scores.unbind(1)
    measures = (front + back, _mean_iou(front, back), precision)
    return Agreement(*(mark_undefined(score, defined, undefined) for score in measures))


@map_metric(
    "segmentation",
    title="Segmentation agreement",
    needs=("segmentation",),
    counts_undefined=True,
)
class SegmentationAgreement(ImageMean):
    r"""Pixel accuracy, mIoU and mAP of maps that are cut at their own mean.

    `segmentation_agreement` has the details, and the scores of each image.

    - ``update(attribution, mask)``: signed maps of any scale and offset, ``(N, H, W)`` or
      ``(N, 1, H, W)``, and masks of the same shape, bool or in [0, 1]; above 0.5 is foreground.
    - ``compute()``: a dict of scalars in [0, 1], higher is better; NaN where no image was defined.
      ``"pixel_accuracy"``: the share of the pixels that are put where they belong. ``"miou"``: the
      mean of two numbers, the IoU of the foreground and that of the background, each the
      intersection over *all* images divided by the union over all images. ``"map"``: the mean of
      the images' average precision.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of maps that are
      ``"constant"``, or, map or mask, ``"not_finite"``, which are never averaged in.

    Pooled IoUs are those of the published program. Every image counts alike, whatever its size; in
    the program all have one size.

    Args:
        undefined: ``"exclude"`` leaves constant maps out; ``"zero"`` counts them as wrong at every
            pixel. (The program takes them for all background.)
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Chefer et al., 2022 (RobustViT), Tab. 3, with the metrics of "Transformer Interpretability
        Beyond Attention Visualization" (Chefer et al., 2021).

    Example:
        Above the mean lies the upper row of both maps. The object is the left column of the first
        and the upper row of the second: 2 and 4 pixels are right, 1 + 2 of them in the foreground,
        of 3 + 2 that are foreground in map or mask.

        >>> import torch
        >>> metric = SegmentationAgreement()
        >>> maps = torch.tensor([[4.0, 3.0], [1.0, 0.0]]).expand(2, 2, 2)
        >>> left = torch.tensor([[True, False], [True, False]])
        >>> metric.update(maps, torch.stack([left, left.T]))
        >>> scores = metric.compute()
        >>> scores["pixel_accuracy"], scores["miou"]
        (tensor(0.7500), tensor(0.6000))
    """

    kind = "constant"

    def __init__(self, *, undefined: Undefined = "exclude", **kwargs: Any) -> None:
        super().__init__(undefined, options="", width=3, **kwargs)

    @method
    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps(attribution, mask=mask)
        self._add(*_agreement_scores(attribution, mask))

    def compute(self) -> dict[str, Tensor]:
        """The three scores over all images so far, in all processes."""
        front, back, precision = self._mean().unbind()
        return {"pixel_accuracy": front + back, "miou": _mean_iou(front, back), "map": precision}


def _agreement_scores(attribution: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the pixels that are rightly foreground and rightly background, and the AP, ``(N, 3)``.

    Undefined for a constant map. Of any other, some pixels are above the mean and some are not.
    """
    lowest = attribution.amin(PIXELS, keepdim=True)
    spread = attribution.amax(PIXELS, keepdim=True) - lowest
    # Normalised first: in the mean of large values that differ little, rounding would decide.
    unit = (attribution - lowest) / torch.where(spread == 0, 1.0, spread)
    above, inside = unit > unit.mean(PIXELS, keepdim=True), mask > 0.5
    shares = [both.to(unit.dtype).mean(PIXELS) for both in (above & inside, ~(above | inside))]
    scores = torch.stack([*shares, _average_precision(unit, inside)], dim=1)
    # The spread of a finite map may be beyond the range of its dtype.
    return mark_broken(scores, attribution, mask, spread), spread[:, 0, 0] != 0


def _mean_iou(front: Tensor, back: Tensor) -> Tensor:
    """Mean IoU of foreground and background, from the shares of pixels that are rightly so."""
    wrong = 1 - (front + back)  # the union of either class is its right pixels and all wrong ones
    return (front / (front + wrong) + back / (back + wrong)) / 2


def _average_precision(unit: Tensor, inside: Tensor) -> Tensor:
    """AP of telling object from background, over two decisions a pixel: it is one, it is the other.

    Equal scores are one step of the curve, as in scikit-learn.
    """
    scores = torch.stack([unit, 1 - unit], dim=1).flatten(1)
    order = scores.argsort(descending=True)
    falling = -scores.gather(1, order)
    right = torch.stack([inside, ~inside], dim=1).flatten(1).gather(1, order)
    taken = torch.searchsorted(falling, falling, right=True)  # up to the last of equal scores
    hits = right.cumsum(1).gather(1, (taken - 1).clamp(0, max(taken.shape[1] - 1, 0)))
    precision = hits.to(unit.dtype) / taken.to(unit.dtype)
    # Each pixel is right in one of its two decisions, so half of the decisions are.
    return (precision * right).mean(1) * 2
