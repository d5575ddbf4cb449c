"""The fitted threshold is the best of the grid, on the images it was fitted on."""

import math

import pytest
import torch

from explainguide.errors import ExplainGuideWarning, GuidanceError
from explainguide.metrics import LocalizationIoU, localization_iou


@pytest.mark.parametrize("grid", [None, (0.1, 0.35, 0.8), [0.5]])
def test_fit_is_the_best_of_the_grid(images, grid):
    maps, masks, _ = images
    fit = LocalizationIoU(threshold="fit", grid=grid)
    for half in (slice(0, 4), slice(4, 11)):
        fit.update(maps[half], masks[half])
    candidates = [i * 5 / 100 for i in range(20)] if grid is None else list(grid)
    means = [float(localization_iou(maps, masks, threshold=t).nanmean()) for t in candidates]
    assert float(fit.compute()) == pytest.approx(max(means), rel=1e-12)
    assert fit.best_threshold == candidates[means.index(max(means))]
    assert fit.undefined == 1

    test = LocalizationIoU(threshold=fit.best_threshold)
    test.update(maps, masks)
    torch.testing.assert_close(test.compute(), fit.compute())
    assert test.best_threshold == fit.best_threshold


def test_of_equal_thresholds_the_lowest_is_chosen():
    fit = LocalizationIoU(threshold="fit", grid=(0.2, 0.4, 0.6))
    fit.update(torch.tensor([[[1.0, 0.7, 0.0]]]), torch.tensor([[[True, True, False]]]))
    assert fit.compute() == 1
    assert fit.best_threshold == 0.2


def test_best_threshold_belongs_to_compute(images):
    maps, masks, _ = images
    fit = LocalizationIoU(threshold="fit")
    with pytest.raises(GuidanceError, match=r"^LocalizationIoU\.best_threshold: compute\(\) has"):
        _ = fit.best_threshold
    fit.update(maps, masks)
    fit.compute()
    assert isinstance(fit.best_threshold, float)
    fit.update(maps, masks)
    with pytest.raises(GuidanceError, match=r"since the last update\. Call compute\(\) first"):
        _ = fit.best_threshold


def test_an_undefined_image_fits_no_threshold():
    fit = LocalizationIoU(threshold="fit")
    fit.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    assert fit.compute().isnan()
    assert math.isnan(fit.best_threshold)
    assert fit.undefined_kinds == {"not_finite": 0, "empty": 1}


def test_a_broken_map_fits_no_threshold():
    fit = LocalizationIoU(threshold="fit")
    fit.update(torch.full((1, 2, 2), math.nan), torch.zeros(1, 2, 2))
    with pytest.warns(ExplainGuideWarning, match=r"^LocalizationIoU\.compute: of 1 images, 1 have"):
        assert fit.compute().isnan()
    assert math.isnan(fit.best_threshold)
    assert fit.undefined_kinds == {"not_finite": 1, "empty": 0}


def test_fit_is_synchronised():
    """The grid's sums are added before the best is chosen: not the mean of two choices."""
    grid = (0.3, 0.7)
    here = torch.tensor([[[1.0, 0.5, 0.0]]])
    mask = torch.tensor([[[True, True, False]]])
    fit = LocalizationIoU(
        threshold="fit",
        grid=grid,
        distributed_available_fn=lambda: True,
        # The other process: three images of which only the higher threshold is right.
        dist_sync_fn=lambda state, group: [
            state,
            torch.tensor([1.5, 3.0]) if state.is_floating_point() else state * 3,
        ],
    )
    fit.update(here, mask)
    # 0.3: (1 + 1.5) / 4; 0.7: (0.5 + 3) / 4.
    assert fit.compute() == pytest.approx(0.875)
    assert fit.best_threshold == 0.7
