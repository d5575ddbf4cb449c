"""A broken map, a constant one and a good one, of each metric that asks the model, and of grids."""

import pytest
import torch

from explainguide.errors import ExplainGuideWarning
from explainguide.metrics import (
    DeletionCurve,
    GridPointingGame,
    Infidelity,
    InsertionCurve,
    PixelPerturbation,
    SensitivityMax,
    grid_pointing_game,
    sensitivity_max,
)
from tests.metrics.asked import Small

NAN, INF = torch.nan, torch.inf


def explain(images, target):
    """Smooth, and of the target."""
    return images.sin().sum(1) * (1.0 + target[:, None, None])


ASKED = {
    "perturbation": (PixelPerturbation, Small()),
    "insertion": (InsertionCurve, Small()),
    "deletion": (DeletionCurve, Small()),
    "infidelity": (Infidelity, Small()),
    "infidelity as it is": (lambda **o: Infidelity(normalize=False, **o), Small()),
    "sensitivity": (SensitivityMax, explain),
}


def number(result):
    """One of what `compute` gives."""
    if isinstance(result, dict):
        return result["area"] if "area" in result else result["remove_20"]
    return result


@pytest.fixture
def shown():
    """Maps of six images, of which only the last is defined; the images; and the targets."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 6, 9, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    maps = explain(images, target)
    maps[0, 1, 2], maps[1, 0, 0], maps[2, 5, 8] = NAN, INF, -INF
    maps[3], maps[4] = 0.7, 0.0
    return maps, images, target


@pytest.mark.parametrize(("kind", "asked"), ASKED.values(), ids=ASKED)
def test_kinds_are_counted_and_told(kind, asked, shown):
    metric = kind()
    for half in (slice(0, 2), slice(2, 6)):
        metric.update(*(part[half] for part in shown), asked)
    text = rf"^{type(metric).__name__}\.compute: of 6 images, 3 have a map or mask that is not finite\. "
    with pytest.warns(ExplainGuideWarning, match=text) as caught:
        value = number(metric.compute())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert metric.undefined_kinds == {"not_finite": 3, "constant": 2}
    assert metric.undefined == 5
    assert value.isfinite()


@pytest.mark.parametrize(("kind", "asked"), ASKED.values(), ids=ASKED)
def test_the_value_is_that_of_the_good_map(kind, asked, shown):
    both = []
    for rows in (slice(0, 6), slice(5, 6)):
        metric = kind()
        # Draws are in the order of the images: the good one is a batch of its own.
        for part in (slice(rows.start, 5), slice(5, 6)):
            if isinstance(metric, Infidelity | SensitivityMax):
                metric.generator = torch.Generator().manual_seed(0)
            metric.update(*(each[part] for each in shown), asked)
        if rows.start:
            both.append(metric.compute())
            assert metric.undefined_kinds == {"not_finite": 0, "constant": 0}
        else:
            with pytest.warns(ExplainGuideWarning, match="3 have a map or mask"):
                both.append(metric.compute())
    torch.testing.assert_close(both[0], both[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("kind", "asked"), ASKED.values(), ids=ASKED)
def test_nothing_defined_is_nan(kind, asked, shown):
    metric = kind()
    metric.update(*(part[3:5] for part in shown), asked)
    assert number(metric.compute()).isnan()
    assert metric.undefined_kinds == {"not_finite": 0, "constant": 2}


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_changed_image_whose_map_breaks_is_not_finite(value, shown):
    """Infinite is not constant, and its map alone is not looked at."""

    def breaks(images, target):
        maps = explain(images, target)
        maps[target == 2] = value
        return maps

    maps, images, target = shown
    maps = explain(images, target)
    metric = SensitivityMax()
    metric.update(maps, images, target, breaks)
    with pytest.warns(ExplainGuideWarning, match="of 6 images, 2 have"):
        assert metric.compute().isfinite()
    assert metric.undefined_kinds == {"not_finite": 2, "constant": 0}
    assert (
        sensitivity_max(maps, images, target, breaks).isnan().tolist() == [False, False, True] * 2
    )


@pytest.mark.parametrize("undefined", ["exclude", "zero"])
def test_grids(undefined):
    good = torch.tensor([[4.0, -2.0], [1.0, 3.0]])
    maps = torch.stack([good, good, good, good, good.fill_diagonal_(4.0)])
    maps[0, 0, 0], maps[1, 1, 1] = NAN, INF
    maps[2], maps[3] = -1.0, 0.5  # nothing positive; and as much in every cell
    cell = torch.tensor([0, 0, 0, 1, 1])
    metric = GridPointingGame(n=2, undefined=undefined)
    for half in (slice(0, 2), slice(2, 5)):
        metric.update(maps[half], cell[half])
    text = r"^GridPointingGame\.compute: of 5 images, 2 have a map or mask that is not finite\. "
    with pytest.warns(ExplainGuideWarning, match=text) as caught:
        value = metric.compute()
    assert caught[0].filename == __file__
    assert metric.undefined_kinds == {"not_finite": 2, "without_positive_part": 1}
    # Cell 1 is below cell 0: a quarter of the constant map, and 1 of 4 + 1 + 4.
    total = 1 / 4 + 1 / 9
    assert float(value) == pytest.approx(total / (2 if undefined == "exclude" else 3))
    scores = grid_pointing_game(maps, cell, n=2, undefined=undefined)
    assert float(value) == pytest.approx(float(scores.nanmean()))
