"""A panel has every image, map, box and text at its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision import tv_tensors

from explainguide.errors import AnnotationError, OptionError, ShapeError
from explainguide.visualization import before_after, panel

from .samples import Mistake, bump, check_mistake, images, nan_map, render

IMAGE, MAPS = images()[0], torch.zeros(2, 40, 60)
XYWH = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYWH", canvas_size=(40, 60))


def cells(figure: Figure) -> list:
    """The axes of the images, row by row; the last axes is the colour bar."""
    return figure.axes[:-1]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_panel_has_one_row_an_image_and_one_column_a_map():
    maps = {"layer3": bump().expand(2, 40, 60), "layer4": bump().expand(2, 1, 40, 60)}
    figure = panel(images(), maps, titles=["cat", "dog"], captions={"layer4": ["EPG 1%", "EPG 2%"]})
    assert len(cells(figure)) == 2 * 3
    for words in ("image", "layer3", "layer4", "cat", "dog", "EPG 1%", "EPG 2%"):
        assert words in texts(figure)
    assert "99.5" in figure.axes[-1].get_xlabel()
    assert figure.get_label() == "2 images, one a row; columns: image, layer3, layer4."


def test_panel_takes_images_and_maps_of_several_sizes():
    figure = panel([images()[0], images(1, 90, 30)[0]], {"a": [bump(), torch.ones(7, 7)]})
    for axes, ratio in zip(cells(figure), [1.5, 1.5, 1 / 3, 1 / 3], strict=True):
        extent = axes.get_window_extent()
        assert extent.width / extent.height == pytest.approx(ratio, rel=1e-3)


def test_first_column_shows_the_image_itself():
    figure = panel(images(1), {"a": bump()[None]})
    shown = cells(figure)[0].images[0].get_array()
    assert np.array_equal(shown, images(1)[0].permute(1, 2, 0).numpy())


def test_nothing_of_a_panel_overlaps():
    long = (
        "a heading of many words that does not fit into the width of one cell, nor into two lines"
    )
    figure = panel(
        images(),
        {long: bump().expand(2, 40, 60), "b": bump().expand(2, 40, 60)},
        titles=[long, "short"],
        captions={"b": [long, long]},
        sign="signed",
    )
    figure.draw_without_rendering()
    parts = [text.get_window_extent() for text in figure.texts]
    parts += [axes.get_window_extent() for axes in cells(figure)]
    parts.append(figure.axes[-1].get_tightbbox())
    for i, part in enumerate(parts):
        assert part.x0 >= figure.bbox.x0
        assert part.x1 <= figure.bbox.x1
        assert part.y0 >= figure.bbox.y0
        assert part.y1 <= figure.bbox.y1
        for other in parts[:i]:
            apart_x = part.x0 >= other.x1 - 1 or other.x0 >= part.x1 - 1
            apart_y = part.y0 >= other.y1 - 1 or other.y0 >= part.y1 - 1
            assert apart_x or apart_y


@pytest.mark.parametrize("ground", [0.0, 0.5, 1.0])
def test_boxes_are_seen_at_their_place_in_every_column_on_any_ground(ground):
    x1, y1, x2, y2 = 10, 8, 50, 30
    figure = panel(
        torch.full((1, 3, 40, 60), ground),
        {"zero": torch.zeros(1, 40, 60)},
        boxes=[torch.tensor([[x1, y1, x2, y2]])],
        grey=False,
    )
    picture = render(figure)
    for axes in cells(figure):
        left, bottom, wide, high = axes.get_position().bounds
        rows, columns = picture.shape[:2]
        to_column = lambda x: (left + wide * x / 60) * columns  # noqa: B023, E731
        to_row = lambda y: (1 - bottom - high + high * y / 40) * rows  # noqa: B023, E731
        middle_row, middle_column = round(to_row(19)), round(to_column(30))
        for edge in (x1, x2):
            strip = picture[middle_row, round(to_column(edge)) - 4 : round(to_column(edge)) + 4]
            assert strip.min() < 0.25
            assert strip.max() > 0.75
        for edge in (y1, y2):
            strip = picture[round(to_row(edge)) - 4 : round(to_row(edge)) + 4, middle_column]
            assert strip.min() < 0.25
            assert strip.max() > 0.75
        inside = picture[middle_row - 3 : middle_row + 3, middle_column - 3 : middle_column + 3]
        assert np.allclose(inside, ground, atol=0.01)
        outside = picture[round(to_row(3)), round(to_column(5))]
        assert np.allclose(outside, ground, atol=0.01)


def test_boxes_are_clipped_and_those_outside_left_out():
    boxes = torch.tensor([[-10.0, 5, 30, 99], [70, 5, 90, 20], [5, 5, 5, 20]])
    figure = panel(images(), {"a": bump().expand(2, 40, 60)}, boxes=[boxes, None])
    for axes, lines in zip(cells(figure), [2, 2, 0, 0], strict=True):
        assert len(axes.patches) == lines  # a dark and a light one for the box that is left
        for patch in axes.patches:
            assert patch.get_bbox().extents.tolist() == [0, 5, 30, 40]
    assert "boxes outlined" in figure.get_label()


@pytest.mark.parametrize("none", [None, torch.zeros(0, 4), torch.zeros(0)])
def test_an_image_may_have_no_box(none):
    figure = panel(images(1), {"a": bump()[None]}, boxes=[none])
    assert not any(axes.patches for axes in cells(figure))


def test_before_after_shows_scores_in_percent_and_undefined_ones_as_a_dash():
    figure = before_after(
        images(),
        bump().expand(2, 40, 60),
        torch.zeros(2, 40, 60),
        boxes=[torch.tensor([[1.0, 1, 20, 20]]), None],
        scores=([0.214, math.nan], [0.9, None]),
    )
    for words in ("before", "after", "EPG 21%", "EPG 90%"):
        assert words in texts(figure)
    assert texts(figure).count("EPG \N{EN DASH}") == 2


def test_signed_colour_bar_says_which_end_is_which():
    figure = before_after(images(1), bump()[None], bump()[None], boxes=None, sign="signed")
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert "against" in labels[0]
    assert "for" in labels[2]


def test_text_is_shown_as_given():
    figure = panel(images(1), {"$x$": bump()[None]}, titles=["50$ and 60$"])
    figure.draw_without_rendering()
    assert r"50\$ and 60\$" in texts(figure)  # escaped, so that nothing is typeset as mathematics


def boxed(boxes: Tensor) -> Figure:
    return panel(images(1), {"a": bump()[None]}, boxes=[boxes])


MISTAKES: list[Mistake] = [
    (lambda: panel(images(), {}), ShapeError, ["2 images and 0 columns", "at least one"]),
    (lambda: panel(images(), {"a": MAPS[:1]}), ShapeError, ["maps['a'] has 1 entries for 2"]),
    (lambda: panel([IMAGE, IMAGE * 9], {"a": MAPS}), OptionError, ["images[1] ranges"]),
    (
        lambda: panel(images(), {"layer4": MAPS}, captions={"layer3": ["", ""]}),
        OptionError,
        ["unknown column 'layer3'", "Did you mean 'layer4'"],
    ),
    (lambda: panel(images(), {"a": MAPS}, titles=["x"]), ShapeError, ["titles has 1 entries"]),
    (lambda: boxed(torch.zeros(4)), ShapeError, ["boxes[0] has shape (4,)", "(M, 4)"]),
    (lambda: boxed(torch.tensor([[9.0, 9, 3, 20]])), AnnotationError, ["[9.0, 9.0, 3.0, 20.0]"]),
    (lambda: boxed(torch.tensor([[math.nan, 9, 30, 20]])), AnnotationError, ["nan", "finite"]),
    (lambda: boxed(torch.tensor([[0.1, 0.2, 0.9, 1.0]])), AnnotationError, ["[0, 1]", "pixels"]),
    (lambda: boxed(XYWH), AnnotationError, ["format XYWH", "Convert"]),
    (
        lambda: before_after(images(), MAPS, [bump(), nan_map()], boxes=None),
        OptionError,
        ["before_after: after[1] has 3 of"],
    ),
    (
        lambda: before_after(images(), MAPS, MAPS, boxes=None, scores=([0.5], [0.5])),
        ShapeError,
        ["scores[0] has 1 entries for 2 images"],
    ),
    (
        lambda: before_after(images(), MAPS, MAPS, boxes=None, scores=([0.5],)),
        ShapeError,
        ["scores has 1 entries", "(before, after)"],
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[2][0])
def test_a_mistake_is_one_line_that_names_the_callable_and_the_fix(mistake):
    check_mistake(mistake, {"panel", "before_after"})
