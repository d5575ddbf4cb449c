"""The classes give their function's mean however data is split, and keep torchmetrics' rules."""

import math
import pickle
from inspect import signature
from itertools import pairwise

import pytest
import torch
from torchmetrics import Metric, MetricCollection

from explainguide import metrics
from explainguide.errors import GuidanceError, OptionError, ShapeError
from explainguide.metrics import (
    MAP_METRICS,
    EnergyPointingGame,
    GridPointingGame,
    IoUCurve,
    LocalizationIoU,
    OnObjectEnergy,
    PixelAveragePrecision,
    PointingGame,
    Robustness,
    SegmentationAgreement,
    WorstGroupAccuracy,
    energy_pointing_game,
    localization_iou,
    on_object_energy,
    pointing_game,
)

# class, options, function, is it differentiable
TABLE = {
    "energy": (EnergyPointingGame, {}, energy_pointing_game, True),
    "energy of the program": (
        EnergyPointingGame,
        {"min_energy": 1e-7, "undefined": "zero"},
        energy_pointing_game,
        True,
    ),
    "iou": (LocalizationIoU, {}, localization_iou, False),
    "iou at 0.2": (LocalizationIoU, {"threshold": 0.2}, localization_iou, False),
    "on object": (OnObjectEnergy, {}, on_object_energy, True),
    "pointing": (PointingGame, {"tolerance": 1}, pointing_game, False),
}
every_class = pytest.mark.parametrize(
    ("kind", "options", "function", "differentiable"), TABLE.values(), ids=TABLE
)


def arguments(kind, images):
    return images if kind is OnObjectEnergy else images[:2]


def fill(metric, images, cuts=(0, 4, 11)):
    for start, stop in pairwise(cuts):
        metric.update(*(part[start:stop] for part in arguments(type(metric), images)))
    return metric


def test_every_class_is_in_the_table():
    exported = {v for v in vars(metrics).values() if isinstance(v, type) and issubclass(v, Metric)}
    # What `evaluate` reports, and what is around one of those.
    entered = {
        e.kind for e in MAP_METRICS.values() if e.kind.__module__.startswith("explainguide.")
    }
    assert exported == entered | {Robustness}
    # Several scores at once, or no mean over images: each has a file of its own.
    entered -= {SegmentationAgreement, IoUCurve, PixelAveragePrecision, WorstGroupAccuracy}
    # Given more than maps and masks: test_metrics_perturbation.py and its neighbours.
    entered = {
        k for k in entered if not {"model", "explain"} & signature(k.update).parameters.keys()
    }
    entered -= {GridPointingGame}  # of maps and cells: test_metrics_grid.py
    assert entered == {row[0] for row in TABLE.values()}


@every_class
@pytest.mark.parametrize("cuts", [(0, 11), (0, 4, 11), range(12), (0, 0, 11)])
def test_equals_the_mean_of_the_function(kind, options, function, differentiable, images, cuts):
    scores = function(*arguments(kind, images), **options)
    metric = fill(kind(**options), images, cuts)
    value = metric.compute()
    torch.testing.assert_close(value, scores.nanmean(), rtol=1e-13, atol=0)
    assert value.shape == ()
    excluded = function(*arguments(kind, images), **{**options, "undefined": "exclude"})
    assert metric.undefined == int(excluded.isnan().sum()) > 0


@every_class
def test_class_facts(kind, options, function, differentiable, images):
    assert kind.is_differentiable is differentiable
    assert kind.higher_is_better is True
    assert kind.full_state_update is False
    assert (kind.plot_lower_bound, kind.plot_upper_bound) == (0.0, 1.0)
    maps, *masks = (part[:3] for part in arguments(kind, images))
    metric = kind(**options)
    assert metric(maps.clone().requires_grad_(), *masks).requires_grad is differentiable
    # The accumulated state holds no graph, or memory would grow with every step.
    assert not any(state.requires_grad for state in metric.metric_state.values())
    # higher_is_better: evidence in the mask beats evidence outside it.
    full = torch.ones(1, 2, 2)
    mask = torch.tensor([[[True, False], [False, False]]])
    boxes = [full] if kind is OnObjectEnergy else []
    assert kind(**options)(mask * full, mask, *boxes) > kind(**options)(full, mask, *boxes)


@every_class
def test_full_state_update_is_not_needed(kind, options, function, differentiable, images):
    """What `full_state_update = False` claims: batch value and total agree with the slow way."""

    class Slow(kind):
        full_state_update = True

    fast, slow = kind(**options), Slow(**options)
    for start, stop in ((0, 3), (3, 11)):
        batch = [part[start:stop] for part in arguments(kind, images)]
        torch.testing.assert_close(fast(*batch), slow(*batch))
    torch.testing.assert_close(fast.compute(), slow.compute())
    assert fast.undefined == slow.undefined


@every_class
def test_reset_clone_and_pickle(kind, options, function, differentiable, images):
    metric = fill(kind(**options), images)
    value, undefined = metric.compute(), metric.undefined
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert copy.compute() == value
        assert copy.undefined == undefined
        fill(copy, images)
        torch.testing.assert_close(copy.compute(), value)
        assert copy.undefined == 2 * undefined
    metric.reset()
    copy = pickle.loads(pickle.dumps(metric))
    torch.testing.assert_close(copy.metric_state, metric.metric_state)
    fill(metric, images)
    assert metric.compute() == value
    assert metric.undefined == undefined


@every_class
def test_undefined_belongs_to_compute(kind, options, function, differentiable, images):
    metric = kind(**options)
    name = kind.__name__
    with pytest.raises(GuidanceError, match=rf"^{name}\.undefined: compute\(\) has not run"):
        _ = metric.undefined
    fill(metric, images).compute()
    assert isinstance(metric.undefined, int)
    metric(*arguments(kind, images))
    with pytest.raises(GuidanceError, match=r"Call compute\(\) first"):
        _ = metric.undefined
    metric.compute()
    metric.reset()
    with pytest.raises(GuidanceError):
        _ = metric.undefined


@every_class
def test_counts_are_synchronised(kind, options, function, differentiable, images):
    """As if a second process held the same images."""
    alone = fill(kind(**options), images)
    both = kind(
        **options,
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda state, group: [state, state],
    )
    fill(both, images)
    torch.testing.assert_close(both.compute(), alone.compute())
    assert both.undefined == 2 * alone.undefined
    fill(both, images)  # the states are this process's own again
    torch.testing.assert_close(both.compute(), alone.compute())
    assert both.undefined == 4 * alone.undefined


@every_class
def test_nothing_defined_gives_nan(kind, options, function, differentiable):
    shape = (2, 3, 3)
    batch = [-torch.ones(shape), torch.zeros(shape), torch.ones(shape)]
    metric = kind(**{**options, "undefined": "exclude"})
    metric.update(*arguments(kind, batch))
    assert metric.compute().isnan()
    assert metric.undefined == 2
    metric = kind(**{**options, "undefined": "zero"})
    metric.update(*arguments(kind, batch))
    assert metric.compute() == 0
    assert metric.undefined == 2


@every_class
def test_dtypes(kind, options, function, differentiable, images):
    maps, *masks = arguments(kind, images)
    for dtype, out in ((torch.float32, torch.float32), (torch.float16, torch.float32)):
        metric = kind(**options)
        metric.update(maps.to(dtype), *masks)
        assert metric.compute().dtype == out
        assert {state.dtype for state in metric.metric_state.values()} == {
            torch.float64,
            torch.int64,
        }
    metric = kind(**options)
    metric.set_dtype(torch.float32)  # for devices without float64
    metric.update(maps, *masks)
    torch.testing.assert_close(
        metric.compute(), function(maps, *masks, **options).nanmean(), rtol=1e-6, atol=0
    )
    assert torch.float64 not in {state.dtype for state in metric.metric_state.values()}


@every_class
def test_errors_name_the_update(kind, options, function, differentiable, images):
    maps, *masks = arguments(kind, images)
    with pytest.raises(ShapeError, match=rf"^{kind.__name__}\.update: mask has dtype torch.int64"):
        kind(**options).update(maps, *(mask.long() for mask in masks))
    with pytest.raises(OptionError, match=rf"^{kind.__name__}: unknown undefined='drop'"):
        kind(**{**options, "undefined": "drop"})
    with pytest.raises(ValueError, match="Unexpected keyword"):
        kind(**options, treshold=0.5)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (EnergyPointingGame, {"min_energy": -1}, r"^EnergyPointingGame: min_energy is -1\."),
        (OnObjectEnergy, {"min_energy": math.nan}, r"^OnObjectEnergy: min_energy is nan\."),
        (PointingGame, {"tolerance": -1}, r"^PointingGame: tolerance is -1\."),
        (LocalizationIoU, {"threshold": 1.0}, r"^LocalizationIoU: threshold has the value 1\.0\."),
        (LocalizationIoU, {"threshold": "fitted"}, r"unknown threshold='fitted'\. Use 'fit'"),
        (LocalizationIoU, {"threshold": 0.5, "grid": [0.5]}, r"grid was given with threshold=0\.5"),
        (LocalizationIoU, {"threshold": "fit", "grid": []}, r"grid is empty"),
        (LocalizationIoU, {"threshold": "fit", "grid": [0.5, 2]}, r"grid has the value 2\."),
    ],
)
def test_options_are_checked_when_built(kind, options, text):
    with pytest.raises(OptionError, match=text):
        kind(**options)


def test_a_collection_keeps_metrics_apart_that_agree_at_first():
    """torchmetrics merges metrics whose states are equal after one batch, and updates only one."""

    def build():
        return {
            "epg": EnergyPointingGame(),
            "epg of the program": EnergyPointingGame(min_energy=1e-7),
            "pointing": PointingGame(),
            "pointing 1": PointingGame(tolerance=1),
            "iou half": LocalizationIoU(),
            "iou high": LocalizationIoU(threshold=0.9),
            "fit a": LocalizationIoU(threshold="fit", grid=[0.1, 0.5]),
            "fit b": LocalizationIoU(threshold="fit", grid=[0.2, 0.6]),
        }

    mask = torch.tensor([[[True, False, False]]])
    first = torch.tensor([[[1.0, 0.0, 0.0]]])  # all score 1
    second = torch.tensor([[[0.52, 1.0, 0.55]]])
    collection, alone = MetricCollection(build()), build()
    for attribution in (first, second, second * 1e-9):
        collection.update(attribution, mask)
        for metric in alone.values():
            metric.update(attribution, mask)
    values = collection.compute()
    assert values == {name: metric.compute() for name, metric in alone.items()}
    assert len({float(value) for value in values.values()}) > 4


def test_repr_names_the_options():
    assert repr(PointingGame(tolerance=15)) == "PointingGame(tolerance=15)"
    assert repr(LocalizationIoU(threshold=0.2)) == "LocalizationIoU(threshold=0.2)"
    assert repr(EnergyPointingGame(undefined="zero")) == (
        "EnergyPointingGame(min_energy=0.0, undefined='zero')"
    )


def test_a_collection_runs_them_together(images):
    maps, masks, boxes = images
    collection = MetricCollection([EnergyPointingGame(), LocalizationIoU(), OnObjectEnergy()])
    for half in (slice(0, 4), slice(4, 11)):
        collection(attribution=maps[half], mask=masks[half], box_mask=boxes[half])
    torch.testing.assert_close(
        collection.compute(),
        {
            "EnergyPointingGame": energy_pointing_game(maps, masks).nanmean(),
            "LocalizationIoU": localization_iou(maps, masks).nanmean(),
            "OnObjectEnergy": on_object_energy(maps, masks, boxes).nanmean(),
        },
    )
    assert collection["EnergyPointingGame"].undefined == 2
