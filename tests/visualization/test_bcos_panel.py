"""The panel of a B-cos network: the image, colours on white, blue and red contributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from explainguide.errors import AnnotationError, OptionError, ShapeError
from explainguide.visualization import bcos_panel

from .samples import Mistake, bump, check_mistake, images, nan_map, render


def explanations(count: int = 2) -> Tensor:
    return torch.rand(count, 4, 40, 60, generator=torch.Generator().manual_seed(1))


def shown(figure, column: int, row: int = 0) -> np.ndarray:
    return figure.axes[3 * row + column].images[0].get_array()


def test_bcos_panel_has_three_columns_and_a_row_an_image() -> None:
    maps = bump().expand(2, 40, 60)
    figure = bcos_panel(
        images(), explanations(), maps, titles=["cat", "dog"], captions=["sum 1", "sum 2"]
    )
    assert len(figure.axes) == 2 * 3 + 1
    words = {text.get_text() for text in figure.texts}
    assert {"image", "explanation", "contributions", "cat", "dog", "sum 1", "sum 2"} <= words
    assert "99.5" in figure.axes[-1].get_xlabel()
    assert figure.get_label() == (
        "2 images, one a row; columns: image, explanation, contributions."
    )
    assert render(figure).min() < 0.1


def test_bcos_panel_lays_the_explanation_on_white() -> None:
    explanation = torch.zeros(1, 4, 40, 60)
    explanation[0, 0] = 1  # red
    explanation[0, 3, :20] = 0.25
    figure = bcos_panel(images(1), explanation, bump()[None])
    found = shown(figure, 1)
    np.testing.assert_allclose(found[:20], np.broadcast_to([1, 0.75, 0.75], (20, 60, 3)), atol=1e-6)
    assert (found[20:] == 1).all()
    assert np.array_equal(shown(figure, 0), images(1)[0].permute(1, 2, 0).numpy())


def test_bcos_panel_colours_contributions_on_both_sides_of_zero() -> None:
    found = shown(bcos_panel(images(1), explanations(1), bump()[None]), 2)
    red, white, blue = found[20, 10], found[0, 0], found[20, 50]
    np.testing.assert_allclose(red, [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(white, [1, 1, 1], atol=0.02)
    np.testing.assert_allclose(blue, [0, 0, 1], atol=0.02)
    opposite = shown(bcos_panel(images(1), explanations(1), -bump()[None]), 2)
    np.testing.assert_allclose(opposite[..., ::-1], found, atol=0.02)


def test_bcos_panel_scales_each_map_by_its_percentile() -> None:
    values = torch.linspace(-1, 1, 2400).reshape(40, 60)
    maps = torch.stack([values, 1000 * values])
    figure = bcos_panel(images(), explanations(), maps, percentile=50)
    assert np.array_equal(shown(figure, 2, 0), shown(figure, 2, 1))
    full = (shown(figure, 2) == shown(figure, 2)[-1, -1]).all(-1).mean()
    assert full == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("contributions", [torch.zeros(1, 40, 60), 1e-30 * torch.ones(1, 40, 60)])
def test_bcos_panel_of_a_dead_or_tiny_map(contributions: Tensor) -> None:
    found = shown(bcos_panel(images(1), 0 * explanations(1), contributions), 2)
    assert np.isfinite(found).all()
    assert (found == found[0, 0]).all()


def test_bcos_panel_of_a_map_with_a_single_place() -> None:
    single = torch.zeros(1, 40, 60)
    single[0, 3, 4] = 1
    found = shown(bcos_panel(images(1), explanations(1), single), 2)
    np.testing.assert_allclose(found[3, 4], [1, 0, 0], atol=0.02)


def test_bcos_panel_draws_boxes_in_every_column() -> None:
    boxes = [torch.tensor([[5.0, 5, 30, 30]])]
    plain = bcos_panel(images(1), explanations(1), bump()[None])
    boxed = bcos_panel(images(1), explanations(1), bump()[None], boxes=boxes)
    for before, after in zip(plain.axes[:3], boxed.axes[:3], strict=True):
        assert len(after.patches) == len(before.patches) + 2
    assert boxed.get_label().endswith("; boxes outlined.")


XYWH = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYWH", canvas_size=(40, 60))
MAPS = bump()[None]
MISTAKES: list[Mistake] = [
    (lambda: bcos_panel(images(0), explanations(0), []), ShapeError, ["0 images"]),
    (lambda: bcos_panel(images(1), explanations(2), MAPS), ShapeError, ["explanations has 2", "1 images"]),
    (lambda: bcos_panel(images(1), explanations(1), MAPS, titles=[]), ShapeError, ["titles has 0"]),
    (lambda: bcos_panel(images(1), explanations(1)[:, :3], MAPS), ShapeError, ["explanations[0]", "(3, 40, 60)", "to_rgba", "(4, H, W)"]),
    (lambda: bcos_panel(images(1), 2 * explanations(1), MAPS), OptionError, ["explanations[0]", "[0, 1]"]),
    (lambda: bcos_panel(images(1), explanations(1)[..., :20], MAPS), ShapeError, ["explanations[0]", "(4, 40, 20)", "(3, 40, 60)"]),
    (lambda: bcos_panel(images(1), explanations(1), MAPS[..., :20]), ShapeError, ["contributions[0]", "(40, 20)"]),
    (lambda: bcos_panel(images(1), explanations(1), [nan_map()]), OptionError, ["contributions[0]", "3 of 2400"]),
    (lambda: bcos_panel(255 * images(1), explanations(1), MAPS), OptionError, ["images[0]", "Divide it by 255"]),
    (lambda: bcos_panel(images(1), explanations(1), MAPS, percentile=0.99), OptionError, ["percentile is 0.99", "[50, 100]"]),
    (lambda: bcos_panel(images(1), explanations(1), MAPS, boxes=[XYWH]), AnnotationError, ["boxes[0]", "XYWH"]),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bcos_panel_refuses(mistake: Mistake) -> None:
    check_mistake(mistake, {"bcos_panel"})
