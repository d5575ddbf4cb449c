"""The energy loss: where the positive attribution is, as a share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from explainguide.errors import check_option
from explainguide.losses.normalization import check_maps, keep_positive, over_pixels
from explainguide.losses.sums import Sums
from explainguide.losses.table import localization_loss

__all__ = ["energy_loss"]


Floor = Literal["relative", "absolute"]


def _coarse_energy(
    attribution: Tensor, sums: Sums, *, eps: float = 1e-7, floor: Floor = "relative"
) -> Tensor | None:
    """Of a map that is its own positive part. To clamp a signed one is not to clamp its pixels."""
    check_option("floor", floor, ("relative", "absolute"))
    if not sums.non_negative:
        return None
    inside, outside = (over_pixels(weight * attribution) for weight in sums.weights(attribution))
    total = inside + outside
    return _share_outside(inside, total, total, eps, floor)


@localization_loss(coarse=_coarse_energy)
def energy_loss(
    attribution: Tensor,
    mask: Tensor,
    *,
    eps: float = 1e-7,
    floor: Floor = "relative",
) -> Tensor:
    r"""Share of the positive attribution that falls outside the mask.

    .. math:: 1 - \frac{\sum M A^+}{\max(\sum A^+, \epsilon \sum |A|)}

    The floor of the denominator is relative to the map, so the loss does not depend on the map's
    scale and its gradient is bounded where the positive part vanishes.

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        eps: The floor.
        floor: ``"absolute"`` is the authors' program: :math:`1 - \sum M A^+` where
            :math:`\sum A^+ < \epsilon`.

    Returns:
        Loss per image, ``(N,)``, in [0, 1]; lower is better. 1, without gradient, for a map with
        no positive part.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.
        OptionError: For an unknown floor.

    References:
        Rao et al., 2023, Eq. 6 (there without the leading 1).

    Example:
        >>> attribution = torch.tensor([[[3.0, 1.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> energy_loss(attribution, mask)  # 1 of 4 lies outside
        tensor([0.2500])
    """
    check_option("floor", floor, ("relative", "absolute"))
    mask = check_maps(attribution, mask)
    positive = keep_positive(attribution)
    inside, total = over_pixels(mask * positive), over_pixels(positive)
    return _share_outside(inside, total, over_pixels(attribution.abs()), eps, floor)


def _share_outside(
    inside: Tensor, total: Tensor, magnitude: Tensor, eps: float, floor: Floor
) -> Tensor:
    if floor == "absolute":
        dead = total < eps
        return 1 - inside / torch.where(dead, 1, total)
    denominator = torch.maximum(total, eps * magnitude)
    # Written so that NaN stays NaN: only a denominator that is too small is replaced.
    dead = denominator < torch.finfo(denominator.dtype).tiny
    return 1 - inside / torch.where(dead, 1, denominator)
