"""Losses of a map that is divided by its own maximum: L1, per-pixel cross-entropy, RRR*."""

from __future__ import annotations

import torch
from torch import Tensor

from explainguide.errors import check_option
from explainguide.losses.normalization import (
    Normalize,
    check_maps,
    over_pixels,
    positive_part,
    scale_by_max,
)
from explainguide.losses.sums import Sums
from explainguide.losses.table import localization_loss

__all__ = ["l1_loss", "ppce_loss", "rrr_loss"]

_NORMALIZE = (True, False, "paper")


def _coarse_l1(attribution: Tensor, sums: Sums, *, normalize: Normalize = True) -> Tensor | None:
    """Of a map in [0, 1], which a mask of zeros and ones is never within: no absolute value is left."""
    check_option("normalize", normalize, _NORMALIZE)
    if not normalize:  # the largest value may be above 1
        return None
    inside, outside = sums.weights(attribution)
    return over_pixels(inside * (1 - attribution) + outside * attribution) / sums.pixels


@localization_loss(positive_part, prepared={"normalize": False}, coarse=_coarse_l1)
def l1_loss(attribution: Tensor, mask: Tensor, *, normalize: Normalize = True) -> Tensor:
    r"""Mean distance of the normalised positive attribution from the mask.

    .. math:: \operatorname{mean} |M - \hat A^+|, \qquad \hat A^+ = A^+ / \max A^+

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        normalize: True divides the positive part by its own maximum, as the authors' program does;
            ``"paper"`` is the positive part of :math:`A / \max A`, as the text has it, which is the
            same for every map that has a positive part; one without has none under either. False
            takes maps that are normalised already.

    Returns:
        Loss per image, ``(N,)``, in [0, 1]; lower is better. The mean of the mask for a map with no
        positive part.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.
        OptionError: For an unknown value of `normalize`.

    References:
        Gao et al., 2022 (GRADIA); Rao et al., 2023, Eq. 3.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> l1_loss(attribution, mask)  # one of four pixels is off by a half
        tensor([0.1250])
    """
    check_option("normalize", normalize, _NORMALIZE)
    mask = check_maps(attribution, mask)
    return (mask - positive_part(attribution, normalize)).abs().mean((-2, -1))


@localization_loss(positive_part, prepared={"normalize": False})
def ppce_loss(attribution: Tensor, mask: Tensor, *, normalize: Normalize = True) -> Tensor:
    r"""Per-pixel cross-entropy of the normalised positive attribution inside the mask.

    .. math:: -\frac{1}{\sum M} \sum M \log \hat A^+

    with the logarithm no lower than -100.

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        normalize: As in `l1_loss`.

    Returns:
        Loss per image, ``(N,)``, in [0, 100]; lower is better. 0, without gradient, for an empty
        mask (the authors' program gives NaN); 100 for a map with no positive part.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.
        OptionError: For an unknown value of `normalize`.

    References:
        Shen et al., 2021 (HAICS); Rao et al., 2023, Eq. 4.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> ppce_loss(attribution, mask)  # (log 1 + log 2) / 2
        tensor([0.3466])
    """
    check_option("normalize", normalize, _NORMALIZE)
    mask = check_maps(attribution, mask)
    positive = positive_part(attribution, normalize)
    # No gradient at the two ends, where the logarithm's is unbounded (0) or the pixel is right (1).
    # Both comparisons are false for NaN, which therefore stays visible.
    low, high = positive <= 0, positive >= 1
    log = torch.log(torch.where(low | high, 1, positive))
    cost = -torch.where(low, -100, log).clamp(min=-100)
    area = over_pixels(mask)
    return over_pixels(mask * cost) / torch.where(area > 0, area, 1)


def _scaled(attribution: Tensor, normalize: Normalize = True) -> Tensor:
    if normalize == "paper":
        largest = attribution.amax((-2, -1), keepdim=True)
        dead = largest <= 0
        return torch.where(dead, 0, attribution / torch.where(dead, 1, largest))
    return scale_by_max(attribution) if normalize else attribution


def _coarse_rrr(attribution: Tensor, sums: Sums, *, normalize: Normalize = True) -> Tensor:
    """A quadratic form, whatever the map has been divided by."""
    check_option("normalize", normalize, _NORMALIZE)
    return sums.squares_outside(attribution)


@localization_loss(_scaled, prepared={"normalize": False}, coarse=_coarse_rrr)
def rrr_loss(attribution: Tensor, mask: Tensor, *, normalize: Normalize = True) -> Tensor:
    r"""Energy of the normalised, signed attribution outside the mask.

    .. math:: \sum (1 - M) \hat A^2, \qquad \hat A = A / \max |A|

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        normalize: True divides by the largest magnitude, as the authors' program does; ``"paper"`` by
            the largest value, as the text has it (a map without a positive value counts as 0), so
            that a magnitude may be above 1. False with the attribution ``"gradient"`` and
            ``score="sum_log_probs"`` is the loss of Ross et al., whose penalty is not normalised.

    Returns:
        Loss per image, ``(N,)``, in [0, H * W] where the largest magnitude is 1; lower is better. It
        is a sum over pixels, not a mean. 0, without gradient, for an all-zero map.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.
        OptionError: For an unknown value of `normalize`.

    References:
        Rao et al., 2023, Eq. 5 (RRR*); Ross et al., 2017, Eq. 1.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> rrr_loss(attribution, mask)  # 0.5 ** 2 + (-1) ** 2
        tensor([1.2500])
    """
    check_option("normalize", normalize, _NORMALIZE)
    mask = check_maps(attribution, mask)
    return over_pixels((1 - mask) * _scaled(attribution, normalize) ** 2)
