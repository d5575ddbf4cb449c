"""The loss of ReFF: a norm of the map outside the mask."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from explainguide.errors import check_option
from explainguide.losses.normalization import check_maps, over_pixels, root
from explainguide.losses.sums import Sums
from explainguide.losses.table import localization_loss

__all__ = ["reff_loss"]


Variant = Literal["outside", "l1", "l2"]


def _coarse_reff(attribution: Tensor, sums: Sums, *, variant: Variant = "outside") -> Tensor | None:
    """Only the norm outside: a map of any scale may be on both sides of the mask's 1."""
    check_option("variant", variant, ("outside", "l1", "l2"))
    return root(sums.squares_outside(attribution)) if variant == "outside" else None


@localization_loss(coarse=_coarse_reff)
def reff_loss(attribution: Tensor, mask: Tensor, *, variant: Variant = "outside") -> Tensor:
    r"""Norm of the attribution outside the mask, made for Grad-CAM at several layers.

    .. math:: \| (1 - M) A \|_2

    Args:
        attribution: Maps, ``(N, H, W)``, any scale; not normalised.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        variant: The supplement's comparisons, which also ask for attribution inside: ``"l1"`` is
            :math:`\|A - M\|_1` and ``"l2"`` is :math:`\|A - M\|_2^2`.

    Returns:
        Loss per image, ``(N,)``, non-negative; lower is better. With ``"outside"`` 0, without
        gradient, where nothing lies outside.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.
        OptionError: For an unknown variant.

    References:
        Adachi and Yamaguchi, 2022, Sec. 4.2 (weights 15, 60, 250, 1000 for layer1 to layer4) and
        supplement B.

    Example:
        >>> import torch
        >>> attribution = torch.tensor([[[5.0, 3.0], [4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> reff_loss(attribution, mask)
        tensor([5.])
    """
    check_option("variant", variant, ("outside", "l1", "l2"))
    mask = check_maps(attribution, mask)
    if variant == "l1":
        return over_pixels((attribution - mask).abs())
    if variant == "l2":
        return over_pixels((attribution - mask) ** 2)
    return root(over_pixels(((1 - mask) * attribution) ** 2))
