"""The points of a sweep: each epoch of each training; fronts, and the models to show."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explainguide.metrics.pareto import pareto_front, representative
from explainguide.training.run_folder import History

__all__ = ["UNGUIDED", "SweepResult", "make_points", "method_of", "points_as_csv"]

UNGUIDED = "unguided"
_NOT_SCORES = ("epoch", "loss", "loss_loc", "lr", "seconds", "skipped", "images", "pairs")


@dataclass
class SweepResult:
    """What a sweep found.

    Attributes:
        points: One dict an epoch of a training: ``"training"``, ``"epoch"``, ``"method"``,
            ``"settings"``, ``"scores"``, ``"checkpoint"`` (relative to the folder, or None where it
            was not worth keeping), ``"front"`` (on the front of its method), ``"best"`` (on that of
            all).
        chosen: Method to the index of its representative point; None where every point with a
            checkpoint loses too much, or EPG is not known.
        baseline: Score of the network without guidance, in [0, 1].
        trainings: One dict a training: ``"training"``, ``"state"`` (``"complete"``, ``"pruned"``,
            ``"fail"`` or ``"running"``), ``"settings"``, ``"error"``.
        test: Method to its representative's scores on the test set; empty without one, or while
            other processes are still training.
        objectives: The names of the scores that are maximised.
    """

    points: list[dict[str, Any]]
    chosen: dict[str, int | None]
    baseline: float
    trainings: list[dict[str, Any]]
    objectives: list[str]
    test: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def front(self) -> list[int]:
        """Indices of the points that no other dominates, of all methods."""
        return [index for index, point in enumerate(self.points) if point["best"]]

    @property
    def running(self) -> int:
        """Trainings that other processes have not ended."""
        return sum(training["state"] == "running" for training in self.trainings)


def method_of(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """What a method is called: the values that tell it apart."""
    if settings.get("lam") == 0 and "lam" in settings:
        names = [name for name in names if name in settings]
        said = ", ".join(_said(settings[name]) for name in names)
        return f"{UNGUIDED}, {said}" if said else UNGUIDED
    return ", ".join(_said(settings[name]) for name in names) or "guided"


def _said(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def make_points(
    trainings: Sequence[Mapping[str, Any]],
    *,
    methods: Sequence[str],
    objectives: Sequence[str],
    baseline: float | None,
    max_drop: float,
    folder: Path,
) -> SweepResult:
    """Points, fronts and representatives of what was trained.

    Args:
        trainings: Each with ``"training"``, ``"state"``, ``"settings"``, ``"rows"``, ``"path"``.
        methods: The fields that tell methods apart.
        objectives: Names of scores, the first that of the answers.
        baseline: Score without guidance; None is the mean over unguided trainings of the highest.
        max_drop: How much of it may be lost.
        folder: Of the sweep, from which checkpoints are named.
    """
    points: list[dict[str, Any]] = []
    unguided: list[float] = []
    for training in trainings:
        rows = [_numbers(row) for row in training["rows"]]
        settings = training["settings"]
        if settings.get("lam") == 0 and rows:
            unguided.append(max(row.get(objectives[0], math.nan) for row in rows))
        kept = set(History(rows).front)
        for row in rows:
            epoch = int(row["epoch"])
            file = training["path"] / f"epoch_{epoch:03d}.pt"
            there = epoch in kept and file.is_file()
            points.append(
                {
                    "training": training["training"],
                    "epoch": epoch,
                    "method": method_of(settings, methods),
                    "settings": dict(settings),
                    "scores": {k: v for k, v in row.items() if k not in _NOT_SCORES},
                    "checkpoint": file.relative_to(folder).as_posix() if there else None,
                    "front": False,
                    "best": False,
                }
            )
    if baseline is None:
        baseline = sum(unguided) / len(unguided) if unguided else math.nan
    chosen: dict[str, int | None] = {}
    for method in dict.fromkeys(point["method"] for point in points):
        own = [i for i, point in enumerate(points) if point["method"] == method]
        for index in _front(points, own, objectives):
            points[index]["front"] = True
        # Of those whose checkpoint was kept, so that there is a model to show.
        own = [i for i in own if points[i]["checkpoint"] is not None]
        table = [[_score(points[i], name) for name in (objectives[0], "epg")] for i in own]
        place = None
        if table and 0 <= baseline <= 1:
            place = representative(table, baseline, max_drop=max_drop)
        chosen[method] = None if place is None else own[place]
    for index in _front(points, range(len(points)), objectives):
        points[index]["best"] = True
    told = [
        {key: training.get(key) for key in ("training", "state", "settings", "error")}
        for training in trainings
    ]
    return SweepResult(points, chosen, baseline, told, list(objectives))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in row.items()}


def _score(point: Mapping[str, Any], name: str) -> float:
    return float(point["scores"].get(name, math.nan))


def _front(
    points: Sequence[Mapping[str, Any]], own: Sequence[int], objectives: Sequence[str]
) -> list[int]:
    table = [[_score(points[i], name) for name in objectives] for i in own]
    # A score that no point has, as EPG without annotations, plays no part.
    known = [c for c in range(len(objectives)) if any(not math.isnan(row[c]) for row in table)]
    if not known:
        return []
    return [own[i] for i in pareto_front([[row[c] for c in known] for row in table])]


def points_as_csv(result: SweepResult) -> bytes:
    """A line a point, for other programs."""
    rows = [
        {
            **{key: point[key] for key in ("training", "epoch", "method")},
            **{name: _said(value) for name, value in point["settings"].items()},
            **point["scores"],
            **{key: point[key] for key in ("front", "best", "checkpoint")},
        }
        for point in result.points
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
