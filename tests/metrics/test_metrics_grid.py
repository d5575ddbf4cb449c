"""The grid pointing game and AggAtt's means against slow loops; the cells; what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from explainguide.errors import OptionError, ShapeError
from explainguide.metrics import GridPointingGame, aggregate_maps, grid_pointing_game

CELLS = torch.tensor([0, 1, 2, 3, 8, 5, 4, 7, 6, 0, 2])


@pytest.fixture
def maps() -> Tensor:
    """Eleven maps of 3 x 3 cells of 4 x 6 pixels; number 6 and 8 have no positive part."""
    maps = torch.randn(11, 12, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[6] = -maps[6].abs()
    maps[7] = 0.7
    maps[8] = 0
    return maps


def slow(reference, maps: Tensor, cells: Tensor, **options) -> Tensor:
    scores = [
        reference.grid_pointing_game(one.tolist(), int(cell), **options)
        for one, cell in zip(maps, cells, strict=True)
    ]
    return torch.tensor([float("nan") if s is None else s for s in scores], dtype=torch.float64)


@pytest.mark.parametrize("order", ["column", "row"])
@pytest.mark.parametrize("smoothing", [0, 1, 3, 7])
def test_the_function_equals_a_slow_loop(maps, reference, smoothing, order):
    options = {"n": 3, "smoothing": smoothing, "order": order}
    expected = slow(reference, maps, CELLS, **options)
    assert expected.isnan().sum() == 2
    scores = grid_pointing_game(maps, CELLS, **options)
    torch.testing.assert_close(scores, expected, equal_nan=True, rtol=1e-12, atol=1e-14)
    zero = grid_pointing_game(maps, CELLS, undefined="zero", **options)
    torch.testing.assert_close(zero, expected.nan_to_num(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("order", "places"), [("column", (2, 1)), ("row", (1, 2))])
def test_cell_five_of_nine(order, places):
    attribution = torch.zeros(1, 6, 6)
    attribution[:, 2 * places[0] : 2 * places[0] + 2, 2 * places[1] : 2 * places[1] + 2] = 1
    scores = [
        float(grid_pointing_game(attribution, torch.tensor([k]), order=order)) for k in range(9)
    ]
    assert scores == [1.0 if k == 5 else 0.0 for k in range(9)]


def test_the_cells_of_a_map_share_its_attribution(maps):
    every = torch.arange(9)
    for one in maps[:6]:
        scores = grid_pointing_game(one.expand(9, -1, -1), every)
        torch.testing.assert_close(scores.sum(), torch.tensor(1.0, dtype=torch.float64))
    constant = grid_pointing_game(maps[7].expand(9, -1, -1), every)
    torch.testing.assert_close(constant, torch.full((9,), 1 / 9, dtype=torch.float64))


def test_what_lies_in_one_cell_scores_exactly_one(maps):
    inside = torch.zeros(6, 12, 18)
    inside[:, 4:8, 6:12] = maps[:6, 4:8, 6:12].abs().float()
    assert torch.equal(grid_pointing_game(inside, torch.full((6,), 4)), torch.ones(6))
    # A smeared map does not stay there.
    smeared = grid_pointing_game(inside, torch.full((6,), 4), smoothing=3)
    assert (smeared < 0.9).all()


def test_smoothing_comes_before_the_positive_part():
    attribution = torch.tensor([[[3.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 1.0]]])
    scores = [
        float(grid_pointing_game(attribution, torch.tensor([k]), n=3, smoothing=3))
        for k in (0, 4, 8)
    ]
    assert scores == pytest.approx([0.0, 1.0, 0.0])  # sums 0, 1, -2 of the squares around


def test_one_cell_holds_everything(maps):
    scores = grid_pointing_game(maps[:6], torch.zeros(6, dtype=torch.long), n=1)
    assert torch.equal(scores, torch.ones(6, dtype=torch.float64))


def test_a_map_that_is_not_finite_scores_nan_under_both_rules(maps):
    maps[0, 0, 0], maps[1, 5, 5], maps[2, 0, 0] = torch.nan, torch.inf, -torch.inf
    for rule in ("exclude", "zero"):
        scores = grid_pointing_game(maps, CELLS, undefined=rule)
        assert scores[:3].isnan().all()
        assert not scores[3:6].isnan().any()


def test_a_cell_that_the_grid_has_not_is_nan_where_it_cannot_be_refused(maps, monkeypatch):
    assert grid_pointing_game(maps.to("meta"), CELLS.to("meta")).device.type == "meta"
    # On a device nobody looks at the values of cells; here, neither.
    monkeypatch.setattr("explainguide.metrics.grid._check_cells", lambda *arguments: None)
    scores = grid_pointing_game(maps[:3], torch.tensor([9, -1, 4]), undefined="zero")
    assert scores.isnan().tolist() == [True, True, False]


def test_dtypes_and_forms(maps):
    plain = grid_pointing_game(maps, CELLS)
    assert plain.dtype == torch.float64
    torch.testing.assert_close(
        grid_pointing_game(maps[:, None], CELLS.int()), plain, equal_nan=True
    )
    assert grid_pointing_game(maps.half(), CELLS).dtype == torch.float32
    assert grid_pointing_game(maps[:0], CELLS[:0]).shape == (0,)


def test_the_scores_can_be_differentiated():
    maps = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cells = torch.tensor([0, 3, 2])
    for smoothing in (0, 3):
        assert torch.autograd.gradcheck(
            lambda a, s=smoothing: grid_pointing_game(a, cells, n=2, smoothing=s),
            maps.clone().requires_grad_(),
        )
    dead = torch.full((1, 2, 2), -1.0, requires_grad=True)
    grid_pointing_game(dead, torch.tensor([0]), n=2, undefined="zero").sum().backward()
    assert dead.grad is not None
    assert torch.equal(dead.grad, torch.zeros(1, 2, 2))


@pytest.mark.parametrize("undefined", ["exclude", "zero"])
def test_the_class_is_the_mean_of_the_function(maps, undefined):
    metric = GridPointingGame(smoothing=3, undefined=undefined)
    for part in (slice(0, 4), slice(4, 4), slice(4, None)):
        metric.update(maps[part], CELLS[part])
    scores = grid_pointing_game(maps, CELLS, smoothing=3, undefined=undefined)
    torch.testing.assert_close(metric.compute(), scores.nanmean(), rtol=1e-12, atol=0)
    assert metric.undefined == 2
    metric.reset()
    metric.update(maps[8:9], CELLS[8:9])
    assert metric.compute().isnan() == (undefined == "exclude")


def test_the_class_is_synchronised(maps):
    alone = GridPointingGame()
    alone.update(maps, CELLS)
    both = GridPointingGame(
        distributed_available_fn=lambda: True, dist_sync_fn=lambda state, group: [state, state]
    )
    both.update(maps, CELLS)
    torch.testing.assert_close(both.compute(), alone.compute())
    assert both.undefined == 2 * alone.undefined


def test_a_collection_tells_two_games_apart(maps):
    collection = MetricCollection(
        {"plain": GridPointingGame(), "smooth": GridPointingGame(smoothing=5)}
    )
    attribution = torch.zeros(1, 6, 6)  # both score 0 on it, so that their states are equal
    attribution[:, :2, :2] = 1
    for _ in range(2):
        collection.update(attribution=attribution, cell=torch.tensor([8]))
    collection.update(attribution=maps, cell=CELLS)
    values = collection.compute()
    assert values["plain"] != values["smooth"]


MAPS = torch.rand(2, 6, 6)
CELL = torch.tensor([0, 8])
MISTAKES = {
    "size": (
        lambda: grid_pointing_game(torch.rand(2, 6, 8), CELL),
        ShapeError,
        r"grid_pointing_game: attribution has shape \(2, 6, 8\), whose height and width do not divide "
        r"into n=3 cells each\. Resize it: .*interpolate\(attribution, \(6, 9\)\).* Multiples of n are",
    ),
    "cell": (
        lambda: grid_pointing_game(MAPS, torch.tensor([0, 9])),
        OptionError,
        r"cell holds 9, but a grid of 3 x 3 has 9 cells\. Count them from 0, or say n=\. 0 to 8 are",
    ),
    "cells": (
        lambda: grid_pointing_game(MAPS, CELL[:1]),
        ShapeError,
        r"cell has shape \(1,\) for 2 maps\. Give one cell a map\. \(N,\) is allowed\.",
    ),
    "kind of cell": (
        lambda: grid_pointing_game(MAPS, CELL.float()),
        ShapeError,
        r"cell has dtype torch\.float32\. Give the number of the cell",
    ),
    "channels": (
        lambda: grid_pointing_game(torch.rand(2, 3, 6, 6), CELL),
        ShapeError,
        r"attribution has shape \(2, 3, 6, 6\)\. Sum over the channels first",
    ),
    "n": (lambda: GridPointingGame(n=0), OptionError, r"^GridPointingGame: n is 0\. Use 3 "),
    "smoothing": (
        lambda: GridPointingGame(smoothing=4),
        OptionError,
        r"smoothing is 4, a square without a middle\. Use 5\. 0 and odd sides are allowed\.",
    ),
    "negative": (
        lambda: GridPointingGame(smoothing=-1),
        OptionError,
        r"smoothing is -1\. Use 0 for none",
    ),
    "order": (
        lambda: GridPointingGame(order="rows"),
        OptionError,
        r"unknown order 'rows'\. Did you mean 'row'\?",
    ),
    "update": (
        lambda: GridPointingGame().update(MAPS, CELL + 5),
        OptionError,
        r"^GridPointingGame\.update: cell holds 13, but a grid of 3 x 3 has 9 cells\.",
    ),
    "bins": (
        lambda: aggregate_maps(MAPS, torch.rand(2), bins=(0, 50)),
        OptionError,
        r"aggregate_maps: bins is \(0, 50\)\. Use \(0, 2, 5, 50, 95, 98, 100\)\. Percentages that rise",
    ),
    "shares": (
        lambda: aggregate_maps(MAPS, torch.rand(2), bins=[0, 0.5, 1]),
        OptionError,
        r"bins is \[0, 0\.5, 1\]\. Use \(0\.0, 50\.0, 100\.0\)\.",
    ),
    "scores": (
        lambda: aggregate_maps(MAPS, torch.rand(3)),
        ShapeError,
        r"scores has shape \(3,\) for 2 maps\. Give one score a map\.",
    ),
    "kind of scores": (
        lambda: aggregate_maps(MAPS, CELL),
        ShapeError,
        r"scores is torch\.int64\. Give one score a map\. Floating point",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(mistake):
    call, kind, words = mistake
    with pytest.raises(kind) as caught:
        call()
    assert re.search(words, str(caught.value)), str(caught.value)


BINS = [0, 2, 5, 50, 95, 98, 100]


@pytest.mark.parametrize("count", [1, 7, 50, 101])
@pytest.mark.parametrize("missing", [False, True])
def test_the_means_equal_a_slow_loop(reference, count, missing):
    generator = torch.Generator().manual_seed(count)
    maps = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    scores = torch.randint(0, 9, (count,), generator=generator).double() / 8  # with equal ones
    if missing:
        scores[::3] = torch.nan
    known = [None if s != s else s for s in scores.tolist()]
    expected = reference.aggregate_maps(maps.tolist(), known, BINS)
    found = aggregate_maps(maps, scores)
    assert found.counts.tolist() == [size for size, _, _ in expected]
    assert int(found.undefined) == known.count(None)
    for i, (size, score, mean) in enumerate(expected):
        if size == 0:
            assert found.maps[i].isnan().all()
            assert found.scores[i].isnan()
        else:
            torch.testing.assert_close(found.maps[i], torch.tensor(mean, dtype=torch.float64))
            assert float(found.scores[i]) == pytest.approx(score)


def test_the_bins_of_five_hundred_maps_are_the_published_ones():
    scores = torch.arange(500.0)
    found = aggregate_maps(scores.view(500, 1, 1), scores)
    assert found.counts.tolist() == [10, 15, 225, 225, 15, 10]
    assert found.maps[0].item() == torch.arange(490.0, 500).mean()  # the best


def test_maps_without_a_score_are_in_no_bin():
    maps = torch.tensor([1.0, torch.nan, 3.0]).view(3, 1, 1)
    scores = torch.tensor([-torch.inf, torch.nan, 0.5])
    found = aggregate_maps(maps, scores, bins=(0, 50, 100))
    assert found.maps.flatten().tolist() == [3.0, 1.0]
    assert found.counts.tolist() == [1, 1]
    assert int(found.undefined) == 1
    nothing = aggregate_maps(maps[:0], scores[:0], bins=(0, 50, 100))
    assert nothing.counts.tolist() == [0, 0]
    assert nothing.maps.isnan().all()


def test_the_means_read_nothing_from_the_device():
    found = aggregate_maps(torch.rand(4, 2, 2, device="meta"), torch.rand(4, device="meta"))
    assert found.maps.shape == (6, 2, 2)
    assert found.counts.device.type == "meta"
