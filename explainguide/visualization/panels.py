"""Images in rows, attribution maps in columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, did_you_mean, operation
from explainguide.visualization.grid import check_count, count_rows, draw_scale, lay_out
from explainguide.visualization.overlays import (
    Look,
    Sign,
    blend,
    checked_boxes,
    checked_image,
    checked_map,
)

__all__ = ["before_after", "panel"]


@operation("panel")
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
    labels = {name: f"maps[{name!r}]" for name in maps}
    return _panel(images, maps, labels, boxes, titles, captions or {}, look)


@operation("before_after")
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
                f"scores has {len(scores)} entries. Pass (before, after). "
                "Each must have one number an image."
            )
        for i, (name, values) in enumerate(zip(maps, scores, strict=True)):
            check_count(len(images), {f"scores[{i}]": values})
            captions[name] = [f"{score} {_percent(value)}" for value in values]
    look = Look(sign, 0.9, 99.5, grey=True)
    return _panel(images, maps, {name: name for name in maps}, boxes, titles, captions, look)


def _percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{100 * value:.0f}%"


def _panel(
    images: Tensor | Sequence[Tensor],
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    labels: Mapping[str, str],
    boxes: Sequence[Tensor | None] | None,
    titles: Sequence[str] | None,
    captions: Mapping[str, Sequence[str]],
    look: Look,
) -> Figure:
    look.checked()
    if len(images) == 0 or len(maps) == 0:
        raise ShapeError(
            f"got {len(images)} images and {len(maps)} columns of maps. Pass at least one of each."
        )
    for name in captions:
        if name not in maps:
            raise OptionError(
                f"captions has an unknown column {name!r}.{did_you_mean(name, maps)} "
                f"The columns are {', '.join(map(repr, maps))}."
            )
    check_count(len(images), {"boxes": boxes, "titles": titles})
    check_count(len(images), {labels[k]: v for k, v in maps.items()})
    check_count(len(images), {f"captions[{k!r}]": v for k, v in captions.items()})
    pictures = [checked_image(f"images[{i}]", image) for i, image in enumerate(images)]
    columns = [pictures]
    for name, values in maps.items():
        tensors = [checked_map(f"{labels[name]}[{i}]", m) for i, m in enumerate(values)]
        columns.append([blend(p, m, look) for p, m in zip(pictures, tensors, strict=True)])
    outlines = [
        checked_boxes(f"boxes[{i}]", boxes[i] if boxes is not None else None, picture)
        for i, picture in enumerate(pictures)
    ]
    headings = ["image", *maps]
    blank = [""] * len(images)
    texts = [titles or blank, *(captions.get(name, blank) for name in maps)]
    figure = lay_out(columns, headings, texts, outlines, partial(_colour_bar, look=look))
    figure.set_label(count_rows(len(images), headings, boxed=any(outlines)))
    return figure


def _colour_bar(axes: Axes, look: Look) -> None:
    """The overlay of a ramp, as `blend` draws it on light grey."""
    signed = look.sign == "signed"
    ramp = torch.linspace(-1.0 if signed else 0.0, 1, 256, dtype=torch.float64)[None]
    image = blend(torch.full((3, 1, 256), 0.8), ramp, look._replace(percentile=100.0, grey=False))
    unit = "largest magnitude" if look.percentile == 100 else f"percentile {look.percentile:g}"
    draw_scale(axes, image, signed=signed, label=f"attribution; 1 = {unit} of each map")
