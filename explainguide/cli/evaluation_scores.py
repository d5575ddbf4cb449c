"""What the numbers of a row are means of, and the same of two rows on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from explainguide.cli.evaluation_rows import Row
from explainguide.evaluation.bootstrap import Interval
from explainguide.metrics import MAP_METRICS
from explainguide.visualization.evaluation_data import Score

__all__ = ["entry_of", "left_out", "paired", "single_scores", "units_of", "with_interval"]


def entry_of(key: str) -> tuple[Any, str]:
    """The metric of a number, and which part of it that is: ``"segmentation_miou"``."""
    known = [name for name in MAP_METRICS if key == name or key.startswith(f"{name}_")]
    name = max(known, key=len)
    return MAP_METRICS[name], key[len(name) + 1 :]


def single_scores(row: Row) -> Mapping[str, np.ndarray]:
    """The metrics that score each map alone, by their keys, ``(P,)``."""
    return row.scores.scores.get(row.layer, {})


def with_interval(found: Interval) -> Score:
    """An interval as the page shows it."""
    return Score(found.value, found.low, found.high, undefined=found.undefined, note=found.note)


def units_of(row: Row, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """What a number is the mean of, and of which image each is; None for what is no mean."""
    scores = row.scores
    if key in single_scores(row):
        return single_scores(row)[key], scores.pair_images
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


def left_out(row: Row, key: str) -> dict[str, Any]:
    """How many maps a number leaves out, and of how many, where that is known."""
    entry, _ = entry_of(key)
    masked = "segmentation" in entry.needs
    count = row.numbers.get(f"{entry.key}_undefined")
    if count is None:
        # Pairs without masks have no score, and no map of theirs is bad.
        return {"undefined": 0} if masked else {}
    of_pairs = not masked and "cell" not in entry.needs
    return {"undefined": int(count), **({"total": int(row.numbers["pairs"])} if of_pairs else {})}


def paired(one: Row, other: Row, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The scores of two rows on the same images and classes; None where they have no such."""
    if one.judged.images != other.judged.images:
        return None  # equal numbers of items are other images there
    first, second = units_of(one, key), units_of(other, key)
    if first is None or second is None or key == "f1":
        return None
    if not np.array_equal(first[1], second[1]):
        return None
    if key in single_scores(one) and not np.array_equal(one.scores.classes, other.scores.classes):
        return None
    return first[0], second[0], first[1]
