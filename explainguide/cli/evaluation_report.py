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
from typing import Any

import numpy as np

import explainguide
from explainguide.cli.evaluation_rows import Row
from explainguide.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
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
    first = next((key for key in keys if any(key in _single(row) for row in rows)), None)
    own = [row for row in rows if not row.reference]
    labels = {id(row): _result(row, {}).label for row in rows}
    several = len({row.layer for row in own}) > 1
    players = _each_model(own) if "gridpg" in keys else []
    games = [_game(row, args.grid_size, labels[id(row)]) for row in players]
    grids = [gallery for gallery, _ in games]
    return EvaluationPage(
        title=args.title or "What the models look at",
        metrics=notes,
        results=[_result(row, notes, _against(row, rows, first, notes)) for row in rows],
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
    entry, part = _entry(key)
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


def _entry(key: str) -> tuple[Any, str]:
    """The metric of a number, and which part of it that is: ``"segmentation_miou"``."""
    known = [name for name in MAP_METRICS if key == name or key.startswith(f"{name}_")]
    name = max(known, key=len)
    return MAP_METRICS[name], key[len(name) + 1 :]


def _single(row: Row) -> Mapping[str, np.ndarray]:
    return row.scores.scores.get(row.layer, {})


def _score(found: Interval) -> Score:
    return Score(found.value, found.low, found.high, undefined=found.undefined, note=found.note)


def _units(row: Row, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """What a number is the mean of, and of which image each is; None for what is no mean."""
    scores = row.scores
    if key in _single(row):
        return _single(row)[key], scores.pair_images
    if key == "accuracy":
        return (scores.labels == scores.answers).astype(float), scores.images
    if key == "f1" and scores.labels.ndim == 2:
        # F1 = 2 TP / (2 TP + FP + FN): the mean of two ones for each hit and a zero for each error.
        hits = (scores.labels & scores.answers).sum(1)
        errors = (scores.labels ^ scores.answers).sum(1)
        values = np.concatenate([np.ones(2 * int(hits.sum())), np.zeros(int(errors.sum()))])
        images = [np.repeat(scores.images, 2 * hits), np.repeat(scores.images, errors)]
        return values, np.concatenate(images)
    return None


def _result(row: Row, notes: Mapping[str, MetricNote], remarks: Sequence[str] = ()) -> Result:
    scores: dict[str, Score] = {}
    for key in notes:
        if key not in row.numbers or (row.reference and key in _CLASSIFICATION):
            continue
        units = _units(row, key)
        scores[key] = Score(row.numbers[key])
        if units is not None:
            scores[key] = _score(bootstrap_interval(units[0], images=units[1]))
        if key not in _CLASSIFICATION:
            scores[key] = replace(scores[key], **_left_out(row, key))
    model = "reference" if row.reference else row.model
    return Result(model, scores, row.attribution, row.layer, remarks, row.reference)


def _left_out(row: Row, key: str) -> dict[str, Any]:
    """How many maps a number leaves out, and of how many, where that is known."""
    entry, _ = _entry(key)
    masked = "segmentation" in entry.needs
    count = row.numbers.get(f"{entry.key}_undefined")
    if count is None:
        return (
            {"undefined": 0} if masked else {}
        )  # pairs without masks have no score, and no map is bad
    of_pairs = not masked and "cell" not in entry.needs
    return {"undefined": int(count), **({"total": int(row.numbers["pairs"])} if of_pairs else {})}


def _against(
    row: Row, rows: Sequence[Row], key: str | None, notes: Mapping[str, MetricNote]
) -> list[str]:
    """What to say of a row that does not beat a centred Gaussian."""
    center = next((r for r in rows if r.reference and r.attribution == "center"), None)
    if row.reference or center is None:
        return []
    below, unsure = [], []
    for name in _single(row):
        entry = MAP_METRICS[name]
        pair = _pair(center, row, name)
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


def _pair(one: Row, other: Row, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The scores of two rows on the same images and classes; None where they have no such."""
    if one.judged.images != other.judged.images:
        return None  # equal numbers of items are other images there
    first, second = _units(one, key), _units(other, key)
    if first is None or second is None or key == "f1":
        return None
    if not np.array_equal(first[1], second[1]):
        return None
    if key in _single(one) and not np.array_equal(one.scores.classes, other.scores.classes):
        return None
    return first[0], second[0], first[1]


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
        pair = _pair(one, other, key)
        if pair is not None:
            scores[key] = _score(paired_difference(*pair[:2], images=pair[2]))
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
                if key in _single(row):
                    own = row.scores.classes == index
                    images = row.scores.pair_images[own]
                    found = bootstrap_interval(_single(row)[key][own], images=images)
                    of_class.setdefault(name, {})[labels[id(row)]] = _score(found)
        text = "A class without annotated images has no bar."
        bars.append(Bars("By class", key, of_class, text))
    of_group: dict[str, dict[str, Score]] = {}
    for row in _each_model(rows):
        if row.scores.groups is None or row.scores.labels.ndim == 2:
            continue
        right = (row.scores.labels == row.scores.answers).astype(float)
        for index, name in enumerate(row.judged.groups):
            own = row.scores.groups == index
            of_group.setdefault(name, {})[row.model] = _score(bootstrap_interval(right[own]))
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
        units = _units(row, key)
        if units is not None:
            name = f"{row.attribution} of {row.model}" if several else row.attribution
            name = row.attribution if row.reference else name
            found = bootstrap_interval(units[0], images=units[1])
            methods.setdefault(name, {})[row.layer] = _score(found)
    return LayerTable(key, methods)


def _galleries(rows: Sequence[Row], key: str, labels: Mapping[int, str]) -> list[Gallery]:
    """The best and the worst images of each model, and what changed most from the first to the next."""
    galleries = []
    shown = _each_model([r for r in rows if key in _single(r)])
    pairs = _same_but_model([r for r in rows if key in _single(r)])
    sign = 1 if MAP_METRICS[key].higher_is_better is not False else -1
    for one, other in pairs[:1]:
        both = _pair(one, other, key)
        if both is not None:
            order = _defined_order(-np.abs(both[1] - both[0]))[:_SHOWN]
            examples = _examples([one, other], order, key, labels)
            galleries.append(Gallery("before_after", key, examples))
    for row in shown:
        order = _defined_order(sign * _single(row)[key])
        for kind, chosen in (("worst", order[:_SHOWN]), ("best", order[::-1][:_SHOWN])):
            examples = _examples([row], chosen, key, labels)
            galleries.append(Gallery(kind, key, examples, labels[id(row)]))  # type: ignore[arg-type]
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
            ShownMap(labels[id(row)], found[image, k], float(_single(row)[key][pair]))
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
