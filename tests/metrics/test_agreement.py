"""Segmentation agreement equals the slow reference and scikit-learn, pooled however data is split."""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics import MetricCollection

from explainguide.errors import ExplainGuideWarning, GuidanceError, OptionError, ShapeError
from explainguide.metrics import EnergyPointingGame, SegmentationAgreement, segmentation_agreement

KEYS = ["pixel_accuracy", "miou", "map"]


@pytest.fixture
def maps_and_masks(images):
    """Of the eleven images, two are constant maps; ties are added to a third."""
    maps, masks, _ = images
    maps[0] = (maps[0] * 2).round()
    return maps, masks


def of_reference(reference, maps, masks):
    return [
        reference.segmentation_agreement(a.tolist(), m.tolist())
        for a, m in zip(maps, masks, strict=True)
    ]


def fill(metric, maps, masks, cuts=(0, 4, 11)):
    for start, stop in pairwise(cuts):
        metric.update(maps[start:stop], masks[start:stop])
    return metric


def test_the_function_equals_the_reference(maps_and_masks, reference):
    maps, masks = maps_and_masks
    rows = []
    for counts, precision in of_reference(reference, maps, masks):
        if counts is None:
            rows.append([math.nan] * 3)
        else:
            accuracy = (counts["hit"] + counts["rest"]) / sum(counts.values())
            rows.append([accuracy, reference.miou(counts), precision])
    found = torch.stack(segmentation_agreement(maps, masks), dim=1)
    torch.testing.assert_close(
        found, torch.tensor(rows, dtype=torch.float64), rtol=1e-12, atol=1e-12, equal_nan=True
    )
    assert found.isnan().all(1).tolist() == [i in (7, 8) for i in range(11)]


def test_average_precision_is_that_of_both_decisions(maps_and_masks):
    maps, masks = maps_and_masks
    found = segmentation_agreement(maps, masks).average_precision
    for i in (0, 1, 5, 9, 10):
        unit = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
        right = torch.cat([masks[i].flatten(), ~masks[i].flatten()])
        scores = torch.cat([unit.flatten(), 1 - unit.flatten()])
        expected = average_precision_score(right.numpy(), scores.numpy())
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("cuts", [(0, 11), (0, 4, 11), range(12), (0, 0, 11)])
def test_the_class_pools_pixels(maps_and_masks, reference, cuts):
    maps, masks = maps_and_masks
    defined = [row for row in of_reference(reference, maps, masks) if row[0] is not None]
    total = {key: sum(counts[key] for counts, _ in defined) for key in defined[0][0]}
    metric = fill(SegmentationAgreement(), maps, masks, cuts)
    values = metric.compute()
    assert list(values) == KEYS
    right = total["hit"] + total["rest"]
    expected = [right / sum(total.values()), reference.miou(total)]
    expected.append(sum(precision for _, precision in defined) / len(defined))
    assert [float(v) for v in values.values()] == pytest.approx(expected, rel=1e-12)
    assert metric.undefined == 2
    assert metric.undefined_kinds == {"not_finite": 0, "constant": 2}


def test_constant_maps_can_count_as_wrong_everywhere(maps_and_masks, reference):
    maps, masks = maps_and_masks
    counts = [row[0] for row in of_reference(reference, maps, masks)]
    pixels = maps[0].numel()
    total = {key: sum(c[key] for c in counts if c) for key in counts[0]}
    total["miss"] += pixels * counts.count(None)
    metric = fill(SegmentationAgreement(undefined="zero"), maps, masks)
    values = metric.compute()
    assert float(values["miou"]) == pytest.approx(reference.miou(total), rel=1e-12)
    assert metric.undefined == 2
    scores = segmentation_agreement(maps, masks, undefined="zero")
    torch.testing.assert_close(values["pixel_accuracy"], scores.pixel_accuracy.mean())
    torch.testing.assert_close(values["map"], scores.average_precision.mean())


def test_scale_and_offset_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 8, 8, generator=generator, dtype=torch.float64)
    masks = torch.rand(4, 8, 8, generator=generator) > 0.5
    plain = segmentation_agreement(maps, masks)
    for changed in (maps * 1e-9, maps * 1e6 - 3e8, maps[:, None]):
        for a, b in zip(segmentation_agreement(changed, masks), plain, strict=True):
            torch.testing.assert_close(a, b)
    for score in segmentation_agreement(masks.double(), masks):
        assert torch.equal(score, torch.ones_like(score))


@pytest.mark.parametrize("undefined", ["exclude", "zero"])
def test_a_broken_map_is_not_hidden(undefined):
    maps = torch.tensor([[[1.0, math.nan]], [[1.0, 0.0]], [[math.inf, 0.0]]])
    mask = torch.tensor([[[True, False]]]).expand(3, 1, 2)
    for score in segmentation_agreement(maps, mask, undefined=undefined):
        assert score.isnan().tolist() == [True, False, True]
    metric = SegmentationAgreement(undefined=undefined)
    metric.update(maps, mask)
    with pytest.warns(
        ExplainGuideWarning, match=r"^SegmentationAgreement\.compute: of 3 images, 2 "
    ):
        found = metric.compute()
    alone = segmentation_agreement(maps[1:2], mask[1:2])
    assert list(found.values()) == [score[0] for score in alone]
    assert metric.undefined_kinds == {"not_finite": 2, "constant": 0}


def test_shapes_dtypes_and_devices():
    maps, masks = torch.rand(3, 5, 4), torch.rand(3, 5, 4) > 0.5
    assert segmentation_agreement(maps.half(), masks).miou.dtype == torch.float32
    assert all(score.shape == (0,) for score in segmentation_agreement(maps[:0], masks[:0]))
    # A meta tensor has no values, so whatever would need one on the host raises.
    scores = segmentation_agreement(maps.to("meta"), masks.to("meta"))
    assert {score.device.type for score in scores} == {"meta"}
    metric = SegmentationAgreement()
    metric.set_dtype(torch.float32)  # for devices without float64
    metric.update(maps, masks)
    found = metric.compute()
    assert found["miou"].dtype == torch.float32
    torch.testing.assert_close(found["map"], segmentation_agreement(maps, masks)[2].mean())


def test_counts_are_synchronised(maps_and_masks):
    """As if a second process held the same images."""
    alone = fill(SegmentationAgreement(), *maps_and_masks)
    both = SegmentationAgreement(
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda state, group: [state, state],
    )
    fill(both, *maps_and_masks)
    torch.testing.assert_close(both.compute(), alone.compute())
    assert both.undefined == 2 * alone.undefined


def test_forward_reset_and_pickle(maps_and_masks):
    maps, masks = maps_and_masks
    metric = fill(SegmentationAgreement(), maps, masks)
    value = metric.compute()
    assert pickle.loads(pickle.dumps(metric)).compute() == value
    assert list(metric(maps[:2], masks[:2])) == KEYS
    with pytest.raises(GuidanceError, match=r"^SegmentationAgreement\.undefined: compute\(\) has"):
        _ = metric.undefined
    metric.reset()
    assert fill(metric, maps, masks).compute() == value
    assert repr(metric) == "SegmentationAgreement()"


def test_a_collection_names_the_three_scores(maps_and_masks):
    maps, masks = maps_and_masks
    collection = MetricCollection([EnergyPointingGame(), SegmentationAgreement()])
    collection.update(maps, masks)
    assert set(collection.compute()) == {"EnergyPointingGame", *KEYS}


def test_what_is_refused():
    maps, masks = torch.rand(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"^segmentation_agreement: mask has dtype torch.int64"):
        segmentation_agreement(maps, masks.long())
    with pytest.raises(ShapeError, match=r"^SegmentationAgreement\.update: attribution has shape"):
        SegmentationAgreement().update(maps, masks[:1])
    for call in (SegmentationAgreement, lambda **o: segmentation_agreement(maps, masks, **o)):
        with pytest.raises(OptionError, match=r"unknown undefined='zeros'\. Did you mean 'zero'"):
            call(undefined="zeros")
    with pytest.raises(ValueError, match="Unexpected keyword"):
        SegmentationAgreement(threshold=0.5)


def test_repr_names_the_rule():
    assert repr(SegmentationAgreement()) == "SegmentationAgreement()"
    assert repr(SegmentationAgreement(undefined="zero")) == (
        "SegmentationAgreement(undefined='zero')"
    )
