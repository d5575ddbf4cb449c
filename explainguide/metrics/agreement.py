"""How well maps segment the object, over a data set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from explainguide.metrics.checks import Undefined, check_maps
from explainguide.metrics.image_mean import ImageMean
from explainguide.metrics.scores import agreement_scores, mean_iou

__all__ = ["SegmentationAgreement"]


class SegmentationAgreement(ImageMean):
    r"""Pixel accuracy, mIoU and mAP of maps that are cut at their own mean.

    `explainguide.metrics.functional.segmentation_agreement` has the details, and the scores of
    each image.

    - ``update(attribution, mask)``: signed maps of any scale and offset, ``(N, H, W)`` or
      ``(N, 1, H, W)``, and masks of the same shape, bool or in [0, 1]; above 0.5 is foreground.
    - ``compute()``: a dict of scalars in [0, 1], higher is better; NaN where no image was defined.
      ``"pixel_accuracy"``: the share of the pixels that are put where they belong. ``"miou"``: the
      mean of two numbers, the IoU of the foreground and that of the background, each the
      intersection over *all* images divided by the union over all images. ``"map"``: the mean of
      the images' average precision.
    - ``undefined``: after ``compute()``, the number of constant maps.

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

    def __init__(self, *, undefined: Undefined = "exclude", **kwargs: Any) -> None:
        super().__init__(undefined, options="", width=3, **kwargs)

    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps("SegmentationAgreement.update", attribution, mask=mask)
        self._add(*agreement_scores(attribution, mask))

    def compute(self) -> dict[str, Tensor]:
        """The three scores over all images so far, in all processes."""
        front, back, precision = self._mean().unbind()
        return {"pixel_accuracy": front + back, "miou": mean_iou(front, back), "map": precision}
