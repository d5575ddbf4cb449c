"""Bootstrap intervals: those of scipy, their coverage, images with several scores, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from explainguide.errors import ExplainGuideError, OptionError, ShapeError
from explainguide.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference

METHODS = ("BCa", "percentile")


def skewed(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(1.0, count)


def of_scipy(data: Any, statistic: Any, method: str, *, paired: bool = False, seed: int = 0) -> Any:
    """Scipy's interval of the same draws."""
    return scipy.stats.bootstrap(
        data,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=2000,
        confidence_level=0.9,
        method=method,
        random_state=np.random.default_rng(seed),
    ).confidence_interval


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [10, 11, 57, 300])
@pytest.mark.parametrize("seed", [0, 3])
def test_one_score_an_image_is_as_in_scipy(method: Any, count: int, seed: int) -> None:
    values = skewed(count)
    found = bootstrap_interval(values, confidence=0.9, method=method, seed=seed)
    assert (found.low, found.high) == pytest.approx(
        of_scipy((values,), np.mean, method, seed=seed), rel=1e-9
    )
    assert found.value == pytest.approx(values.mean()) and found.images == count
    assert found.low < found.value < found.high


@pytest.mark.parametrize("method", METHODS)
def test_several_scores_an_image_are_as_in_scipy(method: Any) -> None:
    """Scipy draws pairs of a sum and a count; the statistic is their ratio."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 40, 150)
    values = generator.normal(0, 1, 150) + images / 10
    found = bootstrap_interval(values, images=images, confidence=0.9, method=method)
    met = list(dict.fromkeys(images.tolist()))
    sums = np.array([values[images == image].sum() for image in met])
    counts = np.array([(images == image).sum() for image in met])

    def ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    expected = of_scipy((sums, counts), ratio, method, paired=True)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert found.value == pytest.approx(values.mean()) and found.images == len(met)


def test_draws_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = skewed(101)
    at_once = bootstrap_interval(values)
    monkeypatch.setattr("explainguide.evaluation.bootstrap._AT_ONCE", 1000)
    assert bootstrap_interval(values)[:3] == pytest.approx(at_once[:3])


def test_images_may_have_names_and_any_order() -> None:
    values = skewed(60)
    names = [f"{i % 20}.jpg" for i in range(60)]
    found = bootstrap_interval(values, images=names)
    assert found == bootstrap_interval(values, images=[i % 20 for i in range(60)])
    assert found.images == 20


def test_scores_of_one_image_are_not_taken_for_independent() -> None:
    values = np.repeat(skewed(50), 8)
    alone = bootstrap_interval(values)
    together = bootstrap_interval(values, images=np.repeat(np.arange(50), 8))
    once = bootstrap_interval(values[::8])
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert (together.low, together.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_mean_about_as_often_as_they_say(method: Any) -> None:
    """300 samples: 90% hold it give or take 5 points, the noise of such a count three times over."""
    held = 0
    for seed in range(300):
        found = bootstrap_interval(
            skewed(80, seed), confidence=0.9, resamples=500, method=method, seed=seed
        )
        held += found.low <= 1.0 <= found.high
    assert 0.84 <= held / 300 <= 0.95


def test_paired_intervals_hold_the_difference_and_are_narrower() -> None:
    held, width, apart = 0, 0.0, 0.0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        image = generator.normal(0, 1, 60)
        first = image + generator.normal(0, 0.1, 60)
        second = image + 0.2 + generator.normal(0, 0.1, 60)
        found = paired_difference(first, second, confidence=0.9, resamples=500)
        held += found.low <= 0.2 <= found.high
        width += found.high - found.low
        one = bootstrap_interval(first, confidence=0.9, resamples=500)
        apart += one.high - one.low
    assert 0.82 <= held / 200 <= 0.97
    assert width < apart / 3


def test_a_paired_difference_is_the_interval_of_the_differences() -> None:
    first, second = skewed(50, 1), skewed(50, 2)
    images = np.arange(50) // 2
    assert paired_difference(first, second, images=images, seed=4) == bootstrap_interval(
        second - first, images=images, seed=4
    )


def test_undefined_scores_are_left_out_and_counted() -> None:
    values = skewed(40)
    holes = np.insert(values, [0, 10, 40], math.nan)
    found = bootstrap_interval(holes)
    assert found == bootstrap_interval(values)._replace(undefined=3)
    images = ["gone", *range(10), "half", *range(10, 40), "gone"]
    assert bootstrap_interval(holes, images=images).images == 40


def test_a_pair_with_an_undefined_score_is_left_out() -> None:
    first, second = skewed(40), skewed(40, 1)
    first[3], second[5] = math.nan, math.nan
    found = paired_difference(first, second)
    rest = [i for i in range(40) if i not in (3, 5)]
    assert found == paired_difference(first[rest], second[rest])._replace(undefined=2)


def test_too_few_images_have_no_interval_and_it_is_said() -> None:
    found = bootstrap_interval([0.25] * 9)
    assert found.value == 0.25 and math.isnan(found.low) and math.isnan(found.high)
    assert found.note == "too few images for an interval: 9, and 10 are needed"
    assert bootstrap_interval(skewed(90), images=[i % 9 for i in range(90)]).note == found.note
    assert bootstrap_interval([0.25] * 10).note == ""


@pytest.mark.parametrize("scores", [[], [math.nan] * 20])
def test_no_defined_score_is_no_number(scores: list[float]) -> None:
    found = bootstrap_interval(scores)
    assert all(map(math.isnan, found[:3]))
    assert found[3:] == (0, len(scores), "no score is defined")


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_have_an_interval_of_no_width(method: Any) -> None:
    found = bootstrap_interval([0.3] * 30, method=method)
    assert (found.low, found.high) == pytest.approx((0.3, 0.3))


def test_one_score_that_differs() -> None:
    found = bootstrap_interval([0.0] * 29 + [1.0])
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(
    "given",
    [
        lambda v: v.tolist(),
        lambda v: torch.from_numpy(v),
        lambda v: torch.from_numpy(v).requires_grad_(),
        lambda v: tuple(v),
    ],
)
def test_scores_of_any_form_are_the_same(given: Any) -> None:
    values = skewed(30)
    assert bootstrap_interval(given(values)) == bootstrap_interval(values)


def test_half_precision_is_read() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert bootstrap_interval(values) == bootstrap_interval(values.double())


def test_the_same_seed_gives_the_same_interval_and_nothing_else_changes_it() -> None:
    values = skewed(30)
    found = bootstrap_interval(values, seed=7)
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    np.random.default_rng().random(3)
    assert bootstrap_interval(values, seed=7) == found != bootstrap_interval(values, seed=8)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr]
    assert isinstance(found, Interval)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (
            lambda: bootstrap_interval(np.zeros((3, 4))),
            ShapeError,
            "bootstrap_interval: scores has shape (3, 4). Pass one score an image, or an image and class. "
            "It must be (N,).",
        ),
        (
            lambda: bootstrap_interval([0.0, math.inf]),
            OptionError,
            "bootstrap_interval: scores has 1 infinite values. Pass NaN for what is undefined. Finite "
            "numbers and NaN are allowed.",
        ),
        (
            lambda: bootstrap_interval([0.0, 1.0], images=[1]),
            ShapeError,
            "bootstrap_interval: images has 1 entries for 2 scores. Repeat an image for each of its "
            "scores. One entry a score is allowed.",
        ),
        (
            lambda: paired_difference([0.0], [0.0, 1.0]),
            ShapeError,
            "paired_difference: first has 1 scores and second 2. Put NaN where one has none. Both must be "
            "of the same images in the same order.",
        ),
        (
            lambda: bootstrap_interval([0.0], confidence=95),
            OptionError,
            "bootstrap_interval: confidence is 95. Did you mean 0.95? A number above 0 is allowed.",
        ),
        (
            lambda: bootstrap_interval([0.0], confidence=1),
            OptionError,
            "bootstrap_interval: confidence is 1. Use 0.95. A number between 0 and 1 is allowed.",
        ),
        (
            lambda: bootstrap_interval([0.0], resamples=10),
            OptionError,
            "bootstrap_interval: resamples is 10. A whole number from 100 on is allowed.",
        ),
        (
            lambda: bootstrap_interval([0.0], seed=-1),
            OptionError,
            "bootstrap_interval: seed is -1. A whole number from 0 on is allowed.",
        ),
        (
            lambda: bootstrap_interval([0.0], method="bca"),  # type: ignore[arg-type]
            OptionError,
            "bootstrap_interval: unknown method 'bca'. 'BCa', 'percentile' are allowed.",
        ),
    ],
)
def test_what_is_refused(call: Any, exception: type[ExplainGuideError], message: str) -> None:
    with pytest.raises(exception) as caught:
        call()
    assert str(caught.value) == message
