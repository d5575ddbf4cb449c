"""The metrics of the table (`explainguide.metrics.MAP_METRICS`) over the maps of each guided layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from explainguide.errors import DataError, OptionError, check_option
from explainguide.metrics import MAP_METRICS
from explainguide.metrics.table import reported, side_by_side

__all__ = ["MapScores", "PredictionScores", "check_metrics", "over_layers"]


def check_metrics(metrics: Sequence[str] | None) -> list[str]:
    """Keys of the table, each once: those that are named, or by default those that say so."""
    if metrics is None:
        default = [key for key, entry in MAP_METRICS.items() if entry.default]
        # Those that not every data set has come last.
        return sorted(default, key=lambda key: "segmentation" in MAP_METRICS[key].needs)
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        use = [metrics if isinstance(metrics, str) else "epg"]
        raise OptionError(
            f"metrics is {metrics!r}. Use {use!r}. A list or tuple of names is allowed."
        )
    metrics = list(metrics)
    for key in metrics:
        check_option("metric", key, MAP_METRICS)
    return list(dict.fromkeys(metrics))


class MapScores:
    """The metrics of one layer's maps.

    Args:
        metrics: Keys of the table, of metrics that take maps.
        threshold: Handed to the metrics that take one.
        fitted: Of a metric that takes a threshold, by its key, the one that was fitted on other images;
            it takes the place of `threshold`.
        device: Where the maps are.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        threshold: float | Literal["fit"],
        fitted: Mapping[str, float] | None = None,
        device: torch.device,
    ) -> None:
        self._fits = threshold == "fit" or fitted is not None
        self._keys, self._device = list(metrics), device
        self._threshold, self._fitted = threshold, dict(fitted or {})
        self._multilabel = False
        self._built: dict[str, Any] = {}

    @property
    def _metrics(self) -> dict[str, Any]:
        """The metrics by key, built once it is known whether labels are multi-hot, or at the end."""
        for key in self._keys if not self._built else ():
            kind = MAP_METRICS[key].kind
            self._built[key] = kind(**self._options(key)).to(self._device)
        return self._built

    def _options(self, key: str) -> dict[str, Any]:
        known: dict[str, Any] = {
            "threshold": self._fitted.get(key, self._threshold),
            "multilabel": self._multilabel,
        }
        return {name: known[name] for name in MAP_METRICS[key].options}

    def update(
        self, maps: Tensor, given: Mapping[str, Any], segmented: Tensor, *, multilabel: bool
    ) -> None:
        """Add the maps of a batch's pairs.

        Args:
            maps: ``(P, H, W)``.
            given: What metrics may need, by its name in the table; masks are None where none is known.
            segmented: Which pairs have masks that are known, ``(P,)`` bool.
            multilabel: Whether labels are multi-hot.
        """
        self._multilabel = multilabel
        for key, metric in self._metrics.items():
            rows = self._rows(key, maps, given, segmented)
            if rows is not None:
                metric.update(*rows)

    def _rows(
        self, key: str, maps: Tensor, given: Mapping[str, Any], segmented: Tensor
    ) -> list[Any] | None:
        """What a metric takes: of the pairs with masks, if it needs those; None without any."""
        needs = MAP_METRICS[key].needs
        rows = [maps, *(given[need] for need in needs)]
        if "segmentation" not in needs:
            return rows
        if given["segmentation"] is None:
            return None
        return [row[segmented] if isinstance(row, Tensor) else row for row in rows]

    def each(self, maps: Tensor, given: Mapping[str, Any], segmented: Tensor) -> dict[str, Tensor]:
        """One score a map, ``(P,)``, of the metrics that say how; NaN is undefined.

        Takes what `update` takes. A threshold that is fitted on these maps is not known yet, and the
        metrics that take it have no score.
        """
        scores = {}
        for key in self._keys:
            score, options = MAP_METRICS[key].each, self._options(key)
            rows = self._rows(key, maps, given, segmented)
            if score is None or rows is None or "fit" in options.values():
                continue
            found = score(*rows, **options)
            if len(found) < len(maps):
                found = maps.new_full((len(maps),), math.nan).masked_scatter(segmented, found)
            scores[key] = found
        return scores

    def compute(self) -> dict[str, float]:
        """The scores; those that need a segmentation only where they are defined."""
        scores: dict[str, float] = {}
        for key, metric in self._metrics.items():
            with warnings.catch_warnings():
                # Without annotations there is nothing to update, and NaN says so.
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                result = metric.compute()
            named = reported(key, result)
            optional = "segmentation" in MAP_METRICS[key].needs
            named = {k: v for k, v in named.items() if not (optional and math.isnan(v))}
            scores = side_by_side(scores, named)
        return scores

    def undefined(self) -> dict[str, int]:
        """After `compute`, how many maps were undefined, of the metrics that report it."""
        return {
            f"{key}_undefined": metric.undefined
            for key, metric in self._metrics.items()
            if MAP_METRICS[key].counts_undefined
        }

    def fitted(self) -> dict[str, float]:
        """After `compute`, the thresholds that were fitted, on these images or on others."""
        return {f"{key}_threshold": value for key, value in self.thresholds().items()}

    def thresholds(self) -> dict[str, float]:
        """The same, by the keys of the metrics."""
        return {
            key: metric.best_threshold
            for key, metric in self._metrics.items()
            if self._fits and "threshold" in MAP_METRICS[key].options
        }


class PredictionScores:
    """The metrics of predictions.

    Args:
        metrics: Keys of the table, of metrics that take predictions.
        groups: The names of the data's groups.
        device: Where the logits are.

    Raises:
        OptionError: If a metric needs groups, and the data set names none.
    """

    def __init__(self, metrics: Sequence[str], groups: Sequence[str], device: torch.device) -> None:
        self._metrics: dict[str, Any] = {}
        for key in metrics:
            entry = MAP_METRICS[key]
            if "groups" in entry.needs and not groups:
                raise OptionError(
                    f"metric {key!r} needs groups, and the data set names none. List their names in "
                    "its attribute groups, and let each item end with the index of one. Data with "
                    "groups are allowed."
                )
            known = {"groups": list(groups)}
            options = {name: known[name] for name in entry.options}
            self._metrics[key] = entry.kind(**options).to(device)

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor | None) -> None:
        """Add a batch.

        Raises:
            DataError: If a metric needs groups, and the items have none.
        """
        given = {"logits": logits, "labels": labels, "groups": groups}
        for key, metric in self._metrics.items():
            rows = [given[need] for need in MAP_METRICS[key].needs]
            if any(row is None for row in rows):
                raise DataError(
                    f"metric {key!r} needs groups, and the items have none. Return image, labels, "
                    "annotation, group. The index of a name in the data set's groups is allowed."
                )
            metric.update(*rows)

    def compute(self) -> dict[str, float]:
        """The scores."""
        scores: dict[str, float] = {}
        for key, metric in self._metrics.items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                scores = side_by_side(scores, reported(key, metric.compute()))
        return scores


def over_layers(maps: Mapping[str, MapScores]) -> dict[str, float]:
    """Means of the scores and sums of the undefined maps, and those of each of several layers.

    A fitted threshold is that of the first layer.
    """
    scores = {layer: metrics.compute() for layer, metrics in maps.items()}
    undefined = {layer: metrics.undefined() for layer, metrics in maps.items()}
    fitted = {layer: metrics.fitted() for layer, metrics in maps.items()}
    first = next(iter(maps))
    numbers: dict[str, float] = {
        key: sum(each.get(key, math.nan) for each in scores.values()) / len(maps)
        for key in dict.fromkeys(chain.from_iterable(scores.values()))
    }
    counts = {key: sum(each[key] for each in undefined.values()) for key in undefined[first]}
    parts: list[dict[str, float]] = [numbers, {**counts}, fitted[first]]
    if len(maps) > 1:
        for layer in maps:
            own = side_by_side(scores[layer], {**undefined[layer]}, fitted[layer])
            parts.append({f"{key} {layer}": value for key, value in own.items()})
    return side_by_side(*parts)
