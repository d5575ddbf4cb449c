"""References that attributions are compared with: what a map scores that looks at no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.errors import Table, check_number, operation
from explainguide.host import send

__all__ = ["REFERENCES", "center_map", "edge_map", "random_map", "reference"]

Function = TypeVar("Function", bound=Callable[..., Tensor])

REFERENCES: Table[str, Callable[..., Tensor]] = Table("REFERENCES")
"""What can be judged by name, but not guided: ``(model, images, target, **options) -> maps``."""


def reference(name: str) -> Callable[[Function], Function]:
    """Enter a function in the table of references, so that its name stands for it.

    It takes ``(model, images, target)``, a classifier, ``(N, C, H, W)`` and classes ``(N,)``, and
    returns maps ``(N, H, W)``; what else it takes are options, keyword-only and with defaults.
    `explainguide.attr.as_explainer` finds it. No guide does: it has no gradient.

    Raises:
        OptionError: Where a function is decorated with a name that another one has.

    Example:
        >>> @reference("bright")
        ... def bright(model, images, target):
        ...     return images.mean(1)
        >>> REFERENCES.pop("bright").__name__
        'bright'
    """

    @operation("reference")
    def enter(function: Function) -> Function:
        REFERENCES[name] = function
        return function

    return enter


@reference("edge")
@operation("edge_map")
def edge_map(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    r"""Length of the grey image's gradient by Sobel's filter: non-negative, in the image's units.

    .. math:: A = \sqrt{(S_x * x)^2 + (S_y * x)^2}

    Grey is the mean of the first three channels, as the model takes them. Beyond the border pixels
    repeat, so that the border itself is no edge.

    Args:
        model: Not used, nor is `target`: the map is the same for every model and class.
        images: ``(N, C, H, W)``.
        target: ``(N,)``.

    Returns:
        ``(N, H, W)``.

    References:
        Adebayo et al., 2018, Sec. 5.1: an edge detector, which some attributions resemble.
    """
    grey = F.pad(images[:, :3].mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return torch.hypot(_sobel(grey[:, 0]), _sobel(grey[:, 0].mT).mT)


def _sobel(padded: Tensor) -> Tensor:
    """The derivative along the last dimension; exactly zero where nothing changes."""
    change = padded[..., 2:] - padded[..., :-2]
    return change[..., :-2, :] + 2 * change[..., 1:-1, :] + change[..., 2:, :]


@reference("center")
@operation("center_map")
def center_map(model: nn.Module, images: Tensor, target: Tensor, *, sigma: float = 0.25) -> Tensor:
    r"""A Gaussian around the image's centre: in (0, 1].

    .. math:: A_{ij} = \exp\left(-\frac{(i - c_H)^2}{2 (\sigma H)^2}
                                 -\frac{(j - c_W)^2}{2 (\sigma W)^2}\right)

    Photographers put objects there. A map that scores less has found less than that.

    Args:
        model: Not used, nor is `target`: the map is the same for every model, image and class.
        images: ``(N, C, H, W)``.
        target: ``(N,)``.
        sigma: Standard deviation, as a fraction of each side.

    Returns:
        ``(N, H, W)``.

    Raises:
        OptionError: If sigma is not positive.
    """
    check_number("sigma", sigma, least=0, above=True)
    sides = []
    for side in images.shape[-2:]:
        place = torch.arange(side, device=images.device, dtype=images.dtype) - (side - 1) / 2
        sides.append(torch.exp(-((place / (sigma * side)) ** 2) / 2))
    return (sides[0][:, None] * sides[1]).expand(len(images), -1, -1)


@reference("random")
@operation("random_map")
def random_map(model: nn.Module, images: Tensor, target: Tensor, *, seed: int = 0) -> Tensor:
    """Independent uniform numbers: in [0, 1).

    The same in every call and on every device; the i-th image of a batch has the i-th map.

    Args:
        model: Not used, nor is `target`.
        images: ``(N, C, H, W)``.
        target: ``(N,)``.
        seed: Of the draw, which touches no other generator.

    Returns:
        ``(N, H, W)``.

    Raises:
        OptionError: If the seed is no whole number.
    """
    check_number("seed", seed, least=0, whole=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(images), *images.shape[-2:], generator=generator)
    return send(drawn.to(images.dtype), images.device)
