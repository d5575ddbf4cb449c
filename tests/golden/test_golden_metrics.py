"""Energy, IoU and Pareto front against values that the authors' program computed."""

import pytest
import torch

from explainguide.metrics import (
    EnergyPointingGame,
    IoUCurve,
    LocalizationIoU,
    energy_pointing_game,
    iou_curve,
    localization_iou,
    pareto_front,
)

from .reader import boxes_to_mask, load

EXACT = {"rtol": 0.0, "atol": 1e-9}
PROGRAM_ENERGY = 1e-7  # below this sum the program calls a map undefined
THRESHOLDS = ("0.0", "0.1", "0.25", "0.5", "0.75", "0.9")


@pytest.fixture(scope="module")
def golden():
    return load("02_metrics", "metrics")


def batch(golden, pairs):
    """Maps and masks of (map, boxes) names."""
    tensors, described = golden
    maps = torch.stack([tensors[f"map/{name}"] for name, _ in pairs])
    size = tuple(maps.shape[1:])
    masks = [boxes_to_mask(described["boxes"][boxes], size).bool() for _, boxes in pairs]
    return maps, torch.stack(masks)


@pytest.fixture(scope="module")
def single(golden):
    """Every pair of map and boxes: what was computed, the maps, the masks."""
    rows = golden[1]["single"]
    return list(rows.values()), *batch(golden, [key.split("|") for key in rows])


def test_energy(single):
    rows, maps, masks = single
    options = {"min_energy": PROGRAM_ENERGY}
    expected = torch.tensor([row["EPG"] for row in rows], dtype=torch.float64)
    actual = energy_pointing_game(maps, masks, undefined="zero", **options)
    torch.testing.assert_close(actual, expected, **EXACT)
    defined = ~energy_pointing_game(maps, masks, **options).isnan()
    assert defined.tolist() == [row["EPG_defined"] for row in rows]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_iou(single, threshold):
    rows, maps, masks = single
    # The program divides in float32; so does the rounding here.
    expected = torch.tensor([row[f"IoU@{threshold}"] for row in rows])
    options = {"threshold": float(threshold)}
    actual = localization_iou(maps, masks, undefined="zero", **options)
    torch.testing.assert_close(actual.float(), expected, **EXACT)
    defined = ~localization_iou(maps, masks, **options).isnan()
    assert defined.tolist() == [row[f"IoU_defined@{threshold}"] for row in rows]


def test_the_curve_over_the_programs_thresholds(single):
    rows, maps, masks = single
    grid = [float(threshold) for threshold in THRESHOLDS]
    expected = torch.tensor([[row[f"IoU@{t}"] for t in THRESHOLDS] for row in rows])
    found = iou_curve(maps, masks, thresholds=grid, undefined="zero")
    torch.testing.assert_close(found.values.float(), expected, **EXACT)
    metric = IoUCurve(thresholds=grid, undefined="zero")
    metric.update(maps, masks)
    result = metric.compute()
    # Each of the program's IoUs was rounded to float32.
    mean = expected.double().mean(0)
    torch.testing.assert_close(result["values"], mean, rtol=0, atol=1e-8)
    area = torch.trapezoid(mean, torch.tensor(grid).double()) / (grid[-1] - grid[0])
    torch.testing.assert_close(result["area"], area, rtol=0, atol=1e-8)


def test_all_thresholds_are_covered(single):
    found = {key.split("@")[1] for row in single[0] for key in row if key.startswith("IoU@")}
    assert found == set(THRESHOLDS)


@pytest.mark.parametrize(("included", "undefined"), [(True, "zero"), (False, "exclude")])
def test_aggregates(golden, included, undefined):
    expected = golden[1][f"aggregate_include_undefined={included}"]
    maps, masks = batch(golden, [(name, expected["boxes"]) for name in expected["order"]])
    energy = EnergyPointingGame(undefined=undefined, min_energy=PROGRAM_ENERGY)
    iou = LocalizationIoU(undefined=undefined)
    for half in (slice(0, 2), slice(2, None)):
        energy.update(maps[half], masks[half])
        iou.update(maps[half], masks[half])
    assert float(energy.compute()) == pytest.approx(expected["EPG"], abs=1e-9)
    assert energy.undefined == 3
    # Each of the program's IoUs was rounded to float32.
    assert float(iou.compute()) == pytest.approx(expected["IoU"], abs=1e-8)


@pytest.mark.parametrize(
    ("smallest", "largest", "key"),
    [(0, 60, "min=None max=60"), (60, 10**6, "min=60 max=None"), (30, 120, "min=30 max=120")],
)
def test_sizes_are_chosen_by_the_caller(golden, smallest, largest, key):
    expected = golden[1][f"size_filter {key}"]
    pairs = [(expected["map"], boxes) for boxes in expected["boxes_in_order"]]
    maps, masks = batch(golden, pairs)
    size = masks.sum((1, 2))
    chosen = (size >= smallest) & (size < largest)
    metric = EnergyPointingGame(undefined="zero", min_energy=PROGRAM_ENERGY)
    metric.update(maps[chosen], masks[chosen])
    assert int(chosen.sum()) == expected["n"]
    assert float(metric.compute()) == pytest.approx(expected["EPG"], abs=1e-9)


def test_pareto_history(golden):
    described = golden[1]["pareto"]
    points = [step["point"] for step in described["history"]]
    for epoch, step in enumerate(described["history"], start=1):
        front = pareto_front(points[:epoch], bin=described["bin_width"])
        assert [index + 1 for index in front] == step["front_epochs(1-based)"]


def test_pareto_without_bins(golden):
    described = golden[1]["pareto_no_binning_mask"]
    kept = [i for i, on in enumerate(described["mask(all at once, exact values)"]) if on]
    assert pareto_front(described["points"], bin=None) == kept
