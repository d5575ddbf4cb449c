"""The report of ``explainguide evaluate``: from rows to a page with intervals, charts and maps."""

from __future__ import annotations

import argparse
import datetime
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise

import numpy as np

import explainguide
from explainguide.cli.evaluation_rows import Row
from explainguide.cli.evaluation_scores import (
    entry_of,
    left_out,
    paired,
    single_scores,
    units_of,
    with_interval,
)
from explainguide.evaluation.bootstrap import bootstrap_interval, paired_difference
from explainguide.metrics import MAP_METRICS, aggregate_maps, pareto_front
from explainguide.metrics.aggregate import PERCENTILES
from explainguide.visualization.evaluation_data import (
    Bars,
    Better,
    Difference,
    EvaluationPage,
    Example,
    Gallery,
    LayerTable,
    MeanMap,
    MeanMaps,
    MetricNote,
    Pareto,
    Result,
    Score,
    ShownMap,
)

__all__ = ["build_page"]

_SHOWN = 6  # images of a gallery
_MOST_CLASSES = 40
_MOST_BARS = 4  # of a class; with more, one for each model
_CLASSIFICATION = {
    "f1": MetricNote(
        "F1", "Of yes and no for every class of every image, micro: a logit from 0 on is yes."
    ),
    "map": MetricNote("mAP", "Average precision of each class, and their mean."),
    "accuracy": MetricNote("Accuracy", "Share of the images that are classified right."),
    "worst_class_accuracy": MetricNote(
        "Worst class", "Accuracy of the class for which it is lowest."
    ),
}
_NOT_SHOWN = (
    "Maps say where the evidence for a class is, at the layer that is named. What it is there, the "
    "shape or the colour of an object, they do not say.",
    "Only classes that an image is annotated for are explained. Evidence for other classes, and "
    "against this one, has no map here.",
    "A map in the box is no proof that the model would answer the same on another background. That "
    "is measured on images that have one.",
    "Intervals come of drawing these images again. Another training of the same model may differ by "
    "more.",
)


def build_page(rows: Sequence[Row], args: argparse.Namespace, command: str) -> EvaluationPage:
    """All that the report shows.

    Args:
        rows: What was measured.
        args: The options of the command.
        command: As it was written.
    """
    keys = list(dict.fromkeys(key for row in rows for key in _reported(row)))
    notes = {key: _note(key) for key in keys}
    first = next((key for key in keys if any(key in single_scores(row) for row in rows)), None)
    own = [row for row in rows if not row.reference]
    labels = {id(row): _result(row, {}).label for row in rows}
    several = len({row.layer for row in own}) > 1
    players = _each_model(own) if "gridpg" in keys else []
    games = [_game(row, args.grid_size, labels[id(row)]) for row in players]
    grids = [gallery for gallery, _ in games]
    return EvaluationPage(
        title=args.title or "What the models look at",
        metrics=notes,
        results=[_result(row, notes, _against(row, rows, notes)) for row in rows],
        differences=[_difference(one, other, notes, labels) for one, other in _same_but_model(own)],
        bars=_bars(own, first, labels),
        trade_offs=_trade_offs(own, first, labels),
        layer_tables=[] if first is None or not several else [_layers(rows, first)],
        mean_maps=[means for _, means in games],
        galleries=[*([] if first is None else _galleries(own, first, labels)), *grids],
        not_shown=_NOT_SHOWN,
        provenance=_provenance(rows, command),
        skipped=dict.fromkeys(rows[0].skipped(), "could not be read"),
    )


def _reported(row: Row) -> list[str]:
    """The keys of the numbers that are columns."""
    endings = ("_undefined", "_threshold", "_grids")
    counts = ("images", "pairs", "skipped")
    return [key for key in row.numbers if key not in counts and not key.endswith(endings)]


def _note(key: str) -> MetricNote:
    if key in _CLASSIFICATION:
        return _CLASSIFICATION[key]
    entry, part = entry_of(key)
    document = (entry.kind.__doc__ or "").strip().split("\n\n")[0]
    meaning = " ".join(document.replace("`", "").split())
    low, high = (getattr(entry.kind, f"plot_{end}_bound", None) for end in ("lower", "upper"))
    better: dict[bool | None, Better] = {True: "higher", False: "lower", None: "neither"}
    title = f"{entry.title}, {part.replace('_', ' ')}" if part else entry.title
    return MetricNote(
        title,
        meaning,
        better[entry.higher_is_better],
        low,
        high,
        percent=(low, high) == (0.0, 1.0),
    )


def _result(row: Row, notes: Mapping[str, MetricNote], remarks: Sequence[str] = ()) -> Result:
    scores: dict[str, Score] = {}
    for key in notes:
        if key not in row.numbers or (row.reference and key in _CLASSIFICATION):
            continue
        units = units_of(row, key)
        scores[key] = Score(row.numbers[key])
        if units is not None:
            scores[key] = with_interval(bootstrap_interval(units[0], images=units[1]))
        if key not in _CLASSIFICATION:
            scores[key] = replace(scores[key], **left_out(row, key))
    model = f"reference, as for {row.model}" if row.reference else row.model
    return Result(model, scores, row.attribution, row.layer, remarks, row.reference)


def _against(row: Row, rows: Sequence[Row], notes: Mapping[str, MetricNote]) -> list[str]:
    """What to say of a row that does not beat a centred Gaussian."""
    same = (r for r in rows if r.reference and r.judged.images == row.judged.images)
    center = next((r for r in same if r.attribution == "center"), None)
    if row.reference or center is None:
        return []
    below, unsure = [], []
    for name in single_scores(row):
        entry = MAP_METRICS[name]
        pair = paired(center, row, name)
        if entry.higher_is_better is None or pair is None:
            continue
        found = paired_difference(*pair[:2], images=pair[2])
        sign = 1 if entry.higher_is_better else -1
        if sign * found.value <= 0:
            below.append(notes[name].title)
        elif min(sign * found.low, sign * found.high) <= 0:
            unsure.append(notes[name].title)
    remarks = []
    if below:
        remarks.append(f"Does not beat a centred Gaussian in {_listed(below)}.")
    if unsure:
        remarks.append(f"In {_listed(unsure)} not surely above a centred Gaussian.")
    return remarks


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _same_but_model(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of one attribution and layer on the same images, of two models one after the other."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        images = sorted(map(str, row.judged.images.items()))
        groups.setdefault((row.attribution, row.layer, *images), []).append(row)
    return [pair for group in groups.values() for pair in pairwise(group)]


def _difference(
    one: Row, other: Row, notes: Mapping[str, MetricNote], labels: Mapping[int, str]
) -> Difference:
    scores = {}
    for key in notes:
        pair = paired(one, other, key)
        if pair is not None:
            scores[key] = with_interval(paired_difference(*pair[:2], images=pair[2]))
    images = len(np.intersect1d(one.scores.images, other.scores.images))
    return Difference(labels[id(one)], labels[id(other)], scores, images)


def _bars(rows: Sequence[Row], key: str | None, labels: Mapping[int, str]) -> list[Bars]:
    """By class: of maps where there are any, else of answers; and by group."""
    bars = []
    if len(rows) > _MOST_BARS:
        rows = _each_model(rows)
    classes = rows[0].judged.classes if rows else []
    if key is not None and len(classes) <= _MOST_CLASSES:
        of_class: dict[str, dict[str, Score]] = {}
        for index, name in enumerate(classes):
            for row in rows:
                if key in single_scores(row):
                    own = row.scores.classes == index
                    images = row.scores.pair_images[own]
                    found = bootstrap_interval(single_scores(row)[key][own], images=images)
                    of_class.setdefault(name, {})[labels[id(row)]] = with_interval(found)
        text = "A class without annotated images has no bar."
        bars.append(Bars("By class", key, of_class, text))
    of_group: dict[str, dict[str, Score]] = {}
    for row in _each_model(rows):
        if row.scores.groups is None or row.scores.labels.ndim == 2:
            continue
        right = (row.scores.labels == row.scores.answers).astype(float)
        for index, name in enumerate(row.judged.groups):
            own = row.scores.groups == index
            of_group.setdefault(name, {})[row.model] = with_interval(bootstrap_interval(right[own]))
    if of_group:
        text = "A group without images has no bar."
        bars.append(Bars("By group", "accuracy", of_group, text))
    return bars


def _each_model(rows: Sequence[Row]) -> list[Row]:
    """The first row of each model: the others answer the same."""
    return list({row.model: row for row in reversed(rows)}.values())[::-1]


def _trade_offs(rows: Sequence[Row], key: str | None, labels: Mapping[int, str]) -> list[Pareto]:
    """What models gain in maps against what they lose in answers."""
    if key is None or len({row.model for row in rows}) < 2:
        return []
    plots = []
    answers = "f1" if "f1" in rows[0].numbers else "accuracy"
    for attribution, layer in dict.fromkeys((row.attribution, row.layer) for row in rows):
        own = [r for r in rows if (r.attribution, r.layer) == (attribution, layer)]
        points = {labels[id(r)]: (r.numbers[answers], r.numbers[key]) for r in own}
        if len(points) < 2 or any(math.isnan(v) for point in points.values() for v in point):
            continue
        sign = 1 if MAP_METRICS[key].higher_is_better is not False else -1
        front = pareto_front([(x, sign * y) for x, y in points.values()], bin=None)
        names = list(points)
        plots.append(Pareto(answers, key, points, [names[i] for i in front]))
    return plots


def _layers(rows: Sequence[Row], key: str) -> LayerTable:
    """Every method at every layer (ML-Att)."""
    several = len({row.model for row in rows if not row.reference}) > 1
    methods: dict[str, dict[str, Score]] = {}
    for row in rows:
        units = units_of(row, key)
        if units is not None:
            name = f"{row.attribution} of {row.model}" if several else row.attribution
            name = row.attribution if row.reference else name
            found = bootstrap_interval(units[0], images=units[1])
            methods.setdefault(name, {})[row.layer] = with_interval(found)
    return LayerTable(key, methods)


def _galleries(rows: Sequence[Row], key: str, labels: Mapping[int, str]) -> list[Gallery]:
    """What changed most from the first model to the second; the worst and the best of each model."""
    galleries = []
    rows = [row for row in rows if key in single_scores(row)]
    sign = 1 if MAP_METRICS[key].higher_is_better is not False else -1
    for one, other in _same_but_model(rows)[:1]:
        both = paired(one, other, key)
        if both is not None:
            order = _defined_order(-np.abs(both[1] - both[0]))[:_SHOWN]
            examples = _examples([one, other], order, key, labels)
            galleries.append(Gallery("before_after", key, examples))
    for row in _each_model(rows):
        order = _defined_order(sign * single_scores(row)[key])
        worst = _examples([row], order[:_SHOWN], key, labels)
        best = _examples([row], order[::-1][:_SHOWN], key, labels)
        galleries.append(Gallery("worst", key, worst, labels[id(row)]))
        galleries.append(Gallery("best", key, best, labels[id(row)]))
    return galleries


def _game(row: Row, n: int, label: str) -> tuple[Gallery, MeanMaps]:
    """Grids with the maps of two of their cells, and the mean maps of the first cell of all grids."""
    game = row.play(n, examples=_SHOWN // 2)
    examples = []
    for number, grid in enumerate(game.examples, start=1):
        height, width = (side // n for side in grid.image.shape[-2:])
        for cell in (0, n * n - 1):
            top, left = cell % n * height, cell // n * width
            box = np.array([[left, top, left + width, top + height]], dtype=np.float32)
            shown = ShownMap(label, grid.maps[cell], float(grid.scores[cell]))
            name = f"grid {number}, cell {cell + 1}"
            of_class = row.judged.classes[int(grid.labels[cell])]
            examples.append(Example(row.judged.shown(grid.image), name, of_class, [shown], box))
    gallery = Gallery("grid", "gridpg", examples, label)
    assert game.kept is not None
    assert game.kept_scores is not None
    found = aggregate_maps(game.kept.clamp(min=0), game.kept_scores)
    bins = [
        MeanMap(f"{a} to {b}%", int(count), own if count else None)
        for (a, b), count, own in zip(pairwise(PERCENTILES), found.counts, found.maps, strict=True)
    ]
    return gallery, MeanMaps(label, "gridpg", bins)


def _defined_order(scores: np.ndarray) -> np.ndarray:
    """Indices of the defined scores, from the lowest on."""
    order = np.argsort(scores, kind="stable")
    return order[~np.isnan(scores[order])]


def _examples(
    rows: Sequence[Row], pairs: np.ndarray, key: str, labels: Mapping[int, str]
) -> list[Example]:
    images = rows[0].scores.pair_images[pairs].tolist()
    classes = rows[0].scores.classes[pairs].tolist()
    maps = [row.look(images) for row in rows]
    examples = []
    for pair, image, k in zip(pairs, images, classes, strict=True):
        shown = [
            ShownMap(labels[id(row)], found[image, k], float(single_scores(row)[key][pair]))
            for row, found in zip(rows, maps, strict=True)
        ]
        picture, boxes = rows[0].judged.picture(image, k)
        name, of_class = rows[0].judged.names[image], rows[0].judged.classes[k]
        examples.append(Example(picture, name, of_class, shown, boxes))
    return examples


def _provenance(rows: Sequence[Row], command: str) -> dict[str, str]:
    numbers = rows[0].numbers
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "captum")}
    return {
        "command": command,
        "images": f"{numbers['images']:.0f}, of which {numbers['skipped']:.0f} could not be read",
        "maps": f"{numbers['pairs']:.0f} (image, class) pairs",
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "explainguide": explainguide.__version__,
        "Python": platform.python_version(),
        **packages,
        "intervals": "bootstrap over images, BCa, 2000 draws, seed 0",
    }
