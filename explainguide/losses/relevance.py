"""The relevance loss of RobustViT: a min-max normalised map against the mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from explainguide.errors import OptionError
from explainguide.losses.normalization import check_maps
from explainguide.losses.table import localization_loss

__all__ = ["relevance_loss", "scale_to_unit"]

_ROUNDING = 4  # units of the last place that a constant map may vary by


@localization_loss()
def relevance_loss(
    attribution: Tensor, mask: Tensor, *, background: float = 2.0, foreground: float = 0.3
) -> Tensor:
    r"""Squared distance of the min-max normalised map from the mask, outside and inside apart.

    .. math:: \lambda_{bg} \operatorname{mean}\big((r (1 - M))^2\big)
              + \lambda_{fg} \operatorname{mean}\big((r M - M)^2\big),
              \qquad r = \frac{A - \min A}{\max A - \min A}

    Both means run over all pixels. Maps of a layer's resolution are upsampled before they come
    here, as in the authors' program; their largest and smallest values are those of the upsampled
    map.

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale and offset.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        background: :math:`\lambda_{bg}`, non-negative: the weight of what lies outside.
        foreground: :math:`\lambda_{fg}`, non-negative: the weight of what is missing inside. It is
            small, because it asks for the whole region, where parts of it may be enough.

    Returns:
        Loss per image, ``(N,)``, in [0, max(`background`, `foreground`)]; lower is better. A map that
        is constant, up to rounding, counts as r = 0: `foreground` times the mean of
        :math:`M^2`, without gradient (the authors' program gives NaN).

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.
        OptionError: If a weight is negative or not finite.

    References:
        Chefer et al., 2022 (RobustViT), Eq. 1 to 3.

    Example:
        >>> attribution = torch.tensor([[[5.0, 3.0], [1.0, 1.0]]])  # r is 1, 0.5, 0, 0
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> relevance_loss(attribution, mask)  # (2 * 0.5 ** 2 + 0.3 * 1) / 4
        tensor([0.2000])
    """
    for name, weight in (("background", background), ("foreground", foreground)):
        if not (weight >= 0 and math.isfinite(weight)):
            raise OptionError(
                f"{name} is {weight}. Use background=2.0 and foreground=0.3, as "
                "published. Numbers from 0 on are allowed."
            )
    mask = check_maps(attribution, mask)
    unit = scale_to_unit(attribution)
    outside = (unit * (1 - mask)).square().mean((-2, -1))
    missing = (unit * mask - mask).square().mean((-2, -1))
    return background * outside + foreground * missing


def scale_to_unit(attribution: Tensor) -> Tensor:
    """Each map from its own smallest value, 0, to its largest, 1; constant maps are 0.

    Smallest and largest value are differentiated too.
    """
    low = attribution.amin((-2, -1), keepdim=True)
    spread = attribution.amax((-2, -1), keepdim=True) - low
    # Rounding in a constant map is no map: its normalisation would be noise, with a gradient of
    # 1 / spread. NaN and infinity are no spread that is too small, so they stay visible.
    number = torch.finfo(attribution.dtype)
    largest = attribution.detach().abs().amax((-2, -1), keepdim=True)
    floor = (_ROUNDING * number.eps * largest).clamp(min=number.tiny)
    constant = (spread <= floor) & spread.isfinite()
    return torch.where(constant, 0, (attribution - low) / torch.where(constant, 1, spread))
