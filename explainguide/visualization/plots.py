"""Trade-offs between scores, and training curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from explainguide.errors import OptionError, ShapeError, check_option, did_you_mean, operation

__all__ = ["curves", "pareto_plot", "plain_text"]

# Okabe and Ito's palette without its yellow, which is too faint for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_MARKERS = "os^Dv*Pp"
_DASHES = ("-", "--", "-.", ":")
_SCORES = {"f1": "F1", "epg": "EPG", "iou": "IoU"}


@operation("pareto_plot")
def pareto_plot(
    points: Mapping[str, Sequence[Sequence[float]]],
    *,
    x: str = "f1",
    y: str = "epg",
    fronts: Mapping[str, Collection[int]] | None = None,
) -> Figure:
    """Two scores of many models against each other, with the front of each run.

    Args:
        points: Run to its models, each (f1, epg, iou) in [0, 1]. Points with an undefined (NaN)
            score on one of the axes are left out, and the legend counts them.
        x: Score on the horizontal axis: ``"f1"``, ``"epg"`` or ``"iou"``.
        y: Score on the vertical axis.
        fronts: Run to the indices of its models that no other dominates, as
            `explainguide.metrics.pareto_front` finds them. They are filled and joined by a line,
            the others hollow. None: all are filled and none joined.

    Returns:
        A figure with axes in percent and a legend.

    Raises:
        OptionError: For an unknown score or run, an index without a model, a score outside [0, 1].
        ShapeError: If there is no run, or a point does not have three scores.
    """
    for name in (x, y):
        check_option("score", name, _SCORES)
    if not points:
        raise ShapeError("points is empty. Pass at least one run.")
    for run, models in points.items():
        _check_points(run, models)
    for run, front in (fronts or {}).items():
        if run not in points:
            raise OptionError(
                f"fronts has an unknown run {run!r}.{did_you_mean(run, points)} "
                f"The runs are {', '.join(map(repr, points))}."
            )
        _check_front(run, front, len(points[run]))

    figure = Figure(figsize=(6.4, 4.2), layout=_layout(), facecolor="white")
    axes = figure.add_subplot()
    column = {name: i for i, name in enumerate(_SCORES)}
    handles = []
    for i, (run, models) in enumerate(points.items()):
        places = [(100 * float(m[column[x]]), 100 * float(m[column[y]])) for m in models]
        seen = {n: p for n, p in enumerate(places) if not any(map(math.isnan, p))}
        front = set(seen) if fronts is None else set(seen) & set(map(int, fronts.get(run, ())))
        style = {**_style(i), "markersize": 7, "markeredgewidth": 1.2}
        _plot(axes, [seen[n] for n in seen if n not in front], ls="", mfc="white", **style)
        line = "" if fronts is None else "-"
        _plot(axes, sorted(seen[n] for n in front), ls=line, lw=1.4, **style)
        missing = len(places) - len(seen)
        name = f"{run} ({missing} undefined)" if missing else run
        handles.append(Line2D([], [], ls=line, lw=1.4, label=plain_text(name), **style))
    axes.set_xlabel(f"{_SCORES[x]} (%)")
    axes.set_ylabel(f"{_SCORES[y]} (%)")
    _tidy(axes)
    if fronts is not None:
        hollow: dict[str, Any] = {"color": "0.35", "marker": "o", "mfc": "white", "markersize": 7}
        handles.append(Line2D([], [], ls="", label="not on the front", **hollow))
    _legend(figure, handles)
    figure.set_label(f"{_SCORES[y]} against {_SCORES[x]} in percent for {', '.join(points)}.")
    return figure


@operation("curves")
def curves(
    history: Mapping[str, Sequence[Mapping[str, float | None]]],
    keys: Sequence[str],
    *,
    x: str = "epoch",
    percent: Collection[str] = (),
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Training curves, one small plot a quantity, one line a run.

    Args:
        history: Run to its rows, one dict an epoch. Where a row lacks a key, or has None or NaN for
            it, there is no point; where all rows of a run do, there is no line.
        keys: The quantities to plot.
        x: Key of the horizontal axis. Rows without it are counted from 1.
        percent: Those of `keys` that are shares in [0, 1] to be shown in percent.
        titles: Key to the heading of its plot; the key itself where it is not given.

    Returns:
        A figure of up to three plots a row.

    Raises:
        OptionError: If no row of any run has a key, or `percent` or `titles` name another one.
        ShapeError: If there is no run or no key.
    """
    if not history or not keys:
        raise ShapeError(
            f"got {len(history)} runs and {len(keys)} keys. Pass at least one of each."
        )
    known = list(dict.fromkeys(k for rows in history.values() for row in rows for k in row))
    for key in keys:
        if key not in known:
            raise OptionError(
                f"no row has the key {key!r}.{did_you_mean(key, known)} "
                f"The rows have {', '.join(map(repr, known)) or 'no keys'}."
            )
    for key in [*percent, *(titles or {})]:
        if key not in keys:
            raise OptionError(
                f"percent or titles has {key!r}, which is not plotted."
                f"{did_you_mean(key, keys)} The keys are {', '.join(map(repr, keys))}."
            )
    down = math.ceil(len(keys) / 3)
    across = math.ceil(len(keys) / down)
    figure = Figure(
        figsize=(max(4.2, 2.8 * across), 2.3 * down + 0.4), layout=_layout(), facecolor="white"
    )
    handles = []
    for n, key in enumerate(keys):
        axes = figure.add_subplot(down, across, n + 1)
        factor = 100 if key in percent else 1
        for i, (run, rows) in enumerate(history.items()):
            style = {**_style(i), "ls": _DASHES[i % len(_DASHES)], "lw": 1.6, "markersize": 4}
            places = [_place(row, x, j + 1, key) for j, row in enumerate(rows)]
            places = [(where, factor * up) for where, up in places if not math.isnan(up)]
            _plot(axes, places, **style)
            if n == 0:
                handles.append(Line2D([], [], label=plain_text(run), **style))
        heading = plain_text((titles or {}).get(key, key))
        axes.set_title(f"{heading} (%)" if key in percent else heading, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if n + across >= len(keys):
            axes.set_xlabel(plain_text(x))
        _tidy(axes)
    _legend(figure, handles)
    figure.set_label(f"{', '.join(keys)} by {x} for {', '.join(history)}.")
    return figure


def plain_text(text: str) -> str:
    """The text, so that matplotlib neither typesets its dollars nor hides its first underscore."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _check_points(run: str, models: Sequence[Sequence[float]]) -> None:
    for i, model in enumerate(models):
        if len(model) != len(_SCORES):
            raise ShapeError(
                f"points[{run!r}][{i}] has {len(model)} scores. Use NaN for one that "
                "is undefined. It must be (f1, epg, iou)."
            )
        if any(value < 0 or value > 1 for value in model):
            raise OptionError(
                f"points[{run!r}][{i}] is {tuple(map(float, model))}. "
                "Divide percentages by 100. Scores must be in [0, 1]."
            )


def _check_front(run: str, front: Collection[int], count: int) -> None:
    for index in front:
        if not 0 <= index < count:
            raise OptionError(
                f"fronts[{run!r}] has the index {index}, but the run has {count} "
                f"models. Pass indices into points[{run!r}]. They must be in [0, {count})."
            )


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches; the default is half as much


def _style(run: int) -> dict[str, Any]:
    # The two lengths have no common factor, so 56 runs differ.
    return {"color": _COLOURS[run % len(_COLOURS)], "marker": _MARKERS[run % len(_MARKERS)]}


def _place(row: Mapping[str, float | None], x: str, number: int, key: str) -> tuple[float, float]:
    across, up = row.get(x), row.get(key)
    return number if across is None else float(across), math.nan if up is None else float(up)


def _plot(axes: Axes, places: Sequence[tuple[float, float]], **style: Any) -> None:
    if places:
        axes.plot(*zip(*places, strict=True), **style)


def _tidy(axes: Axes) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the plots, where it covers no point."""
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
