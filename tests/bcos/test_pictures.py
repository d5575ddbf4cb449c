"""Coloured explanations: colours, opacity, smoothing, and pictures that do not mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from explainguide.bcos import to_rgba


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    weights = torch.randn(shape[0], 6, *shape[1:], dtype=dtype)
    return weights, torch.randn(shape, dtype=dtype)


def slow_picture(weights: Tensor, contributions: Tensor, smooth: int, percentile: float) -> Tensor:
    """One image, place by place."""
    _, height, width = weights.shape
    picture = torch.zeros(4, height, width, dtype=torch.float64)
    length = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            w = weights[:, i, j]
            ratios = (w / w.abs().max()).clamp(min=0)
            for c in range(3):
                pair = float(ratios[c] + ratios[c + 3])
                picture[c, i, j] = float(ratios[c]) / pair if pair else 0
            length[i, j] = float(w.norm()) if contributions[i, j] >= 0 else 0
    reach = max(smooth - 1, 0) // 2
    padded = np.pad(length, reach)
    side = 2 * reach + 1
    for i in range(height):
        for j in range(width):
            length[i, j] = padded[i : i + side, j : j + side].mean()
    picture[3] = torch.from_numpy((length / np.percentile(length, percentile)).clip(0, 1))
    return picture


@pytest.mark.parametrize("smooth", [0, 1, 3, 7])
@pytest.mark.parametrize("percentile", [99.5, 100, 90, 80])
def test_a_batch_of_pictures_is_what_the_formula_says(smooth: int, percentile: float) -> None:
    weights, contributions = draw(3, 9, 12)
    found = to_rgba(weights, contributions, smooth=smooth, percentile=percentile)
    assert found.shape == (3, 4, 9, 12)
    for picture, w, c in zip(found, weights, contributions, strict=True):
        expected = slow_picture(w, c, smooth, percentile)
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-6)


def test_each_colour_is_what_its_place_looks_for() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 0.5], [0, 0, 0]])
    weights = torch.cat([colours, 1 - colours], 1).T.reshape(1, 6, 1, 5)
    found = to_rgba(weights, torch.ones(1, 1, 5), smooth=0)
    torch.testing.assert_close(found[0, :3, 0].T, colours)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_the_scale_of_the_weights_does_not_matter(scale: float) -> None:
    weights, contributions = draw(2, 8, 8)
    found = to_rgba(scale * weights, contributions)
    torch.testing.assert_close(found, to_rgba(weights, contributions), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smooth", [0, 15])
def test_a_dead_map_is_an_empty_picture(smooth: int) -> None:
    assert not to_rgba(torch.zeros(2, 6, 8, 8), torch.zeros(2, 8, 8), smooth=smooth).any()


@pytest.mark.parametrize("smooth", [0, 3])
def test_a_map_that_speaks_against_the_class_is_transparent(smooth: int) -> None:
    weights, _ = draw(1, 20, 20)
    assert not to_rgba(weights, -torch.ones(1, 20, 20), smooth=smooth)[:, 3].any()


def test_a_single_place_that_speaks_for_the_class_is_seen() -> None:
    weights, _ = draw(1, 20, 20)
    contributions = -torch.ones(1, 20, 20)
    contributions[0, 3, 4] = 1
    opacity = to_rgba(weights, contributions, smooth=0)[0, 3]
    assert opacity[3, 4] == 1
    assert opacity.sum() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision(dtype: torch.dtype) -> None:
    weights, contributions = (t.to(dtype) for t in draw(1, 8, 8))
    found = to_rgba(weights, contributions, smooth=3)
    assert found.dtype == torch.float32
    expected = to_rgba(weights.double(), contributions.double(), smooth=3)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_a_picture_has_no_graph() -> None:
    weights, contributions = draw(1, 8, 8)
    assert not to_rgba(weights.requires_grad_(), contributions).requires_grad
