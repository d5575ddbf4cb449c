"""References that attributions are compared with: RISE, edges, the centre, chance."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.attr import REFERENCES, as_explainer, reference, rise_map
from explainguide.attr.references import center_map, edge_map, random_map
from explainguide.attr.rise import random_masks
from explainguide.errors import ExplainGuideError, OptionError

from .networks import SmallCnn, batch

SIZE = (11, 14)


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *SIZE, generator=generator)


def enlarged(grid: list[list[float]], size: tuple[int, int]) -> list[list[float]]:
    """Bilinear, places of cells in their middle, the border repeated; a pixel at a time."""
    rows, columns = len(grid), len(grid[0])

    def neighbours(at: int, large: int, small: int) -> tuple[int, int, float]:
        place = min(max((at + 0.5) * small / large - 0.5, 0), small - 1)
        low = min(int(place), small - 1)
        return low, min(low + 1, small - 1), place - low

    found = []
    for i in range(size[0]):
        top, bottom, v = neighbours(i, size[0], rows)
        line = []
        for j in range(size[1]):
            left, right, u = neighbours(j, size[1], columns)
            above = grid[top][left] * (1 - u) + grid[top][right] * u
            below = grid[bottom][left] * (1 - u) + grid[bottom][right] * u
            line.append(above * (1 - v) + below * v)
        found.append(line)
    return found


def slow_masks(count: int, cells: int, keep: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, cells, cells, generator=generator)
    shifts = torch.rand(count, 2, generator=generator)
    masks = []
    for draw, shift in zip(draws, shifts, strict=True):
        cell = [math.ceil(side / cells) for side in SIZE]
        grid = [[1.0 if value < keep else 0.0 for value in row] for row in draw.tolist()]
        large = enlarged(grid, ((cells + 1) * cell[0], (cells + 1) * cell[1]))
        top, left = (int(float(s) * c) for s, c in zip(shift, cell, strict=True))
        masks.append(
            torch.tensor([row[left : left + SIZE[1]] for row in large[top : top + SIZE[0]]])
        )
    return masks


def test_the_masks_of_rise() -> None:
    found = random_masks(6, SIZE, cells=4, keep=0.3, seed=5)
    torch.testing.assert_close(found, torch.stack(slow_masks(6, 4, 0.3, 5)))
    many = random_masks(4000, SIZE)
    assert many.min() == 0 and many.max() == 1
    assert abs(float(many.mean()) - 0.5) < 0.01


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "logit"])
def test_rise_is_the_mean_of_masks_by_their_scores(score: str) -> None:
    model, x, target = SmallCnn().eval(), images(), [2, 0, 3]
    own: dict[str, Any] = {
        "softmax": lambda z: z.softmax(0),
        "sigmoid": lambda z: z.sigmoid(),
        "logit": lambda z: z,
    }
    expected = torch.zeros(3, *SIZE)
    with torch.no_grad():
        for mask in slow_masks(9, 4, 0.4, 2):
            for i, k in enumerate(target):
                expected[i] += own[score](model((x[i] * mask)[None])[0])[k] * mask / (9 * 0.4)
    classes, options = torch.tensor(target), {"cells": 4, "keep": 0.4, "seed": 2, "score": score}
    found = rise_map(model, x, classes, masks=9, **options)
    torch.testing.assert_close(found, expected)
    for batch_size in (1, 2, 7, 100):  # no more than a way to compute it
        again = rise_map(model, x, classes, masks=9, batch_size=batch_size, **options)
        torch.testing.assert_close(again, expected)
    alone = rise_map(model, x[1:2], classes[1:2], masks=9, **options)
    torch.testing.assert_close(alone, expected[1:2])


def test_rise_finds_the_pixels_that_a_score_needs() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = x[:, 0, :5, :5].mean((1, 2))
            return torch.stack([seen, -seen], 1)

    found = rise_map(
        Corner(), torch.ones(1, 3, 20, 20), torch.tensor([0]), masks=2000, score="logit"
    )
    corner, rest = found[0, :5, :5].mean(), found[0, 10:, 10:].mean()
    assert corner > rest * 1.2


def test_rise_of_a_single_logit_and_of_one_output_of_several() -> None:
    class One(SmallCnn):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1]

    class Named(SmallCnn):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": super().forward(x), "more": x}

    model, x = One().eval(), images(2)
    yes, no = (rise_map(model, x, torch.tensor([k, k]), masks=5, cells=3) for k in (1, 0))
    torch.testing.assert_close(
        yes + no, random_masks(5, SIZE, cells=3).sum(0).expand(2, -1, -1) / 2.5
    )
    torch.manual_seed(0)
    named = Named().eval()
    plain = SmallCnn().eval()
    plain.load_state_dict(named.state_dict())
    explain = as_explainer("rise", named, arguments={"masks": 4}, output="scores")
    torch.testing.assert_close(
        explain(x, 1), as_explainer("rise", plain, arguments={"masks": 4})(x, 1)
    )


def test_edges_are_those_of_sobel() -> None:
    x = images(2)
    grey = x.mean(1)
    expected = torch.zeros(2, *SIZE)
    kernel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    for n in range(2):
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                across = down = 0.0
                for a in range(3):
                    for b in range(3):
                        row = min(max(i + a - 1, 0), SIZE[0] - 1)
                        column = min(max(j + b - 1, 0), SIZE[1] - 1)
                        across += kernel[a][b] * float(grey[n, row, column])
                        down += kernel[b][a] * float(grey[n, row, column])
                expected[n, i, j] = math.hypot(across, down)
    torch.testing.assert_close(edge_map(nn.Identity(), x, torch.zeros(2)), expected)
    flat = torch.full((1, 6, 8, 8), 0.7)
    assert not edge_map(nn.Identity(), flat, torch.zeros(1)).any()


def test_the_center_is_a_gaussian() -> None:
    found = center_map(nn.Identity(), images(2), torch.zeros(2), sigma=0.2)
    for i, j in ((0, 0), (5, 6), (10, 3)):
        down, across = (i - 5) / (0.2 * 11), (j - 6.5) / (0.2 * 14)
        assert float(found[1, i, j]) == pytest.approx(math.exp(-(down**2 + across**2) / 2))
    assert torch.equal(found, found.flip(1)) and torch.equal(found, found.flip(2))


def test_chance_is_the_same_in_every_call_and_touches_no_generator() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    a, b = (random_map(nn.Identity(), images(), torch.zeros(3)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(torch.rand(3), expected)
    assert not torch.equal(a[0], a[1])
    assert torch.equal(a[:2], random_map(nn.Identity(), images(2), torch.zeros(2)))
    assert not torch.equal(a, random_map(nn.Identity(), images(), torch.zeros(3), seed=1))
    assert a.min() >= 0 and a.max() < 1 and abs(float(a.mean()) - 0.5) < 0.05


@pytest.mark.parametrize("name", list(REFERENCES))
def test_every_reference_can_be_judged(name: str) -> None:
    model, x = SmallCnn(), batch()
    arguments = {"masks": 8} if name == "rise" else {}
    explain = as_explainer(name, model, arguments=arguments)
    found = explain(x, torch.tensor([0, 1, 2]))
    assert found.shape == (3, 12, 12) and found.isfinite().all() and (found >= 0).all()
    assert (explain.name, explain.layer, explain.copyable) == (name, "input", True)
    assert torch.equal(found, explain(x, torch.tensor([0, 1, 2])))
    assert model.training


@pytest.mark.parametrize("name", [*REFERENCES, "captum:Saliency"])
def test_a_guide_refuses_what_has_no_gradient(name: str) -> None:
    with pytest.raises(
        OptionError, match=rf"ExplanationGuidance: attribution '{name}' can be judged, but"
    ):
        ExplanationGuidance(SmallCnn(), "mix", attribution=name)


def test_one_of_ones_own() -> None:
    try:

        @reference("bright")
        def bright(model: nn.Module, images: Tensor, target: Tensor, *, power: int = 1) -> Tensor:
            return images.mean(1) ** power

        explain = as_explainer("bright", SmallCnn(), arguments={"power": 2})
        assert torch.equal(explain(batch(), 0), batch().mean(1) ** 2)
        with pytest.raises(OptionError, match="reference: the key 'bright' of"):
            reference("bright")(edge_map)
    finally:
        del REFERENCES["bright"]


masked = partial(rise_map, SmallCnn(), images(), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked(masks=0), r"rise_map: masks is 0\. A whole number from 1 on is allowed"),
        (lambda: masked(cells=1), r"rise_map: cells is 1\. A whole number from 2 on"),
        (lambda: masked(keep=0.0), r"rise_map: keep is 0\.0\. A number above 0 is allowed"),
        (lambda: masked(seed=-1), r"rise_map: seed is -1\. A whole number from 0 on"),
        (lambda: masked(batch_size=0), r"rise_map: batch_size is 0\."),
        (lambda: masked(score="softmx"), r"rise_map: unknown score 'softmx'\. Did you mean 'softmax'"),
        (lambda: random_masks(2, SIZE, keep=2), r"random_masks: keep is 2\."),
        (
            lambda: center_map(nn.Identity(), images(), torch.zeros(3), sigma=0),
            r"center_map: sigma is 0\. A number above 0 is allowed",
        ),
        (
            lambda: random_map(nn.Identity(), images(), torch.zeros(3), seed=0.5),
            r"random_map: seed is 0\.5\. A whole number",
        ),
        (
            lambda: as_explainer("center", SmallCnn(), arguments={"sgma": 0.1}),
            r"as_explainer: center has no argument 'sgma'\. Did you mean 'sigma'\? It has 'sigma'\.",
        ),
        (
            lambda: as_explainer("center", SmallCnn(), arguments={"sigma": "wide"}),
            r"as_explainer: sigma of center is 'wide'\. Leave it out for the default\. A number",
        ),
        (
            lambda: as_explainer("edge", SmallCnn(), layer="mix"),
            r"as_explainer: layer is 'mix', but 'edge' is a map of the input\. Leave layer= out\.",
        ),
        (
            lambda: as_explainer("centre", SmallCnn()),
            r"as_explainer: unknown attribution 'centre'\. Did you mean 'center'\? 'gradient'",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told(call: Any, message: str) -> None:
    with pytest.raises(ExplainGuideError, match=message):
        call()
