"""The coloured explanations of the B-cos papers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, operation
from explainguide.hooks.dynamic import wide

__all__ = ["to_rgba"]

_EPS = 1e-12  # as in the published programs, where it stands for 0


@torch.no_grad()
@operation("to_rgba")
def to_rgba(
    weights: Tensor,
    contributions: Tensor,
    *,
    smooth: int = 15,
    percentile: float = 99.5,
) -> Tensor:
    r"""Dynamic weights as pictures: the colour that a place looks for, as opaque as it is important.

    .. math:: r = \max\left(\frac{w}{\max_c |w_c|}, 0\right), \qquad
        rgb = \frac{r_{1:3}}{r_{1:3} + r_{4:6}}, \qquad
        \alpha = \min\left(\frac{\lVert w \rVert_2}{q}, 1\right)

    with q a percentile of :math:`\lVert w \rVert_2` over the places of the picture. A weight of the
    image against one of its inverse is a colour. Where the contribution is negative, the length
    counts as 0 before it is smoothed. Lay the picture on white.

    Args:
        weights: W(x) for one output, signed, ``(N, 6, H, W)``; see `dynamic_weights`.
        contributions: The contribution map, ``(N, H, W)``: the sum over c of ``weights * images``.
        smooth: Side of the window whose mean is taken of the opacity, odd, zeros outside of the
            picture; 0 or 1 leaves it.
        percentile: q, in (0, 100]; by linear interpolation, of each picture for itself.

    Returns:
        Red, green, blue and opacity in [0, 1], ``(N, 4, H, W)``; without a graph.

    Raises:
        ShapeError: If a shape is not as above.
        OptionError: If a value is not as above.

    References:
        Boehle et al., 2022 and 2024, whose programs have 15 and 99.5.

    Example:
        >>> red = torch.tensor([1.0, 0, 0, 0, 1, 1])[None, :, None, None].expand(1, 6, 2, 2)
        >>> to_rgba(red, torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]), smooth=0)[0, :, 1].round()
        tensor([[1., 1.],
                [0., 0.],
                [0., 0.],
                [1., 0.]])
    """
    _check(weights, contributions, smooth, percentile)
    weights = wide(weights)
    largest = weights.abs().amax(1, keepdim=True)
    positive = (weights / (largest + _EPS)).clamp_min(0)
    colours = positive[:, :3] / (positive[:, :3] + positive[:, 3:] + _EPS)
    length = weights.norm(dim=1, keepdim=True)
    length = torch.where(contributions[:, None] < 0, _EPS, length)
    if smooth > 1:
        length = F.avg_pool2d(length, smooth, stride=1, padding=smooth // 2)
    full = _percentile(length.flatten(1), percentile)[:, None, None, None]
    # Where hardly any place speaks for the output, the percentile is that of nothing.
    few = (length > 2 * _EPS).to(length)
    opacity = torch.where(full > 2 * _EPS, length / full, few).clamp_max(1)
    return torch.cat([colours, opacity], 1)


def _percentile(rows: Tensor, percentile: float) -> Tensor:
    """Of every row; `torch.quantile` takes no more than 16 million numbers."""
    count = rows.shape[1]
    place = percentile / 100 * (count - 1)
    below = int(place)
    top = rows.topk(min(count - below, count), 1).values  # the rank below is the last of these
    low, high = top[:, -1], top[:, max(count - below - 2, 0)]
    return low + (high - low) * (place - below)


def _check(weights: Tensor, contributions: Tensor, smooth: int, percentile: float) -> None:
    if weights.ndim != 4 or weights.shape[1] != 6:
        fix = "Give those of dynamic_weights"
        if weights.ndim == 3 and weights.shape[0] == 6:
            fix = "Put a dimension for the images in front, weights[None]"
        raise ShapeError(
            f"weights has shape {tuple(weights.shape)}. {fix}. (N, 6, H, W) is allowed."
        )
    places = (len(weights), *weights.shape[2:])
    if contributions.shape != places:
        fix = "Sum weights * images over the channels"
        raise ShapeError(
            f"contributions has shape {tuple(contributions.shape)}, but weights has "
            f"{tuple(weights.shape)}. {fix}. {places} is allowed."
        )
    if isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 0:
        raise OptionError(
            f"smooth is {smooth!r}. Use 15, or 0 for none. Odd numbers and 0 are allowed."
        )
    if smooth and smooth % 2 == 0:
        raise OptionError(
            f"smooth is {smooth}, and a window of an even side would shift the picture. "
            f"Use {smooth + 1}. Odd numbers and 0 are allowed."
        )
    if not 0 < percentile <= 100:
        raise OptionError(
            f"percentile is {percentile}. Use 99.5. Numbers above 0, up to 100, are allowed."
        )
