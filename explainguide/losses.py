r"""Localization losses: how far an attribution map is from where it should be.

Every loss is a function ``(attribution (N, H, W), mask (N, H, W), *, ...) -> (N,)`` of signed,
unnormalised maps at the mask's resolution. Below, :math:`A` is the map of one image,
:math:`A^+ = \max(A, 0)`, :math:`M` the mask, and sums and means run over pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from explainguide.checks import check_mask_dtype
from explainguide.errors import OptionError, ShapeError, did_you_mean

__all__ = [
    "LOSSES",
    "Loss",
    "energy_loss",
    "gradmask_loss",
    "keep_positive",
    "l1_loss",
    "positive_part",
    "ppce_loss",
    "reff_loss",
    "rrr_loss",
    "scale_by_max",
]

Loss = Callable[[Tensor, Tensor], Tensor]
Normalize = bool | Literal["paper"]


def energy_loss(
    attribution: Tensor,
    mask: Tensor,
    *,
    eps: float = 1e-7,
    floor: Literal["relative", "absolute"] = "relative",
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

    References:
        Rao et al., 2023, Eq. 6 (there without the leading 1).

    Example:
        >>> attribution = torch.tensor([[[3.0, 1.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> energy_loss(attribution, mask)  # 1 of 4 lies outside
        tensor([0.2500])
    """
    mask = _check(attribution, mask, "energy_loss")
    positive = keep_positive(attribution)
    inside, total = _sum(mask * positive), _sum(positive)
    if floor == "absolute":
        dead = total < eps
        return 1 - inside / torch.where(dead, 1, total)
    denominator = torch.maximum(total, eps * _sum(attribution.abs()))
    # Written so that NaN stays NaN: only a denominator that is too small is replaced.
    dead = denominator < torch.finfo(denominator.dtype).tiny
    return 1 - inside / torch.where(dead, 1, denominator)


def l1_loss(attribution: Tensor, mask: Tensor, *, normalize: Normalize = True) -> Tensor:
    r"""Mean distance of the normalised positive attribution from the mask.

    .. math:: \operatorname{mean} |M - \hat A^+|, \qquad \hat A^+ = A^+ / \max A^+

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        normalize: True divides the positive part by its own maximum, as the authors' program does;
            ``"paper"`` divides by the maximum of :math:`|A|` before the positive part is taken;
            False takes maps that are normalised already.

    Returns:
        Loss per image, ``(N,)``, in [0, 1]; lower is better. The mean of the mask for a map with no
        positive part.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.

    References:
        Gao et al., 2022 (GRADIA); Rao et al., 2023, Eq. 3.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> l1_loss(attribution, mask)  # one of four pixels is off by a half
        tensor([0.1250])
    """
    mask = _check(attribution, mask, "l1_loss")
    return (mask - positive_part(attribution, normalize)).abs().mean((-2, -1))


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

    References:
        Shen et al., 2021 (HAICS); Rao et al., 2023, Eq. 4.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> ppce_loss(attribution, mask)  # (log 1 + log 2) / 2
        tensor([0.3466])
    """
    mask = _check(attribution, mask, "ppce_loss")
    positive = positive_part(attribution, normalize)
    # No gradient at the two ends, where the logarithm's is unbounded (0) or the pixel is right (1).
    # Both comparisons are false for NaN, which therefore stays visible.
    low, high = positive <= 0, positive >= 1
    log = torch.log(torch.where(low | high, 1, positive))
    cost = -torch.where(low, -100, log).clamp(min=-100)
    area = _sum(mask)
    return _sum(mask * cost) / torch.where(area > 0, area, 1)


def rrr_loss(attribution: Tensor, mask: Tensor, *, normalize: bool = True) -> Tensor:
    r"""Energy of the normalised, signed attribution outside the mask.

    .. math:: \sum (1 - M) \hat A^2, \qquad \hat A = A / \max |A|

    Args:
        attribution: Signed maps, ``(N, H, W)``, any scale.
        mask: Region to look at, ``(N, H, W)``, bool or in [0, 1].
        normalize: False with the attribution ``"gradient"`` and ``score="sum_log_probs"`` is the
            loss of Ross et al., whose penalty is not normalised.

    Returns:
        Loss per image, ``(N,)``, in [0, H * W] when normalised; lower is better. It is a sum over
        pixels, not a mean. 0, without gradient, for an all-zero map.

    Raises:
        ShapeError: If the two shapes differ, or the mask has an integer dtype.

    References:
        Rao et al., 2023, Eq. 5 (RRR*); Ross et al., 2017, Eq. 1.

    Example:
        >>> attribution = torch.tensor([[[4.0, 2.0], [-4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> rrr_loss(attribution, mask)  # 0.5 ** 2 + (-1) ** 2
        tensor([1.2500])
    """
    mask = _check(attribution, mask, "rrr_loss")
    return _sum((1 - mask) * (scale_by_max(attribution) if normalize else attribution) ** 2)


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
        >>> attribution = torch.tensor([[[5.0, 3.0], [4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> gradmask_loss(attribution, mask)
        tensor([5.])
    """
    mask = _check(attribution, mask, "gradmask_loss")
    return _root(_sum((1 - mask) * attribution**2))


def reff_loss(
    attribution: Tensor, mask: Tensor, *, variant: Literal["outside", "l1", "l2"] = "outside"
) -> Tensor:
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

    References:
        Adachi and Yamaguchi, 2022, Sec. 4.2 (weights 15, 60, 250, 1000 for layer1 to layer4) and
        supplement B.

    Example:
        >>> attribution = torch.tensor([[[5.0, 3.0], [4.0, 0.0]]])
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> reff_loss(attribution, mask)
        tensor([5.])
    """
    mask = _check(attribution, mask, "reff_loss")
    if variant == "outside":
        return _root(_sum(((1 - mask) * attribution) ** 2))
    if variant == "l1":
        return _sum((attribution - mask).abs())
    if variant == "l2":
        return _sum((attribution - mask) ** 2)
    raise OptionError(
        f"reff_loss: unknown variant {variant!r}.{did_you_mean(variant, ['outside', 'l1', 'l2'])} "
        "'outside', 'l1' and 'l2' are allowed."
    )


def keep_positive(attribution: Tensor) -> Tensor:
    """The positive part; its gradient is 0 where the map is 0, on every version of torch."""
    return torch.relu(attribution)


def scale_by_max(attribution: Tensor) -> Tensor:
    """Each map over its own largest magnitude, which is differentiated too; zero maps stay."""
    largest = attribution.abs().amax((-2, -1), keepdim=True)
    return attribution / torch.where(largest == 0, 1, largest)


def positive_part(attribution: Tensor, normalize: Normalize) -> Tensor:
    """The normalised positive part that `l1_loss` and `ppce_loss` compare with the mask."""
    if normalize == "paper":
        return keep_positive(scale_by_max(attribution))
    positive = keep_positive(attribution)
    return scale_by_max(positive) if normalize else positive


def _sum(maps: Tensor) -> Tensor:
    return maps.sum((-2, -1))


def _root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    zero = squared == 0
    return torch.where(zero, 0, torch.sqrt(torch.where(zero, 1, squared)))


def _check(attribution: Tensor, mask: Tensor, caller: str) -> Tensor:
    """The mask in the attribution's dtype."""
    if attribution.ndim != 3 or attribution.shape != mask.shape:
        raise ShapeError(
            f"{caller}: attribution has shape {tuple(attribution.shape)} but mask has shape "
            f"{tuple(mask.shape)}; both must be (N, H, W)."
        )
    check_mask_dtype(mask, caller)
    return mask.to(attribution.dtype)


LOSSES: dict[str, Callable[..., Tensor]] = {
    function.__name__.removesuffix("_loss"): function
    for function in (energy_loss, l1_loss, ppce_loss, rrr_loss, gradmask_loss, reff_loss)
}
