"""Images in rows, attribution maps in columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, did_you_mean
from explainguide.visualization.overlays import (
    Box,
    Look,
    Sign,
    blend,
    checked_boxes,
    checked_image,
    checked_map,
)
from explainguide.visualization.plots import plain_text

__all__ = ["before_after", "panel"]

# Inches. A tall image is made narrower rather than higher than _TALLEST.
_CELL, _TALLEST, _GAP, _MARGIN, _LINE, _BAR = 2.2, 3.0, 0.1, 0.12, 0.17, 0.62
_POINTS = 9  # the font size


def panel(
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    *,
    boxes: Sequence[Tensor | None] | None = None,
    titles: Sequence[str] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    sign: Sign = "positive",
    alpha: float = 0.9,
    percentile: float = 99.5,
    grey: bool = True,
) -> Figure:
    """One row an image: the image itself, then one overlay for each entry of `maps`.

    Every map has its own scale, which the colour bar states: colours compare places within a map,
    not amounts between maps.

    Args:
        images: N images, ``(N, 3, H, W)`` or a sequence of ``(3, H, W)``, in [0, 1].
        maps: Column heading to N maps, ``(N, h, w)``, ``(N, 1, h, w)`` or a sequence, signed.
        boxes: For each image its boxes, ``(M, 4)`` as x1, y1, x2, y2 in its pixels, or None. They
            are clipped to the image and drawn in every column.
        titles: For each image a text to put under it.
        captions: Column heading to N texts to put under its maps, a score for example.
        sign: As in `overlay`, and so are the next two.
        alpha: Opacity where a map is strongest, in [0, 1].
        percentile: The percentile that gets full colour, in [50, 100].
        grey: Whether maps lie on a grey version of the image. The first column keeps its colours.

    Returns:
        A figure whose size grows with the number of rows and columns.

    Raises:
        ShapeError: If shapes, dtypes or counts disagree.
        OptionError: If a value is not as above.
        AnnotationError: If boxes are not finite x1 <= x2, y1 <= y2 in pixels.
    """
    look = Look(sign, alpha, percentile, grey)
    return _panel("panel", images, maps, boxes, titles, captions or {}, look)


def before_after(
    images: Tensor | Sequence[Tensor],
    before: Tensor | Sequence[Tensor],
    after: Tensor | Sequence[Tensor],
    *,
    boxes: Sequence[Tensor | None] | None,
    titles: Sequence[str] | None = None,
    scores: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
    score: str = "EPG",
    sign: Sign = "positive",
) -> Figure:
    """Where a model looked before guidance and where it looks after, on the same images.

    Args:
        images: As in `panel`, N of them.
        before: N maps of the unguided model.
        after: N maps of the guided model.
        boxes: As in `panel`.
        titles: As in `panel`.
        scores: A score for each map, in [0, 1], N before and N after, shown in percent. An
            undefined score (None or NaN) is shown as a dash.
        score: What the scores are called.
        sign: As in `overlay`.

    Returns:
        A figure with the columns image, before and after.

    Raises:
        ShapeError: As `panel`, and if `scores` are not two sequences of N.
        OptionError: As `panel`.
        AnnotationError: As `panel`.
    """
    maps = {"before": before, "after": after}
    captions = {}
    if scores is not None:
        if len(scores) != 2:
            raise ShapeError(
                f"before_after: scores has {len(scores)} entries. Pass (before, after). "
                "Each must have one number an image."
            )
        for i, (name, values) in enumerate(zip(maps, scores, strict=True)):
            _check_count("before_after", len(images), **{f"scores[{i}]": values})
            captions[name] = [f"{score} {_percent(value)}" for value in values]
    look = Look(sign, 0.9, 99.5, grey=True)
    return _panel("before_after", images, maps, boxes, titles, captions, look)


def _percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{100 * value:.0f}%"


def _panel(
    caller: str,
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    boxes: Sequence[Tensor | None] | None,
    titles: Sequence[str] | None,
    captions: Mapping[str, Sequence[str]],
    look: Look,
) -> Figure:
    look.checked(caller)
    if len(images) == 0 or len(maps) == 0:
        raise ShapeError(
            f"{caller}: got {len(images)} images and {len(maps)} columns of maps. "
            "Pass at least one of each."
        )
    for name in captions:
        if name not in maps:
            raise OptionError(
                f"{caller}: captions has an unknown column {name!r}.{did_you_mean(name, maps)} "
                f"The columns are {', '.join(map(repr, maps))}."
            )
    _check_count(caller, len(images), boxes=boxes, titles=titles)
    labels = {k: k if caller == "before_after" else f"maps[{k!r}]" for k in maps}
    _check_count(caller, len(images), **{labels[k]: v for k, v in maps.items()})
    _check_count(caller, len(images), **{f"captions[{k!r}]": v for k, v in captions.items()})
    pictures = [checked_image(caller, f"images[{i}]", image) for i, image in enumerate(images)]
    columns = [pictures]
    for name, values in maps.items():
        tensors = [checked_map(caller, f"{labels[name]}[{i}]", m) for i, m in enumerate(values)]
        columns.append([blend(p, m, look) for p, m in zip(pictures, tensors, strict=True)])
    outlines = [
        checked_boxes(caller, f"boxes[{i}]", boxes[i] if boxes is not None else None, picture)
        for i, picture in enumerate(pictures)
    ]
    headings = ["image", *maps]
    blank = [""] * len(images)
    texts = [titles or blank, *(captions.get(name, blank) for name in maps)]
    figure = _lay_out(columns, headings, texts, outlines, look)
    figure.set_label(
        f"{len(images)} {'image' if len(images) == 1 else 'images, one a row'}; columns: "
        f"{', '.join(headings)}{'; boxes outlined' if any(outlines) else ''}."
    )
    return figure


def _check_count(caller: str, count: int, **given: Sequence[object] | Tensor | None) -> None:
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise ShapeError(
                f"{caller}: {name} has {len(values)} entries for {count} images. "
                "Pass one entry for each image."
            )


def _lay_out(
    columns: Sequence[Sequence[Tensor]],
    headings: Sequence[str],
    texts: Sequence[Sequence[str]],
    outlines: Sequence[Sequence[Box]],
    look: Look,
) -> Figure:
    """Place everything by inches, so that no text depends on what a layout engine finds."""
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
            _draw_boxes(axes, outlines[row])
            add_text(centre, top + high + 0.04, words[row], "normal")
        top += high + below[row] + _GAP
    _colour_bar(add_axes(width / 2 - _CELL / 2, top + 0.06, _CELL, 0.11), look)
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


def _draw_boxes(axes: Axes, boxes: Sequence[Box]) -> None:
    """A light line inside a dark one: one of the two is seen on any background."""
    for x1, y1, x2, y2 in boxes:
        for colour, width in (("black", 2.8), ("white", 1.2)):
            # Unclipped, for a box along the border would show half its line.
            outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width)
            axes.add_patch(outline).set_clip_on(False)


def _colour_bar(axes: Axes, look: Look) -> None:
    """The overlay of a ramp, as `blend` draws it on light grey, with what its ends mean."""
    low = -1.0 if look.sign == "signed" else 0.0
    ramp = torch.linspace(low, 1, 256, dtype=torch.float64)[None]
    image = blend(torch.full((3, 1, 256), 0.8), ramp, look._replace(percentile=100.0, grey=False))
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(low, 1, 0, 1), aspect="auto")
    axes.set_yticks([])
    if look.sign == "signed":
        axes.set_xticks([-1, 0, 1], ["≤ \N{MINUS SIGN}1, against", "0", "≥ 1, for"])
    else:
        axes.set_xticks([0, 0.5, 1], ["≤ 0", "0.5", "≥ 1"])
    axes.tick_params(labelsize=_POINTS - 1, length=2, pad=2)
    unit = "largest magnitude" if look.percentile == 100 else f"percentile {look.percentile:g}"
    axes.set_xlabel(f"attribution; 1 = {unit} of each map", fontsize=_POINTS - 1, labelpad=2)
