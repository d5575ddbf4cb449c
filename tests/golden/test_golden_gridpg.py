"""The grid pointing game against scores that the B-cos program computed."""

from __future__ import annotations

import pytest
import torch

from explainguide.metrics import GridPointingGame, grid_pointing_game

from .reader import load

CASES = [(n, smoothing) for n in (2, 3) for smoothing in (0, 1, 5, 15)]
# The program adds up in float32, a cell as a slice; the same maps in float64 differ by its rounding.
EXACT = {"rtol": 0.0, "atol": 1e-7}


@pytest.fixture(scope="module")
def golden():
    return load("09_gridpg", "gridpg")


def maps_of(golden, n):
    """All maps, summed over channels as the program does, and their cells."""
    tensors, _ = golden
    maps = torch.cat([tensors[f"n{n}/grid{grid}/attributions"].sum(1) for grid in (0, 1)])
    return maps, torch.arange(n * n).repeat(2)


@pytest.mark.parametrize(("n", "smoothing"), CASES)
def test_golden_scores(golden, n, smoothing):
    expected = golden[1]["results"][f"n={n},smooth={smoothing}"]
    maps, cells = maps_of(golden, n)
    scores = grid_pointing_game(maps, cells, n=n, smoothing=smoothing, undefined="zero")
    wanted = torch.tensor(expected["scores(flattened over 2 grids x n*n targets)"])
    torch.testing.assert_close(scores, wanted, **EXACT)
    assert (wanted == 0).sum() == 1  # a map without a positive part
    left_out = grid_pointing_game(maps, cells, n=n, smoothing=smoothing).isnan()
    assert torch.equal(left_out, wanted == 0)


@pytest.mark.parametrize(("n", "smoothing"), CASES)
def test_golden_mean(golden, n, smoothing):
    expected = golden[1]["results"][f"n={n},smooth={smoothing}"]
    maps, cells = maps_of(golden, n)
    metric = GridPointingGame(n=n, smoothing=smoothing, undefined="zero")
    for part in (slice(0, n), slice(n, None)):
        metric.update(maps[part], cells[part])
    assert float(metric.compute()) == pytest.approx(expected["mean"], abs=1e-7)
    assert metric.undefined == 1


def test_golden_cells_are_counted_by_columns(golden):
    maps, cells = maps_of(golden, 3)
    expected = golden[1]["results"]["n=3,smooth=0"]["mean"]
    by_rows = grid_pointing_game(maps, cells, n=3, order="row", undefined="zero").mean()
    assert float(by_rows) != pytest.approx(expected, abs=1e-4)


def test_golden_cases_are_all_read(golden):
    assert set(golden[1]["results"]) == {f"n={n},smooth={s}" for n, s in CASES}
