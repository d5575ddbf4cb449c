"""The metrics of the table (`explainguide.metrics.MAP_METRICS`) over the maps of each guided layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from explainguide.errors import OptionError, check_option
from explainguide.metrics import MAP_METRICS
from explainguide.metrics.table import reported, side_by_side

__all__ = ["MapScores", "check_metrics", "over_layers"]


def check_metrics(metrics: Sequence[str] | None) -> list[str]:
    """Keys of the table, each once: those that are named, or by default those that say so."""
    if metrics is None:
        default = [key for key, entry in MAP_METRICS.items() if entry.default and entry.takes_maps]
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
        if not MAP_METRICS[key].takes_maps:
            maps = ", ".join(repr(name) for name, entry in MAP_METRICS.items() if entry.takes_maps)
            raise OptionError(
                f"metric {key!r} is of predictions, not of maps. Update "
                f"{MAP_METRICS[key].kind.__name__} with {', '.join(MAP_METRICS[key].needs)} yourself. "
                f"{maps} are allowed."
            )
    return list(dict.fromkeys(metrics))


class MapScores:
    """The metrics of one layer's maps.

    Args:
        metrics: Keys of the table.
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
        self._metrics: dict[str, Any] = {}
        self._options: dict[str, dict[str, Any]] = {}
        for key in metrics:
            entry = MAP_METRICS[key]
            known: dict[str, Any] = {"threshold": (fitted or {}).get(key, threshold)}
            self._options[key] = {name: known[name] for name in entry.options}
            self._metrics[key] = entry.kind(**self._options[key]).to(device)

    def update(
        self, maps: Tensor, target: Tensor, box: Tensor, masks: Tensor | None, segmented: Tensor
    ) -> None:
        """Add the maps of a batch's pairs; only the ``segmented`` rows of ``masks`` are known."""
        given: dict[str, Any] = {"region": target, "boxes": box, "segmentation": masks}
        for key, metric in self._metrics.items():
            needs = MAP_METRICS[key].needs
            rows = [maps, *(given[need] for need in needs)]
            if "segmentation" not in needs:
                metric.update(*rows)
            elif masks is not None:
                metric.update(*(row[segmented] for row in rows))

    def each(
        self, maps: Tensor, target: Tensor, box: Tensor, masks: Tensor | None, segmented: Tensor
    ) -> dict[str, Tensor]:
        """One score a map, ``(P,)``, of the metrics that say how; NaN is undefined.

        Takes what `update` takes. A threshold that is fitted on these maps is not known yet, and the
        metrics that take it have no score.
        """
        given: dict[str, Any] = {"region": target, "boxes": box, "segmentation": masks}
        scores = {}
        for key, options in self._options.items():
            entry = MAP_METRICS[key]
            absent = masks is None and "segmentation" in entry.needs
            if entry.each is None or absent or "fit" in options.values():
                continue
            rows = [maps, *(given[need] for need in entry.needs)]
            found = entry.each(*rows, **options)
            if "segmentation" in entry.needs:
                found = torch.where(segmented, found, torch.nan)
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
