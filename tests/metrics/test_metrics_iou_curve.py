"""The IoU curve is the IoU at each threshold, by the slow reference, and its area the mean height."""

import math
from itertools import pairwise

import pytest
import torch

from explainguide.errors import ExplainGuideWarning, OptionError, ShapeError
from explainguide.metrics import IoUCurve, LocalizationIoU, iou_curve, localization_iou

GRID = [i / 20 for i in range(20)]


@pytest.mark.parametrize("thresholds", [None, (0.1, 0.2, 0.7), [0, 0.99]])
def test_it_is_the_iou_at_each_threshold(images, reference, thresholds):
    maps, masks, _ = images
    grid = list(thresholds or GRID)
    rows = [
        [reference.localization_iou(a.tolist(), m.tolist(), t) for t in grid]
        for a, m in zip(maps, masks, strict=True)
    ]
    want = torch.tensor([[math.nan if v is None else v for v in r] for r in rows]).double()
    found = iou_curve(maps, masks, thresholds=thresholds)
    torch.testing.assert_close(found.values, want, rtol=1e-6, atol=0, equal_nan=True)
    assert found.thresholds.tolist() == grid
    pieces = [
        (t - s) * (a + b) / 2
        for (s, t), (a, b) in zip(pairwise(grid), pairwise(want.T), strict=True)
    ]
    area = sum(pieces) / (grid[-1] - grid[0])
    torch.testing.assert_close(found.area, area, rtol=1e-6, atol=1e-12, equal_nan=True)

    metric = IoUCurve(thresholds=thresholds)
    for start, stop in ((0, 4), (4, 4), (4, 11)):
        metric.update(maps[start:stop], masks[start:stop])
    result = metric.compute()
    assert list(result) == ["thresholds", "values", "area"]
    torch.testing.assert_close(result["values"], found.values.nanmean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(result["area"], found.area.nanmean(), rtol=1e-12, atol=0)
    assert result["area"].shape == ()
    assert metric.undefined_kinds == {"not_finite": 0, "empty": 1}
    batch = metric(maps[:2], masks[:2])
    torch.testing.assert_close(batch["area"], found.area[:2].mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        metric.compute()["area"], torch.cat([found.area, found.area[:2]]).nanmean()
    )


def test_by_the_maximum_a_map_keeps_its_floor():
    attribution = torch.tensor([[[1.0, 0.9], [0.8, 0.6]]])
    mask = torch.tensor([[[True, False], [False, False]]])
    grid = (0.5, 0.7, 0.95)
    by_range = iou_curve(attribution, mask, thresholds=grid)
    torch.testing.assert_close(by_range.values, torch.tensor([[1 / 2, 1 / 2, 1.0]]))
    by_peak = iou_curve(attribution, mask, thresholds=grid, normalize="max")
    torch.testing.assert_close(by_peak.values, torch.tensor([[1 / 4, 1 / 3, 1.0]]))
    # A negative value is none, by both.
    torch.testing.assert_close(
        iou_curve(attribution - 0.7, mask, thresholds=grid, normalize="max").values,
        localization_iou_at(attribution - 0.7, mask, grid),
    )


def localization_iou_at(attribution, mask, grid):
    return torch.stack([localization_iou(attribution, mask, threshold=t) for t in grid], 1)


@pytest.mark.parametrize("normalize", ["minmax", "max"])
def test_scale_does_not_matter_and_zero_maps_score_zero(normalize):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    masks = torch.rand(3, 6, 6, generator=generator) > 0.5
    plain = iou_curve(maps, masks, normalize=normalize)
    torch.testing.assert_close(iou_curve(maps * 1e5, masks, normalize=normalize), plain)
    assert plain.area.min() > 0
    dead = iou_curve(-maps.abs(), masks, normalize=normalize)
    assert torch.equal(dead.values, torch.zeros_like(dead.values))


@pytest.mark.parametrize("undefined", ["exclude", "zero"])
def test_undefined_and_broken_images(undefined):
    maps = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[math.nan, 1.0]], [[-math.inf, 1.0]]])
    masks = torch.tensor([[[True, False]], [[False, False]], [[True, True]], [[True, True]]])
    found = iou_curve(maps, masks, undefined=undefined)
    assert found.area.isnan().tolist() == [False, undefined == "exclude", True, True]
    metric = IoUCurve(undefined=undefined)
    metric.update(maps, masks)
    with pytest.warns(ExplainGuideWarning, match=r"^IoUCurve\.compute: of 4 images, 2 have a map"):
        result = metric.compute()
    assert result["area"] == pytest.approx(1.0 if undefined == "exclude" else 0.5)
    assert metric.undefined_kinds == {"not_finite": 2, "empty": 1}
    assert metric.undefined == 3
    empty = IoUCurve()
    empty.update(maps[:0], masks[:0])
    assert empty.compute()["area"].isnan()


def test_it_agrees_with_a_fit_over_the_same_grid(images):
    maps, masks, _ = images
    fit, curve = LocalizationIoU(threshold="fit"), IoUCurve()
    for metric in (fit, curve):
        metric.update(maps.half(), masks)
    result = curve.compute()
    assert result["values"].dtype == torch.float32
    assert result["values"].max() == fit.compute()
    best = int(result["values"].argmax())
    assert float(result["thresholds"][best]) == pytest.approx(fit.best_threshold)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"thresholds": [0.5]},
            r"thresholds is \[0\.5\]\. A curve needs two; LocalizationIoU takes one",
        ),
        ({"thresholds": 0.5}, r"thresholds is 0\.5\. A curve needs two"),
        ({"thresholds": "fit"}, r"thresholds is 'fit'\. A curve needs two"),
        ({"thresholds": [0.2, 1.0]}, r"thresholds has the value 1\.0\."),
        (
            {"thresholds": [0.5, 0.2, 0.5]},
            r"thresholds are .* do not ascend\. Use \(0\.2, 0\.5\)\.",
        ),
        ({"normalize": "mean"}, r"unknown normalize 'mean'\..*'minmax', 'max' are allowed"),
        ({"undefined": "zeros"}, r"unknown undefined='zeros'\. Did you mean 'zero'"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(OptionError, match=rf"^IoUCurve: {text}"):
        IoUCurve(**options)
    with pytest.raises(OptionError, match=rf"^iou_curve: {text}"):
        iou_curve(torch.rand(1, 2, 2), torch.ones(1, 2, 2), **options)


def test_mistakes_and_devices():
    with pytest.raises(ShapeError, match=r"^IoUCurve\.update: attribution is a list\."):
        IoUCurve().update([1.0], torch.ones(1, 2, 2))
    maps, masks = torch.rand(2, 5, 5, device="meta"), torch.ones(2, 5, 5, device="meta")
    assert iou_curve(maps, masks).area.device.type == "meta"
    assert repr(IoUCurve(thresholds=(0.1, 0.2))) == (
        "IoUCurve(thresholds=(0.1, 0.2), normalize='minmax')"
    )
