"""The loss of GradMask: the norm of the map outside the mask."""

from __future__ import annotations

from torch import Tensor

from explainguide.losses.normalization import check_maps, over_pixels, root
from explainguide.losses.sums import Sums
from explainguide.losses.table import localization_loss

__all__ = ["gradmask_loss"]


def _coarse_gradmask(attribution: Tensor, sums: Sums) -> Tensor:
    return root(sums.squares_outside(attribution))


@localization_loss(coarse=_coarse_gradmask)
def gradmask_loss(attribution: Tensor, mask: Tensor) -> Tensor:
    r"""Norm of the attribution outside the mask, made for the attribution ``"gradient"``.

    .. math:: \sqrt{\sum (1 - M) A^2}

    Args:
        attribution: Maps, ``(N, H, W)``, any scale; not normalised.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].

    Returns:
        Loss per image, ``(N,)``, non-negative; lower is better. 0, without gradient, where nothing
        lies outside.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.

    References:
        Simpson et al., 2019; Chefer et al., 2022, Eq. 9.

    Example:
        >>> import torch
        >>> attribution = torch.tensor([[[5.0, 3.0], [4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> gradmask_loss(attribution, mask)
        tensor([5.])
    """
    mask = check_maps(attribution, mask)
    return root(over_pixels((1 - mask) * attribution**2))
