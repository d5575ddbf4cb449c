"""Localization metrics as plain functions: maps and masks in, one score an image out.

All share one convention. Attributions are signed and of any scale; only the positive part counts,
except in `segmentation_agreement`, which measures a map against its own mean.
An image on which the metric means nothing (each function says which) scores NaN with
``undefined="exclude"``, so that ``scores.nanmean()`` leaves it out, and 0 with
``undefined="zero"``, which is how the published tables average. A map that itself holds NaN scores
NaN under both. Nothing here synchronises with the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from explainguide.metrics.checks import (
    Undefined,
    check_energy,
    check_maps,
    check_threshold,
    check_tolerance,
    check_undefined,
)
from explainguide.metrics.scores import (
    agreement_scores,
    energy_scores,
    iou_scores,
    mean_iou,
    pointing_scores,
)

__all__ = [
    "Agreement",
    "energy_pointing_game",
    "localization_iou",
    "on_object_energy",
    "pointing_game",
    "segmentation_agreement",
]


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
        Score of each image, ``(N,)``, in [0, 1]; higher is better. Differentiable.

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
    check_undefined("energy_pointing_game", undefined)
    check_energy("energy_pointing_game", min_energy)
    attribution, mask = check_maps("energy_pointing_game", attribution, mask=mask)
    return _mark(*energy_scores(attribution.clamp(min=0), mask, min_energy), undefined)


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
        Score of each image, ``(N,)``, in [0, 1]; higher is better. No gradient.

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
    check_undefined("localization_iou", undefined)
    check_threshold("localization_iou", [threshold])
    attribution, mask = check_maps("localization_iou", attribution, mask=mask)
    scores, defined = iou_scores(attribution, mask, [threshold])
    return _mark(scores[:, 0], defined, undefined)


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
        Score of each image, ``(N,)``, in [0, 1]; higher is better. Differentiable.

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
    check_undefined("on_object_energy", undefined)
    check_energy("on_object_energy", min_energy)
    attribution, mask, box_mask = check_maps(
        "on_object_energy", attribution, mask=mask, box_mask=box_mask
    )
    inside = attribution.clamp(min=0) * box_mask
    return _mark(*energy_scores(inside, mask, min_energy), undefined)


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
        Score of each image, ``(N,)``, in [0, 1]; higher is better. No gradient.

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
    check_undefined("pointing_game", undefined)
    check_tolerance("pointing_game", tolerance)
    attribution, mask = check_maps("pointing_game", attribution, mask=mask)
    return _mark(*pointing_scores(attribution, mask, tolerance), undefined)


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
        Scores of each image, each ``(N,)`` in [0, 1]; higher is better. No gradient.

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
    check_undefined("segmentation_agreement", undefined)
    attribution, mask = check_maps("segmentation_agreement", attribution, mask=mask)
    scores, defined = agreement_scores(attribution, mask)
    front, back, precision = scores.unbind(1)
    found = (front + back, mean_iou(front, back), precision)
    return Agreement(*(_mark(score, defined, undefined) for score in found))


def _mark(scores: Tensor, defined: Tensor, undefined: Undefined) -> Tensor:
    return torch.where(defined, scores, torch.nan if undefined == "exclude" else 0.0)
