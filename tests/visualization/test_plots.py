"""Plots tell runs apart and say what they leave out; no figure of the package outlives its use."""

from __future__ import annotations

import ast
import inspect
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from explainguide import report
from explainguide.errors import OptionError, ShapeError
from explainguide.visualization import (
    before_after,
    curves,
    overlays,
    panel,
    panels,
    pareto_plot,
    plots,
)

from .samples import Mistake, bump, check_mistake, images, render

RUNS = {"energy": [(0.7, 0.4, 0.2), (0.6, 0.5, 0.3), (0.5, 0.45, 0.3)], "l1": [(0.65, 0.45, 0.3)]}
ROWS = {
    "unguided": [{"epoch": 1, "loss": 2.0, "epg": 0.4}, {"epoch": 2, "loss": 1.0, "epg": None}],
    "guided": [{"epoch": 1, "loss": 2.5, "loss_loc": 0.6}],
}


def test_pareto_joins_the_front_and_leaves_the_rest_hollow():
    figure = pareto_plot(RUNS, fronts={"energy": torch.tensor([1, 0]), "l1": [0]})
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("F1 (%)", "EPG (%)")
    hollow, front, single = axes.lines
    assert front.get_xdata() == pytest.approx([60, 70])
    assert front.get_ydata() == pytest.approx([50, 40])
    assert front.get_linestyle() == "-"
    assert hollow.get_xdata() == pytest.approx([50])
    assert hollow.get_markerfacecolor() == "white"
    assert single.get_xdata() == pytest.approx([65])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["energy", "l1", "not on the front"]


def test_pareto_axes_may_be_chosen_and_fronts_left_out():
    figure = pareto_plot(RUNS, x="epg", y="iou")
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("EPG (%)", "IoU (%)")
    assert all(line.get_linestyle() == "None" for line in axes.lines)


def test_pareto_counts_undefined_points_in_the_legend():
    figure = pareto_plot({"a": [(0.5, math.nan, 0.1), (0.5, 0.5, 0.1)], "_b": [(0.1, 0.2, 0.3)]})
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a (1 undefined)", " _b"]


def test_runs_differ_in_marker_and_colour():
    figure = pareto_plot({f"run {i}": [(0.1 * i, 0.5, 0.5)] for i in range(7)})
    lines = figure.axes[0].lines
    assert len({line.get_color() for line in lines}) == 7
    assert len({line.get_marker() for line in lines}) == 7


def test_curves_draw_one_plot_a_key_and_skip_what_is_missing():
    figure = curves(ROWS, ["loss", "epg", "loss_loc"], percent=["epg"], titles={"epg": "EPG"})
    assert [axes.get_title() for axes in figure.axes] == ["loss", "EPG (%)", "loss_loc"]
    loss, epg, loss_loc = figure.axes
    assert len(loss.lines) == 2
    assert epg.lines[0].get_ydata() == pytest.approx([40])
    assert len(epg.lines) == len(loss_loc.lines) == 1
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["unguided", "guided"]
    # The same run looks the same in every plot, also where another run has no line.
    assert loss_loc.lines[0].get_color() == loss.lines[1].get_color()


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (5, 2, 3)])
def test_curves_arrange_their_plots(count, rows, columns):
    row = {f"k{i}": 1.0 for i in range(count)}
    figure = curves({"run": [row, row]}, list(row))
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns)


def every_figure() -> list[Figure]:
    maps = bump().expand(2, 40, 60)
    return [
        panel(images(), {"a": maps}),
        before_after(images(), maps, maps, boxes=[torch.tensor([[1.0, 2, 30, 20]])] * 2),
        pareto_plot(RUNS),
        curves(ROWS, ["loss"]),
    ]


def test_the_same_input_gives_the_same_pixels():
    for first, second in zip(every_figure(), every_figure(), strict=True):
        assert np.array_equal(render(first), render(second))


def test_no_figure_is_left_open():
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums()
    every_figure()
    assert plt.get_fignums() == before == []


def test_visualization_knows_no_other_room_and_no_pyplot():
    for module in (overlays, panels, plots, report):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            assert not [name for name in names if "pyplot" in name]
            own = [name for name in names if name.startswith("explainguide.")]
            assert all(re.match(r"explainguide\.(errors|visualization)\b", name) for name in own)


MISTAKES: list[Mistake] = [
    (lambda: pareto_plot({}), ShapeError, ["points is empty"]),
    (lambda: pareto_plot(RUNS, x="epq"), OptionError, ["'epq'", "Did you mean 'epg'"]),
    (lambda: pareto_plot({"a": [(0.1, 0.2)]}), ShapeError, ["has 2 scores", "(f1, epg, iou)"]),
    (lambda: pareto_plot({"a": [(70, 40, 20)]}), OptionError, ["Divide percentages by 100"]),
    (lambda: pareto_plot(RUNS, fronts={"l2": [0]}), OptionError, ["Did you mean 'l1'"]),
    (lambda: pareto_plot(RUNS, fronts={"l1": [1]}), OptionError, ["index 1", "1 models", "[0, 1)"]),
    (lambda: curves({}, ["loss"]), ShapeError, ["0 runs and 1 keys"]),
    (lambda: curves(ROWS, ["los"]), OptionError, ["'los'", "Did you mean 'loss'"]),
    (lambda: curves(ROWS, ["loss"], percent=["epg"]), OptionError, ["'epg'", "not plotted"]),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[2][0])
def test_a_mistake_is_one_line_that_names_the_callable_and_the_fix(mistake):
    check_mistake(mistake, {"pareto_plot", "curves"})
