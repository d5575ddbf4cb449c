"""How sure a mean over images is: bootstrap intervals, of one score and of a difference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, check_number, check_option, operation
from explainguide.host import host_array

__all__ = ["Interval", "bootstrap_interval", "paired_difference"]

Method = Literal["BCa", "percentile"]
LEAST_IMAGES = 10
_AT_ONCE = 1 << 22  # numbers that are drawn at a time: 32 MB


class Interval(NamedTuple):
    """A mean and how far it may be off.

    Attributes:
        value: The mean; NaN where no score is defined.
        low: Lower end; NaN without an interval.
        high: Upper end; NaN without an interval.
        images: How many images it comes from.
        undefined: How many scores were NaN, and are left out.
        note: Why there is no interval; "" where there is one.
    """

    value: float
    low: float
    high: float
    images: int
    undefined: int
    note: str = ""


@operation("bootstrap_interval")
def bootstrap_interval(
    scores: Any,
    *,
    images: Iterable[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Method = "BCa",
    seed: int = 0,
) -> Interval:
    """The mean of scores, and an interval that holds the mean over all such images.

    Images are drawn with replacement, each with all of its scores: two classes of one image are not
    independent. Equal to `scipy.stats.bootstrap` of the same draws; the correction of BCa is
    computed in time that grows with the images, and not with their square.

    Args:
        scores: ``(N,)``, an array, tensor or sequence; NaN is undefined and left out.
        images: Which image each score is of, N numbers or names; None: each of its own.
        confidence: How often such an interval holds the mean, in (0, 1).
        resamples: How many times images are drawn.
        method: ``"BCa"``, which corrects for bias and skewness, or ``"percentile"``.
        seed: The same one gives the same interval.

    Returns:
        The mean over scores and its interval. With fewer than 10 images there is none, and
        ``note`` says so. Costs ``resamples`` times N draws.

    Raises:
        ShapeError: If scores are not ``(N,)``, or images not N.
        OptionError: For an infinite score, and another option that is not allowed.

    References:
        Efron, 1987, Better Bootstrap Confidence Intervals.

    Example:
        >>> found = bootstrap_interval([0.2, 0.4] * 20)
        >>> round(found.value, 2), round(found.low, 2), round(found.high, 2), found.images
        (0.3, 0.27, 0.33, 40)
    """
    values = _numbers("scores", scores)
    return _interval(values, images, confidence, resamples, method, seed)


@operation("paired_difference")
def paired_difference(
    first: Any,
    second: Any,
    *,
    images: Iterable[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Method = "BCa",
    seed: int = 0,
) -> Interval:
    """The mean of second minus first on the same images, and its interval.

    Where the two rise and fall together from image to image, this interval is narrower than those of
    the two means let one think.

    Args:
        first: ``(N,)``; NaN is undefined, and leaves the pair out.
        second: ``(N,)``, score by score of the same image and class.
        images: As in `bootstrap_interval`, and so are the others.
        confidence: In (0, 1).
        resamples: How many times images are drawn.
        method: ``"BCa"`` or ``"percentile"``.
        seed: The same one gives the same interval.

    Returns:
        As `bootstrap_interval`, of the differences.

    Raises:
        ShapeError: As there, and if the two have not the same length.
        OptionError: As there.

    Example:
        >>> before = np.linspace(0, 1, 50)
        >>> found = paired_difference(before, before + 0.1)
        >>> round(found.low, 3), round(found.high, 3)
        (0.1, 0.1)
    """
    before, after = _numbers("first", first), _numbers("second", second)
    if len(before) != len(after):
        raise ShapeError(
            f"first has {len(before)} scores and second {len(after)}. Put NaN where one has none. "
            "Both must be of the same images in the same order."
        )
    return _interval(after - before, images, confidence, resamples, method, seed)


def _numbers(name: str, scores: Any) -> np.ndarray:
    if isinstance(scores, Tensor):
        scores = host_array(scores.detach().cpu())
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ShapeError(
            f"{name} has shape {values.shape}. Pass one score an image, or an image and class. It "
            "must be (N,)."
        )
    if np.isinf(values).any():
        raise OptionError(
            f"{name} has {np.isinf(values).sum()} infinite values. Pass NaN for what is undefined. "
            "Finite numbers and NaN are allowed."
        )
    return values


def _interval(
    values: np.ndarray,
    images: Iterable[Any] | None,
    confidence: float,
    resamples: int,
    method: Method,
    seed: int,
) -> Interval:
    check_number("confidence", confidence, least=0, most=1, above=True)
    if confidence == 1:
        raise OptionError("confidence is 1. Use 0.95. A number between 0 and 1 is allowed.")
    check_number("resamples", resamples, least=100, whole=True)
    check_number("seed", seed, least=0, whole=True)
    check_option("method", method, ("BCa", "percentile"))
    defined = ~np.isnan(values)
    sums, counts = _by_image(values, images, defined)
    undefined = int(len(values) - defined.sum())
    if len(sums) == 0:
        return Interval(math.nan, math.nan, math.nan, 0, undefined, "no score is defined")
    mean = float(sums.sum() / counts.sum())
    if len(sums) < LEAST_IMAGES:
        note = f"too few images for an interval: {len(sums)}, and {LEAST_IMAGES} are needed"
        return Interval(mean, math.nan, math.nan, len(sums), undefined, note)
    drawn = _draw(sums, counts, resamples, seed)
    tail = (1 - confidence) / 2
    shares = (tail, 1 - tail)
    if method == "BCa":
        shares = _corrected(shares, drawn, mean, sums, counts)
    low, high = np.percentile(drawn, [100 * share for share in shares]).tolist()
    return Interval(mean, low, high, len(sums), undefined)


def _by_image(
    values: np.ndarray, images: Iterable[Any] | None, defined: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the defined scores of each image that has one."""
    if images is None:
        return values[defined], np.ones(int(defined.sum()))
    names = list(images)
    if len(names) != len(values):
        raise ShapeError(
            f"images has {len(names)} entries for {len(values)} scores. Repeat an image for each of "
            "its scores. One entry a score is allowed."
        )
    numbers: dict[Any, int] = {}
    of = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    counts = np.bincount(of[defined], minlength=len(numbers)).astype(np.float64)
    sums = np.bincount(of[defined], weights=values[defined], minlength=len(numbers))
    return sums[counts > 0], counts[counts > 0]


def _draw(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean of each drawn set of images, ``(resamples,)``."""
    generator = np.random.default_rng(seed)
    number, parts = len(sums), []
    step = max(1, _AT_ONCE // number)
    for start in range(0, resamples, step):
        picked = generator.integers(0, number, (min(step, resamples - start), number))
        parts.append(sums[picked].sum(-1) / counts[picked].sum(-1))
    return np.concatenate(parts)


def _corrected(
    shares: tuple[float, float],
    drawn: np.ndarray,
    mean: float,
    sums: np.ndarray,
    counts: np.ndarray,
) -> tuple[float, float]:
    """The shares of the drawn means below the ends of a BCa interval.

    Those without a correction where there is nothing to correct by: all means are equal, or all are
    on one side.
    """
    below = ((drawn < mean).mean() + (drawn <= mean).mean()) / 2
    without = (sums.sum() - sums) / (counts.sum() - counts)  # the mean without each image
    pull = without.mean() - without
    spread = (pull**2).sum()
    if not 0 < below < 1 or spread == 0:
        return shares
    skewness = (pull**3).sum() / (6 * spread**1.5)
    normal = NormalDist()
    bias = normal.inv_cdf(float(below))
    ends = [bias + normal.inv_cdf(share) for share in shares]
    low, high = (normal.cdf(bias + end / (1 - skewness * end)) for end in ends)
    return low, high
