"""Images without the highest pixels of their maps, or with them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from explainguide.errors import OptionError, check_option, named
from explainguide.metrics.checks import check_maps
from explainguide.metrics.fills import Fill, check_fill, filling
from explainguide.metrics.model_calls import check_images

__all__ = [
    "Mode",
    "check_perturbation",
    "perturb",
    "replaced_at",
    "share_without_ties",
    "thresholds",
]

Mode = Literal["remove", "keep"]


@named("perturb")
def perturb(
    images: Tensor,
    attribution: Tensor,
    *,
    fraction: float,
    mode: Mode = "remove",
    fill: Fill = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Images without the highest pixels of their maps, or with them alone.

    The threshold of a map is its (1 - ``fraction``) quantile, linearly interpolated. What lies below
    it stays with ``"remove"``; what lies at it or above stays with ``"keep"``. So pixels of equal
    value stay or go together: of a constant map all are highest, and of one that is zero on most of
    the image more than ``fraction`` can be.

    Args:
        images: As the model takes them, ``(N, C, H, W)``.
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        fraction: Share of the pixels that are the highest, in (0, 1).
        mode: ``"remove"`` takes the highest pixels away, ``"keep"`` all others.
        fill: What stands there instead. ``"mean"``: the image's own mean colour, which takes images
            of any scale. ``"blur"``: the image, blurred with RISE's Gaussian (11 x 11 pixels, sigma
            5, meant for 224 x 224). ``"noise"``: Gaussian, with the mean and the spread of the
            image's own channels; not clipped to its range. A number or a colour ``(C,)``, in the
            images' units: 0 is the data set's mean colour where images are normalised by it, and
            black where they are in [0, 1]. Or a callable from images to images.
        generator: Of the noise; None is the global one.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Zhang et al., 2024, "Comprehensive Attribution: Inherently Explainable Vision Model with
        Feature Detector" (COMET); its program has ``fill=0.0`` on normalised images.

    Example:
        Of four pixels the highest two are above 1.5.

        >>> images = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
        >>> attribution = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> perturb(images, attribution, fraction=0.5, fill=0.0)
        tensor([[[[10., 20.], [ 0.,  0.]]]])
        >>> perturb(images, attribution, fraction=0.5, mode="keep")
        tensor([[[[25., 25.], [30., 40.]]]])
    """
    check_perturbation(fraction, mode, fill, generator)
    (maps,) = check_maps(attribution)
    check_images(images, like=maps)
    replaced = replaced_at(maps, thresholds(maps, [fraction])[:, 0], mode)
    return torch.where(replaced[:, None], filling(images, fill, generator), images)


def thresholds(maps: Tensor, fractions: Sequence[float]) -> Tensor:
    """The (1 - p) quantile of each map for each p, ``(N, F)``, as `torch.quantile` interpolates it.

    Which takes no more than 16 million numbers in older versions, and p as a tensor, to be sent.
    """
    ordered = maps.flatten(1).sort(1).values
    last = ordered.shape[1] - 1
    columns = []
    for fraction in fractions:
        rank = _rank(last, fraction)
        below = math.floor(rank)
        above = min(below + 1, last)
        columns.append(torch.lerp(ordered[:, below], ordered[:, above], rank - below))
    return torch.stack(columns, 1)


def share_without_ties(pixels: int, fraction: float) -> float:
    """The share of the pixels that lie at the quantile or above, where no two are equal."""
    return (pixels - math.ceil(_rank(pixels - 1, fraction))) / pixels


def _rank(last: int, fraction: float) -> float:
    """Rounded, so that 0.1 of 101 pixels ends at one of them, not a rounding error beside it."""
    return round((1 - fraction) * last, 9)


def replaced_at(maps: Tensor, threshold: Tensor, mode: Mode) -> Tensor:
    """Where the fill stands, ``(N, H, W)``."""
    below = maps < threshold[:, None, None]
    return ~below if mode == "remove" else below


def check_perturbation(
    fraction: Any, mode: Any, fill: Any, generator: torch.Generator | None
) -> None:
    """Refuse options of `perturb` that are not allowed."""
    number = math.nan
    if isinstance(fraction, Real) and not isinstance(fraction, bool):
        number = float(fraction)
    if not 0 < number < 1:
        hint = f" Did you mean {number / 100:g}?" if 1 <= number < 100 else ""
        raise OptionError(
            f"a fraction of the pixels is {fraction!r}.{hint} A number in (0, 1) is allowed."
        )
    check_option("mode", mode, ("remove", "keep"))
    check_fill(fill, generator)
