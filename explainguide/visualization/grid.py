"""Pictures in rows and columns, with texts and boxes: what every panel shares."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from explainguide.errors import ShapeError
from explainguide.visualization.overlays import Box
from explainguide.visualization.plots import plain_text

__all__ = ["check_count", "count_rows", "draw_scale", "lay_out"]

# Inches. A tall image is made narrower rather than higher than _TALLEST.
_CELL, _TALLEST, _GAP, _MARGIN, _LINE, _BAR = 2.2, 3.0, 0.1, 0.12, 0.17, 0.62
_POINTS = 9  # the font size


def count_rows(count: int, headings: Sequence[str], *, boxed: bool) -> str:
    """What a panel shows, in words, for its label."""
    rows = "image" if count == 1 else "images, one a row"
    return f"{count} {rows}; columns: {', '.join(headings)}{'; boxes outlined' if boxed else ''}."


def check_count(count: int, given: Mapping[str, Sequence[object] | Tensor | None]) -> None:
    """Refuse a sequence that has not one entry for each image.

    Raises:
        ShapeError: It names the argument.
    """
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise ShapeError(
                f"{name} has {len(values)} entries for {count} images. "
                "Pass one entry for each image."
            )


def lay_out(
    columns: Sequence[Sequence[Tensor]],
    headings: Sequence[str],
    texts: Sequence[Sequence[str]],
    outlines: Sequence[Sequence[Box]],
    colour_bar: Callable[[Axes], None],
    *,
    framed: bool = False,
) -> Figure:
    """Place everything by inches, so that no text depends on what a layout engine finds.

    Args:
        columns: For each column its pictures, ``(3, H, W)``; those of a row have one size.
        headings: A text above each column.
        texts: For each column a text under each picture, "" for none.
        outlines: For each row its boxes, drawn in every column.
        colour_bar: Draws the bar below.
        framed: Whether thin lines show where pictures end, for those that are white there.
    """
    wrapped_headings = [_wrap(heading) for heading in headings]
    wrapped = [[_wrap(text) for text in column] for column in texts]
    sizes, below = [], []
    for row, image in enumerate(columns[0]):
        shape = image.shape[-2:]
        scale = min(_CELL / shape[1], _TALLEST / shape[0])
        sizes.append((scale * shape[1], scale * shape[0]))
        below.append(max(len(column[row]) for column in wrapped) * _LINE)
    top = _MARGIN + max(map(len, wrapped_headings)) * _LINE + 0.06
    width = 2 * _MARGIN + len(columns) * (_CELL + _GAP) - _GAP
    height = top + sum(h + text + _GAP for (_, h), text in zip(sizes, below, strict=True)) + _BAR
    figure = Figure(figsize=(width, height), facecolor="white")

    def add_axes(left: float, down: float, wide: float, high: float) -> Axes:
        box = (left / width, 1 - (down + high) / height, wide / width, high / height)
        return figure.add_axes(box)

    def add_text(centre: float, down: float, lines: Sequence[str], weight: str) -> None:
        # Line by line on a baseline: neighbours agree whatever letters they have.
        for i, line in enumerate(lines):
            place = (centre / width, 1 - (down + (i + 0.8) * _LINE) / height)
            figure.text(*place, plain_text(line), ha="center", fontsize=_POINTS, weight=weight)

    centres = [_MARGIN + _CELL / 2 + i * (_CELL + _GAP) for i in range(len(columns))]
    for centre, heading in zip(centres, wrapped_headings, strict=True):
        add_text(centre, top - 0.06 - len(heading) * _LINE, heading, "bold")
    for row, (wide, high) in enumerate(sizes):
        for centre, column, words in zip(centres, columns, wrapped, strict=True):
            axes = add_axes(centre - wide / 2, top, wide, high)
            _show(axes, column[row])
            if framed:
                _draw_frame(axes, column[row])
            _draw_boxes(axes, outlines[row])
            add_text(centre, top + high + 0.04, words[row], "normal")
        top += high + below[row] + _GAP
    colour_bar(add_axes(width / 2 - _CELL / 2, top + 0.06, _CELL, 0.11))
    return figure


def _wrap(text: str) -> list[str]:
    """At most two lines that fit a cell."""
    characters = int(_CELL * 72 / (0.58 * _POINTS))
    return textwrap.wrap(text, characters, max_lines=2, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def _show(axes: Axes, image: Tensor) -> None:
    height, width = image.shape[-2:]
    # With this extent box coordinates (pixel edges) are data coordinates.
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0), aspect="auto")
    axes.set_axis_off()


def _draw_frame(axes: Axes, image: Tensor) -> None:
    height, width = image.shape[-2:]
    frame = Rectangle((0, 0), width, height, fill=False, ec="0.75", lw=0.6)
    axes.add_patch(frame).set_clip_on(False)


def _draw_boxes(axes: Axes, boxes: Sequence[Box]) -> None:
    """A light line inside a dark one: one of the two is seen on any background."""
    for x1, y1, x2, y2 in boxes:
        for colour, width in (("black", 2.8), ("white", 1.2)):
            # Unclipped, for a box along the border would show half its line.
            outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width)
            axes.add_patch(outline).set_clip_on(False)


def draw_scale(axes: Axes, ramp: Tensor, *, signed: bool, label: str) -> None:
    """A colour bar, ``(3, 1, W)`` from 0 or -1 to 1, with what its ends mean."""
    low = -1.0 if signed else 0.0
    axes.imshow(ramp.permute(1, 2, 0).numpy(), extent=(low, 1, 0, 1), aspect="auto")
    axes.set_yticks([])
    if signed:
        axes.set_xticks([-1, 0, 1], ["≤ \N{MINUS SIGN}1, against", "0", "≥ 1, for"])
    else:
        axes.set_xticks([0, 0.5, 1], ["≤ 0", "0.5", "≥ 1"])
    axes.tick_params(labelsize=_POINTS - 1, length=2, pad=2)
    axes.set_xlabel(label, fontsize=_POINTS - 1, labelpad=2)
