"""Images that mean nothing to a metric: counted by their kind; broken ones never averaged in, and told."""

import math
import warnings

import pytest
import torch
from torchmetrics import MetricCollection

from explainguide.errors import ExplainGuideWarning
from explainguide.evaluation.map_scores import MapScores, over_layers
from explainguide.metrics import (
    EnergyPointingGame,
    IoUCurve,
    LocalizationIoU,
    OnObjectEnergy,
    PointingGame,
    SegmentationAgreement,
    energy_pointing_game,
    iou_curve,
    localization_iou,
    on_object_energy,
    pointing_game,
    segmentation_agreement,
)

# class, its scores of each image, the kind that it knows, how many of the eleven images are of it
TABLE = {
    "energy": (EnergyPointingGame, energy_pointing_game, "without_positive_part", 2),
    "object": (OnObjectEnergy, on_object_energy, "without_positive_part_in_box", 2),
    "pointing": (PointingGame, pointing_game, "without_positive_part", 2),
    "iou": (LocalizationIoU, localization_iou, "empty", 1),
    "curve": (IoUCurve, lambda *a, **o: iou_curve(*a, **o).area, "empty", 1),
    "segmentation": (
        SegmentationAgreement,
        lambda *a, **o: segmentation_agreement(*a, **o).pixel_accuracy,
        "constant",
        2,
    ),
}
every_metric = pytest.mark.parametrize(
    ("kind", "function", "reason", "count"), TABLE.values(), ids=TABLE
)


def given(kind, images):
    return images if kind is OnObjectEnergy else images[:2]


def number(result):
    """The score of `compute` that the function gives of each image."""
    if isinstance(result, dict):
        return result["area"] if "area" in result else result["pixel_accuracy"]
    return result


@pytest.fixture
def broken(images):
    """Four of the eleven images are broken: the map, at one end or the other, or the mask."""
    maps, masks, boxes = images
    masks = masks.double()
    maps[0, 0, 0], maps[1, 5, 8], maps[2, 3, 3] = math.nan, math.inf, -math.inf
    masks[3, 2, 2] = math.nan
    maps[6, 0, 0] = -math.inf  # has no positive part either: it is of one kind alone
    return maps, masks, boxes


@every_metric
def test_kinds_are_counted(kind, function, reason, count, images):
    metric = kind()
    metric.update(*given(kind, images))
    metric.compute()
    assert metric.undefined_kinds == {"not_finite": 0, reason: count}
    assert metric.undefined == count
    assert metric.undefined == int(function(*given(kind, images)).isnan().sum())


@every_metric
@pytest.mark.parametrize("undefined", ["exclude", "zero"])
def test_broken_images_are_left_out(kind, function, reason, count, broken, undefined):
    scores = function(*given(kind, broken), undefined=undefined)
    bad = [0, 1, 2, 3, 6]
    assert scores[bad].isnan().all()
    rest = [i for i in range(11) if i not in bad]
    fine = tuple(part[rest] for part in broken)
    torch.testing.assert_close(
        scores[rest], function(*given(kind, fine), undefined=undefined), equal_nan=True
    )
    metric, without = kind(undefined=undefined), kind(undefined=undefined)
    for half in (slice(0, 2), slice(2, 11)):
        metric.update(*(part[half] for part in given(kind, broken)))
    without.update(*given(kind, fine))
    text = (
        rf"^{kind.__name__}\.compute: of 11 images, 5 have a map or mask that is not finite\. attr"
    )
    with pytest.warns(ExplainGuideWarning, match=text) as caught:
        value = metric.compute()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    torch.testing.assert_close(number(value), number(without.compute()), rtol=1e-13, atol=0)
    torch.testing.assert_close(number(value), scores.nanmean(), rtol=1e-12, atol=0)
    left = metric.undefined_kinds[reason]
    assert metric.undefined_kinds == {"not_finite": 5, reason: left}
    # The seventh has no positive part, but broken it is of one kind alone.
    assert left == without.undefined_kinds[reason] == count - reason.startswith("without")
    assert metric.undefined == 5 + left


@every_metric
def test_all_broken_gives_nan(kind, function, reason, count):
    maps, mask = torch.full((2, 2, 2), math.nan), torch.ones(2, 2, 2)
    for undefined in ("exclude", "zero"):
        metric = kind(undefined=undefined)
        metric.update(*given(kind, (maps, mask, mask)))
        with pytest.warns(
            ExplainGuideWarning, match="of 2 images, 2 have a map or mask that is not"
        ):
            assert number(metric.compute()).isnan()


@every_metric
def test_forward_is_silent_and_compute_tells(kind, function, reason, count, broken):
    metric = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(2):
            metric(*(part[i * 5 : i * 5 + 5] for part in given(kind, broken)))
    with pytest.warns(ExplainGuideWarning, match="of 10 images, 5 have"):
        metric.compute()
    assert metric.undefined_kinds["not_finite"] == 5


def test_an_evaluation_counts_and_tells_them(broken):
    maps, masks, boxes = broken
    scores = MapScores(["epg", "pxap", "iou_curve"], threshold=0.5, device=maps.device)
    given = {"region": masks, "boxes": boxes.double(), "segmentation": None}
    scores.update(maps, given, torch.zeros(11, dtype=torch.bool), multilabel=False)
    with pytest.warns(ExplainGuideWarning) as caught:
        found = over_layers({"layer": scores})
    assert [str(w.message).partition(".")[0] for w in caught] == [
        *("EnergyPointingGame", "PixelAveragePrecision", "IoUCurve")
    ]
    assert list(found) == ["epg", "pxap", "iou_curve_area", "epg_undefined"]
    assert all(math.isfinite(value) for value in found.values())
    assert found["epg_undefined"] == 6


def test_a_broken_pixel_outside_the_box_breaks_the_image():
    maps, box = torch.tensor([[[1.0, math.nan]]]), torch.tensor([[[True, False]]])
    assert on_object_energy(maps, box, box).isnan()
    metric = OnObjectEnergy()
    metric.update(maps.half(), box, box)
    with pytest.warns(ExplainGuideWarning, match="of 1 images, 1 have"):
        metric.compute()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_finite_map_whose_sum_is_beyond_its_dtype(sign):
    """In float32 the sum is infinite, and a share of infinity would be 0."""
    maps = torch.full((1, 4, 4), sign * 3e38)
    mask = torch.ones(1, 4, 4)
    assert energy_pointing_game(maps, mask).isnan()
    metric = EnergyPointingGame()
    metric.update(maps, mask)
    if sign == 1:
        with pytest.warns(ExplainGuideWarning, match="of 1 images, 1 have"):
            metric.compute()
    metric.compute()
    assert metric.undefined_kinds["not_finite"] == (sign == 1)
    assert energy_pointing_game(maps.double(), mask).nan_to_num(-1) == sign


def test_a_broken_image_does_not_break_the_gradient_of_others():
    maps = torch.tensor([[[1.0, math.inf]], [[1.0, 3.0]]], requires_grad=True)
    mask = torch.tensor([[[True, False]], [[True, False]]])
    scores = energy_pointing_game(maps, mask)
    scores[1].backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad[1], torch.tensor([[3 / 16, -1 / 16]]))


def test_a_collection_keeps_the_kinds(broken):
    maps, masks, _ = broken
    metrics = {"a": EnergyPointingGame(), "b": EnergyPointingGame(), "c": PointingGame()}
    collection = MetricCollection(metrics)
    for half in (slice(0, 4), slice(4, 11)):
        collection.update(maps[half], masks[half])
    with pytest.warns(ExplainGuideWarning) as caught:
        collection.compute()
    assert len(caught) == 3
    kinds = {"not_finite": 5, "without_positive_part": 1}
    assert all(metric.undefined_kinds == kinds for metric in collection.values())
