"""AggAtt: the mean maps of a data set, from the best localized to the worst, as one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, check_option, did_you_mean, operation
from explainguide.visualization.grid import draw_scale, lay_out
from explainguide.visualization.overlays import Box, Sign, checked_boxes

__all__ = ["aggregate_plot"]

_COLOUR_MAPS = {"positive": "plasma", "signed": "PuOr_r"}
_EMPTY = 0.85  # a grey that neither colour map has


@operation("aggregate_plot")
def aggregate_plot(
    maps: Mapping[str, Any],
    *,
    bins: Sequence[float] = (0, 2, 5, 50, 95, 98, 100),
    counts: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    box: Sequence[float] | None = None,
    sign: Sign = "positive",
    percentile: float = 99.5,
) -> Figure:
    """One row a method, one column a percentile bin of its scores: mean maps, the best on the left.

    `explainguide.metrics.aggregate_maps` computes them. The maps of a method have one scale, so that
    the bins of a row can be compared; the rows have each their own.

    Args:
        maps: Method to its B mean maps, ``(B, h, w)``, tensors or arrays; a bin whose map is all NaN is
            empty and shown grey.
        bins: The B + 1 borders in percent, rising.
        counts: Method to the number of maps in each bin, ``(B,)``.
        scores: Method to the mean score of each bin, in [0, 1], ``(B,)``, shown in percent.
        box: (x1, y1, x2, y2) in pixels of the maps, drawn in all of them: the cell that should hold the
            attribution.
        sign: ``"positive"`` shows the positive part only, ``"signed"`` both.
        percentile: The percentile of a row's non-zero magnitudes that gets full colour, in [50, 100].

    Returns:
        A figure; its label says in words what it shows, with the scores.

    Raises:
        ShapeError: If there is no method, or a shape is not as above.
        OptionError: If an option is not as above, or a mean map has values that are not finite.
        AnnotationError: If the box is no box.

    References:
        Rao et al., 2022, "Towards Better Understanding Attribution Methods", Section 3.3 (AggAtt).
    """
    check_option("sign", sign, _COLOUR_MAPS)
    if not 50 <= percentile <= 100:
        raise OptionError(f"percentile is {percentile!r}. It must be in [50, 100].")
    if not maps:
        raise ShapeError("maps is empty. Pass the mean maps of at least one method.")
    count = len(bins) - 1
    rows = {name: _checked(f"maps[{name!r}]", values, count) for name, values in maps.items()}
    sides = {
        what: {name: _of_bins(f"{what}[{name!r}]", each, count) for name, each in given.items()}
        for what, given in (("counts", counts or {}), ("scores", scores or {}))
    }
    for what, given in sides.items():
        for name in given:
            if name not in maps:
                raise OptionError(
                    f"{what} has an unknown method {name!r}.{did_you_mean(name, maps)} The methods are "
                    f"{', '.join(map(repr, maps))}."
                )
    pictures = {name: _coloured(values, sign, percentile) for name, values in rows.items()}
    columns = [[pictures[name][i] for name in rows] for i in range(count)]
    headings = [f"{low:g} to {high:g}%" for low, high in pairwise(bins)]
    told = {
        name: _told(sides["counts"].get(name), sides["scores"].get(name), count) for name in rows
    }
    texts = [
        [f"{name}: {told[name][i]}".rstrip(": ") if i == 0 else told[name][i] for name in rows]
        for i in range(count)
    ]
    outlines = [_outline(box, picture[0]) for picture in pictures.values()]
    bar = partial(_colour_bar, sign=sign, percentile=percentile)
    figure = lay_out(columns, headings, texts, outlines, bar)
    figure.set_label(_label(headings, told, boxed=any(outlines)))
    return figure


def _told(counts: list[float] | None, scores: list[float] | None, count: int) -> list[str]:
    """What is known of each bin, in words."""
    words = []
    for i in range(count):
        parts = [] if counts is None else [f"{counts[i]:.0f} map{'' if counts[i] == 1 else 's'}"]
        if scores is not None:
            known = not math.isnan(scores[i])
            parts.append(f"{100 * scores[i]:.0f}%" if known else "\N{EN DASH}")
        words.append(", ".join(parts))
    return words


def _label(headings: Sequence[str], told: Mapping[str, Sequence[str]], *, boxed: bool) -> str:
    rows = [
        name + "".join(f"; {h}: {words}" for h, words in zip(headings, each, strict=True) if words)
        for name, each in told.items()
    ]
    outlined = ", the cell outlined" if boxed else ""
    return (
        f"Mean maps by percentile of the score, the best {headings[0]} on the left{outlined}. "
        f"One row a method: {'. '.join(rows)}."
    )


def _checked(name: str, values: Any, count: int) -> Tensor:
    """Mean maps as ``(B, h, w)`` in float64 on the host; NaN only where all of a map is."""
    maps = torch.as_tensor(values).detach().cpu().double()
    if maps.ndim != 3 or len(maps) != count or 0 in maps.shape:
        raise ShapeError(
            f"{name} has shape {tuple(maps.shape)} for {count} bins. Pass one mean map a bin. It must "
            "be (B, h, w)."
        )
    empty = maps.isnan().flatten(1).all(1)
    bad = int((~maps[~empty].isfinite()).sum())
    if bad:
        raise OptionError(
            f"{name} has {bad} values that are NaN or infinite, in bins that are not empty. Leave maps "
            "that are not finite out of the means. A mean map must be finite."
        )
    return maps


def _of_bins(name: str, values: Any, count: int) -> list[float]:
    numbers = torch.as_tensor(values).detach().cpu().double()
    if tuple(numbers.shape) != (count,):
        raise ShapeError(
            f"{name} has shape {tuple(numbers.shape)} for {count} bins. Pass one number a bin. It must "
            "be (B,)."
        )
    found: list[float] = numbers.tolist()
    return found


def _coloured(maps: Tensor, sign: Sign, percentile: float) -> list[Tensor]:
    """Maps of one scale as pictures, ``(3, h, w)``."""
    empty = maps.isnan().flatten(1).all(1)
    values = maps.nan_to_num(0)
    if sign == "positive":
        values = values.clamp(min=0)
    shown = values[values != 0].abs()
    largest = float(np.percentile(shown.numpy(), percentile)) if shown.numel() else 1.0
    unit = (values / largest).clamp(-1, 1)
    # As in overlays: the ends of PuOr are nearly black, and do not tell for from against.
    place = unit if sign == "positive" else 0.5 + 0.4 * unit
    colours = torch.from_numpy(matplotlib.colormaps[_COLOUR_MAPS[sign]](place.numpy())[..., :3])
    pictures = colours.permute(0, 3, 1, 2).float()
    pictures[empty] = _EMPTY
    return list(pictures)


def _outline(box: Sequence[float] | None, picture: Tensor) -> list[Box]:
    if box is None:
        return []
    return checked_boxes("box", torch.as_tensor([list(box)], dtype=torch.float64), picture)


def _colour_bar(axes: Axes, *, sign: Sign, percentile: float) -> None:
    low = -1.0 if sign == "signed" else 0.0
    ramp = torch.linspace(low, 1, 256, dtype=torch.float64).view(1, 1, 256)
    # The ramp's own largest value is 1, so it is drawn as it is.
    unit = "largest magnitude" if percentile == 100 else f"percentile {percentile:g}"
    picture = _coloured(ramp, sign, 100.0)[0]
    draw_scale(axes, picture, signed=sign == "signed", label=f"attribution; 1 = {unit} of each row")
