"""The scores of an evaluation one by one: for intervals, for classes and groups, and for examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from explainguide.evaluation.classification import is_multilabel
from explainguide.processes import process

__all__ = ["BatchMaps", "Record", "Scores"]


class BatchMaps(NamedTuple):
    """What `evaluate` hands to `on_batch`: a batch, and the maps of its annotated classes.

    P pairs are an image with a class that it is annotated for.

    Attributes:
        indices: Which items of the data set the images are, ``(N,)`` int64, on the host.
        images: As the model took them, ``(N, C, H, W)``.
        labels: ``(N,)`` int64, or ``(N, K)`` float32.
        groups: ``(N,)`` int64, or None.
        logits: ``(N, K)``.
        rows: Which of the N images a pair is of, ``(P,)`` int64.
        classes: Its class, ``(P,)`` int64.
        regions: Where its map should be, ``(P, H, W)``.
        maps: Layer to maps at the image's size, ``(P, H, W)``, signed, any scale.
        scores: Layer to the metrics that give one score a map, ``(P,)``; NaN is undefined.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    groups: Tensor | None
    logits: Tensor
    rows: Tensor
    classes: Tensor
    regions: Tensor
    maps: Mapping[str, Tensor]
    scores: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Scores:
    """N images and P pairs of an image with an annotated class, on the host.

    Attributes:
        images: Which items of the data set, ``(N,)``.
        labels: ``(N,)`` int64, or ``(N, K)`` bool.
        answers: What the model said, in the same form: the class of the highest logit, or where a
            logit is from 0 on.
        groups: ``(N,)``, or None.
        pair_images: Of which item of the data set a pair is, ``(P,)``.
        classes: Its class, ``(P,)``.
        scores: Layer to the key of a metric to its scores, ``(P,)``; NaN is undefined.
    """

    images: np.ndarray
    labels: np.ndarray
    answers: np.ndarray
    groups: np.ndarray | None
    pair_images: np.ndarray
    classes: np.ndarray
    scores: Mapping[str, Mapping[str, np.ndarray]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; None is undefined."""
        plain = {
            name: None if value is None else value.astype(int).tolist()
            for name, value in vars(self).items()
            if name != "scores"
        }
        scores = {
            layer: {
                key: [None if math.isnan(v) else v for v in own.tolist()]
                for key, own in each.items()
            }
            for layer, each in self.scores.items()
        }
        return {**plain, "scores": scores}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """What `to_dict` gave."""
        arrays: dict[str, Any] = {
            name: None if value is None else np.asarray(value, dtype=np.int64)
            for name, value in values.items()
            if name != "scores"
        }
        for name in ("labels", "answers"):
            if arrays[name].ndim == 2:
                arrays[name] = arrays[name].astype(bool)
        scores = {
            layer: {
                key: np.asarray([math.nan if v is None else v for v in own], dtype=np.float64)
                for key, own in each.items()
            }
            for layer, each in values["scores"].items()
        }
        return cls(**arrays, scores=scores)


class Record:
    """Keeps what `Scores` holds of every batch: ``evaluate(..., on_batch=record.add)``.

    Nothing is read from the device before `finish`. Memory grows by some numbers an image, not by maps.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Any]] = []

    def add(self, batch: BatchMaps) -> None:
        """Keep the scores of a batch."""
        several = is_multilabel(batch.labels)
        yes = several or batch.logits.shape[1] == 1
        answers = batch.logits >= 0 if yes else batch.logits.argmax(1)
        labels = batch.labels > 0.5 if several else batch.labels.reshape(len(batch.labels))
        indices = batch.indices.to(batch.rows.device)
        self._batches.append(
            {
                "images": batch.indices,
                "labels": labels,
                "answers": answers if several else answers.reshape(len(answers)),
                "groups": batch.groups,
                "pair_images": indices[batch.rows],
                "classes": batch.classes,
                "scores": {layer: dict(own) for layer, own in batch.scores.items()},
            }
        )

    def finish(self) -> Scores:
        """The scores of all processes, in the order of the data set.

        Every process calls it.
        """
        parts: list[Any] = [[_on_host(batch) for batch in self._batches]]
        if process()[1] > 1:
            parts = [None] * process()[1]
            torch.distributed.all_gather_object(parts, [_on_host(b) for b in self._batches])
        return _joined([batch for part in parts for batch in part])


def _on_host(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _on_host(part) for name, part in value.items()}
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _joined(batches: Sequence[Mapping[str, Any]]) -> Scores:
    """One table of all batches; images, and with them pairs, by their index."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([batch[name] for batch in batches])

    if not batches:
        nothing = np.zeros(0, dtype=np.int64)
        return Scores(nothing, nothing, nothing, None, nothing, nothing, {})
    order = np.argsort(column("images"), kind="stable")
    pairs = np.argsort(column("pair_images"), kind="stable")
    first = batches[0]
    # Not every batch has every score: of masks, for example, none may be in it.
    names = dict.fromkeys(
        (layer, key) for b in batches for layer, own in b["scores"].items() for key in own
    )
    scores: dict[str, dict[str, np.ndarray]] = {}
    for layer, key in names:
        parts = [
            b["scores"].get(layer, {}).get(key, np.full(len(b["classes"]), np.nan)) for b in batches
        ]
        scores.setdefault(layer, {})[key] = np.concatenate(parts).astype(np.float64)[pairs]
    return Scores(
        images=column("images")[order],
        labels=column("labels")[order],
        answers=column("answers")[order],
        groups=None if first["groups"] is None else column("groups")[order],
        pair_images=column("pair_images")[pairs],
        classes=column("classes")[pairs],
        scores=scores,
    )
