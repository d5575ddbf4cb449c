"""A sweep: trainings over settings, the front of all their epochs, and the model of each method."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from explainguide.errors import (
    GuidanceError,
    OptionError,
    check_number,
    check_option,
    operation,
)
from explainguide.evaluation.measure import evaluate
from explainguide.studies.optuna_study import SAMPLERS, Claim, OptunaStudy, open_storage, quiet
from explainguide.studies.search import LogRange, Search
from explainguide.studies.sweep_page import write_page
from explainguide.studies.sweep_points import SweepResult, make_points, points_as_csv
from explainguide.training.checkpoints import load_checkpoint, write_whole
from explainguide.training.config import TrainConfig
from explainguide.training.loop import train

__all__ = ["sweep"]

_ENOUGH = 4  # trainings, before a median says anything


@operation("sweep")
def sweep(
    build: Callable[[], nn.Module],
    train_data: Any,
    val_data: Any,
    *,
    search: Mapping[str, Sequence[Any] | LogRange],
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    sampler: str = "grid",
    trials: int | None = None,
    storage: str | None = None,
    name: str = "sweep",
    objectives: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    baseline: float | None = None,
    max_drop: float = 0.05,
    prune_after: int | None = None,
    test_data: Any = None,
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train with many settings, and find the front of what each epoch of each training reached.

    The protocol of the papers: every epoch of every training is a point of classification score,
    EPG and IoU; the Pareto front over lambdas and epochs compares methods, and the model to show of
    a method is the point of highest EPG that loses at most `max_drop` of the score without
    guidance. It is how lam is chosen. All scores are on `val_data`.

    Unguided trainings are made besides, for each searched seed and each searched layer,
    attribution and region, so that maps before and after can be compared.

    Several processes, or machines that share the folder and the storage, work on one sweep by
    running the same call. A training that was interrupted is taken up by the next process that
    looks, after its last whole epoch; a lock on a file tells those that run from those that died.
    A training whose loss is not finite counts as failed, and the others go on; any other error
    ends this process, and its training is taken up later.

    Costs the trainings, as `explainguide.training.train` tells; nothing is trained twice.

    Args:
        build: Makes the network, from random numbers that were seeded with the training's seed.
        train_data: As of `train`; the same object for all trainings.
        val_data: Images on which everything is measured and chosen.
        search: Field of `TrainConfig` to a list of its values, or to a `LogRange` of them.
        out: Folder: ``report.html``, ``points.csv``, ``guided/0003`` and ``unguided/0000`` as `train`
            writes them, and ``study.journal`` where `storage` is not given.
        config: Settings of all trainings, but for what is searched; None is the defaults.
        sampler: ``"grid"`` trains every combination, ``"random"`` draws, ``"nsga2"`` evolves.
        trials: How many guided trainings the last two make; more may be asked of a study later.
        storage: A journal file, or a database's URL such as ``sqlite:///study.db``.
        name: Of the study in the storage.
        objectives: Scores of `evaluate` that are to be high; the first is that of the answers. None
            is ``"f1"`` or ``"accuracy"``, ``"epg"`` and ``"iou"``. The sampler learns of each training
            the epoch with the highest mean of them.
        methods: Searched fields that tell methods apart; None: those whose values are no numbers.
        baseline: Score of the network without guidance, in [0, 1]; None trains unguided networks,
            and takes the mean of their highest scores.
        max_drop: How much of it the model of a method may lose.
        prune_after: Optuna does not prune with several objectives. With a number, a training is
            stopped after an epoch, from this one on, in which each objective is below the median of
            the others in that epoch, of at least four. None stops none.
        test_data: Images on which the model of each method is evaluated at the end, once.
        seed: Of the sampler.
        info: As of `train`.
        progress: Whether to show a bar.

    Returns:
        All points, the model of each method, and what it scores on the test images.

    Raises:
        OptionError: For settings that are not allowed, a study of other settings, or where Optuna is
            not installed (``pip install explainguide[sweep]``).
        DataError: If a file or the storage cannot be read or written.
        GuidanceError: If every training failed.

    References:
        Rao et al., 2023, Sec. 4, Fig. 4 and Sec. D.1. Akiba et al., 2019 (Optuna). Deb et al., 2002
        (NSGA-II).
    """
    config = config or TrainConfig()
    check_option("sampler", sampler, SAMPLERS)
    _check_numbers(sampler, trials, baseline, max_drop, prune_after, seed)
    asked = Search(search, config)
    asked.check(grid=sampler == "grid", unguided=baseline is None)
    told_apart = asked.method_fields(methods)
    _check_layers(asked, build)
    scores = _objectives(objectives, val_data)
    folder = Path(out)
    plain = {k: v for k, v in config.to_dict().items() if k not in ("output_dir", "device")}
    settings = {
        "config": {k: v for k, v in plain.items() if k not in search},
        "search": {f"search of {key}": value for key, value in asked.to_dict().items()},
        "objectives": scores,
        "sampler": sampler,
        "prune_after": prune_after,
        "images": [len(train_data), len(val_data)],
    }
    with ExitStack() as stack:
        stack.enter_context(quiet())
        where = storage or str(folder / "study.journal")
        study = partial(
            OptunaStudy,
            open_storage(where),
            where=where,
            mutex=folder / ".lock",
            objectives=scores,
        )
        kinds = {
            "unguided": study(f"{name} (unguided)", folder=folder / "unguided", settings=settings),
            "guided": study(name, folder=folder / "guided", settings=settings),
        }
        run = _Run(asked, build, train_data, val_data, scores, prune_after, dict(info or {}))
        points = asked.settings() if sampler == "grid" else None
        count = len(points) if points is not None else int(trials or 0)
        first = [] if baseline is not None else asked.unguided()
        bar = stack.enter_context(
            tqdm(total=count + len(first), desc="trainings", disable=not progress)
        )
        claims = {
            "unguided": partial(
                kinds["unguided"].claim_next, lambda trial: {}, points=first, limit=len(first)
            ),
            "guided": partial(
                kinds["guided"].claim_next,
                asked.suggest,
                points=points,
                parameters=asked.as_parameters,
                limit=count,
                sampler=sampler,
                seed=seed,
            ),
        }
        for kind, claim_next in claims.items():
            while (claim := claim_next()) is not None:
                bar.n = sum(s != "running" for k in kinds.values() for _, s, _ in k.trials())
                bar.set_postfix_str(f"{kind} {claim.number}")
                run.one(kinds[kind], claim)
        bar.n = sum(s != "running" for k in kinds.values() for _, s, _ in k.trials())
        bar.refresh()
        trainings = _trainings(kinds)
    result = make_points(
        trainings,
        methods=told_apart,
        objectives=scores,
        baseline=baseline,
        max_drop=max_drop,
        folder=folder,
    )
    _check_some(result)
    if test_data is not None and not result.running:
        result.test = _test(result, asked, build, test_data, folder)
    write_whole(folder / "points.csv", lambda file: file.write(points_as_csv(result)))
    write_page(folder, result, name=name, max_drop=max_drop)
    return result


def _check_numbers(
    sampler: str,
    trials: int | None,
    baseline: float | None,
    max_drop: float,
    prune_after: int | None,
    seed: int,
) -> None:
    if (sampler == "grid") == (trials is not None):
        fix = "Leave it out: a grid has as many as combinations"
        fix = fix if sampler == "grid" else "Say how many trainings, as trials=20"
        raise OptionError(
            f"trials is {trials} with sampler={sampler!r}. {fix}. A number is allowed, and needed, "
            "with 'random' and 'nsga2'."
        )
    for name, value, whole, most in (
        ("trials", trials, True, math.inf),
        ("prune_after", prune_after, True, math.inf),
    ):
        if value is not None:
            check_number(name, value, least=1, most=most, whole=whole)
    if baseline is not None:
        check_number("baseline", baseline, least=0, most=1)
    check_number("max_drop", max_drop, least=0, most=1)
    check_number("seed", seed, least=0, whole=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            "a launcher started this process as one of several of one training. Start each as a "
            "program of its own: they share the sweep by its folder. One process a training is allowed."
        )


def _check_layers(asked: Search, build: Callable[[], nn.Module]) -> None:
    """Every guide that will be asked for, on one network, before anything is trained."""
    seen = []
    model = build()
    for settings in asked.settings():
        options = asked.at(settings).options
        if options not in seen:
            seen.append(options)
            options.place(model)


def _objectives(objectives: Sequence[str] | None, data: Any) -> list[str]:
    if objectives is not None:
        names = [objectives] if isinstance(objectives, str) else list(objectives)
        if len(names) != len(set(names)) or len(names) < 2:
            raise OptionError(
                f"objectives are {names}. Name the score of the answers first, as ['f1', 'epg']. Two "
                "or more scores of evaluate, each once, are allowed."
            )
        return names
    item = next((one for one in (data[i] for i in range(len(data))) if one is not None), None)
    labels = None if item is None else item[1]
    multilabel = isinstance(labels, torch.Tensor) and labels.ndim > 0
    return ["f1" if multilabel else "accuracy", "epg", "iou"]


class _Pruned(Exception):  # noqa: N818
    """A training is behind the others."""


@dataclass
class _Run:
    """What all trainings share."""

    search: Search
    build: Callable[[], nn.Module]
    train_data: Any
    val_data: Any
    objectives: list[str]
    prune_after: int | None
    info: dict[str, Any]

    def one(self, study: OptunaStudy, claim: Claim) -> None:
        """Train, or go on, and tell the study."""
        rows = {int(row["epoch"]): row for row in claim.rows}

        def on_epoch(row: dict[str, float]) -> None:
            self._check_objectives(row)
            rows[int(row["epoch"])] = _saved(row)
            study.keep(claim, "rows", list(rows.values()))
            if claim.settings.get("lam") != 0 and self._is_behind(study, claim, row):
                raise _Pruned

        config = self.search.at(claim.settings, output_dir=str(study.path(claim.number)))
        torch.manual_seed(config.seed)
        try:
            history = train(
                self.build(),
                self.train_data,
                self.val_data,
                config,
                resume=True,
                progress=False,
                info=self.info,
                on_epoch=on_epoch,
            )
        except _Pruned:
            study.finish(claim, None, pruned=True)
        except GuidanceError as error:
            study.keep(claim, "error", str(error))
            study.finish(claim, None)
        except BaseException:
            claim.lock.close()  # for whoever goes on
            raise
        else:
            study.keep(claim, "rows", [_saved(row) for row in history.rows])
            study.finish(claim, self._values(history.rows))

    def _check_objectives(self, row: Mapping[str, float]) -> None:
        for name in self.objectives:
            check_option("objective", name, row)

    def _values(self, rows: Sequence[Mapping[str, float]]) -> list[float]:
        """The epoch with the highest mean; what is not known counts as 0, the least of a score."""
        table = [[_known(row[name]) for name in self.objectives] for row in rows]
        return max(table, key=statistics.fmean)

    def _is_behind(self, study: OptunaStudy, claim: Claim, row: Mapping[str, float]) -> bool:
        epoch = int(row["epoch"])
        if self.prune_after is None or epoch < self.prune_after:
            return False
        others = [
            other
            for number, _, kept in study.trials()
            for other in kept.get("rows", [])
            if number != claim.number and int(other["epoch"]) == epoch
        ]
        if len(others) < _ENOUGH:
            return False
        return all(
            _known(row[name]) < statistics.median(_known(other[name]) for other in others)
            for name in self.objectives
        )


def _known(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else float(value)


def _saved(row: Mapping[str, float]) -> dict[str, float | None]:
    """Without NaN, which JSON does not have."""
    return {key: value if math.isfinite(value) else None for key, value in row.items()}


def _trainings(kinds: Mapping[str, OptunaStudy]) -> list[dict[str, Any]]:
    return [
        {
            "training": f"{kind} {number}",
            "state": state,
            "settings": kept["settings"],
            "rows": kept.get("rows", []),
            "error": kept.get("error"),
            "path": study.path(number),
        }
        for kind, study in kinds.items()
        for number, state, kept in study.trials()
    ]


def _check_some(result: SweepResult) -> None:
    states = {training["state"] for training in result.trainings}
    if states == {"fail"}:
        raise GuidanceError(
            f"every training failed; the first said: {result.trainings[0]['error']} Search other "
            "values, in a folder of their own. One training that ends is needed."
        )


def _test(
    result: SweepResult,
    asked: Search,
    build: Callable[[], nn.Module],
    data: Any,
    folder: Path,
) -> dict[str, dict[str, float]]:
    """The chosen models, and no other, on the test images."""
    scores = {}
    for method, index in result.chosen.items():
        if index is None:
            continue
        point = result.points[index]
        config = asked.at(point["settings"])
        torch.manual_seed(config.seed)
        model = build()
        model.load_state_dict(load_checkpoint(folder / point["checkpoint"])["model"])
        placed = config.options.place(model)
        layers = list(placed.layers)
        scores[method] = evaluate(
            model,
            data,
            layer=layers[0] if len(layers) == 1 else layers,
            attribution=placed.method,
            region=config.region,  # type: ignore[arg-type]
            threshold=config.threshold,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    return scores
