"""Pixel average precision against what COMET's program computed, and Choe's sum."""

import pytest
import torch

from explainguide.metrics import PixelAveragePrecision, pixel_average_precision

from .reader import load

CASES = {
    "comet_thresholds_0.05_step(1..19)/20": {"definition": "comet"},
    "comet_thresholds_1..39/40": {"definition": "comet", "steps": 40},
    "standard_PxAP_0.001(own impl of Choe et al.)": {"definition": "choe"},
}


@pytest.fixture(scope="module")
def golden():
    tensors, described = load("07_comet", "comet")
    kept = tensors["pxap/gt"] != 255  # the program leaves these pixels out
    maps, masks = tensors["pxap/maps"][kept], tensors["pxap/gt"][kept] == 1
    return maps[None, None], masks[None, None], described["pxap"]


@pytest.mark.parametrize(("key", "options"), CASES.items(), ids=CASES)
def test_pxap_of_the_programs(golden, key, options):
    maps, masks, expected = golden
    assert 100 * float(pixel_average_precision(maps, masks, **options)) == pytest.approx(
        expected[key], abs=1e-9
    )
    metric = PixelAveragePrecision(**options)
    for part in (slice(0, 700), slice(700, None)):
        metric.update(maps[..., part], masks[..., part])
    assert 100 * float(metric.compute()) == pytest.approx(expected[key], abs=1e-9)


def test_the_exact_value_is_near_that_of_a_thousand_thresholds(golden):
    maps, masks, expected = golden
    exact = 100 * float(pixel_average_precision(maps, masks))
    choe = expected["standard_PxAP_0.001(own impl of Choe et al.)"]
    assert exact == pytest.approx(choe, abs=0.02)
    assert exact != pytest.approx(choe, abs=1e-3)
    # COMET's dropped pixels and its artificial point are worth five points here.
    assert exact - expected["comet_thresholds_0.05_step(1..19)/20"] > 5


def test_the_bound_holds_on_the_golden_maps(golden):
    maps, masks, _ = golden
    exact = float(pixel_average_precision(maps, masks))
    metric = PixelAveragePrecision(exact_pixels=0, bits=12)
    metric.update(maps, masks)
    assert 0 < abs(float(metric.compute()) - exact) <= metric.error < 0.05
    assert torch.isfinite(torch.tensor(metric.bounds)).all()
