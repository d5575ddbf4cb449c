"""A study in Optuna's storage: opened, compared, claimed trial by trial, and told what came out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from explainguide.errors import DataError, OptionError, first_line
from explainguide.studies.file_lock import held, try_to_hold

__all__ = ["SAMPLERS", "Claim", "OptunaStudy", "open_storage", "quiet"]

SAMPLERS = ("grid", "random", "nsga2")
_TRIES = 100  # of a sampler, for settings that were not there yet
_PASSWORD = re.compile(r"://([^:/@]+):[^@]*@")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise OptionError(
            "Optuna is not installed. `pip install explainguide[sweep]`. Any version from 4 on is "
            "allowed."
        ) from None
    return optuna


@contextmanager
def quiet() -> Any:
    """Optuna says nothing of each trial within this context."""
    logging = _optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def open_storage(where: str) -> Any:
    """A journal file, or a database by its URL.

    Raises:
        OptionError: If Optuna, or the database's driver, is not installed.
        DataError: If it cannot be reached, or is no journal.
    """
    optuna = _optuna()
    shown = _shown(where)
    try:
        if "://" in where:
            return optuna.storages.RDBStorage(where)
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(where))
        return optuna.storages.JournalStorage(backend)
    except ImportError as error:
        raise OptionError(
            f"storage {shown!r} needs a driver that is not installed ({first_line(error)}). Install "
            "it with pip. sqlite:///study.db needs none."
        ) from error
    except Exception as error:  # of SQLAlchemy, a driver, or a journal that cannot be read
        raise _unreachable(where, error) from error


def _shown(where: str) -> str:
    return _PASSWORD.sub(r"://\1:***@", where)


def _unreachable(where: str, error: Exception) -> DataError:
    said = first_line(error)
    said = f"{type(error).__name__}: {said[:200]}" if not isinstance(error, OSError) else said
    return DataError(
        f"storage {_shown(where)!r} cannot be reached or read ({_shown(said)}). Look at "
        "its address, or leave it out for a file in the folder. A file, or a URL such as "
        "sqlite:///study.db, is allowed."
    )


@dataclass
class Claim:
    """A trial that this process has: another takes it over when this one ends."""

    number: int
    trial_id: int
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    lock: IO[bytes]


class OptunaStudy:
    """The trials of one kind.

    Args:
        storage: As `open_storage` returned it.
        name: In the storage.
        where: The storage, for messages.
        folder: Of the trials, one folder each.
        mutex: A file that is locked while a trial is claimed.
        objectives: Names of what is maximised.
        settings: Plain values; a study with others is refused.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        *,
        where: str,
        folder: Path,
        mutex: Path,
        objectives: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self._optuna, self._storage = _optuna(), storage
        self._folder, self._mutex = folder, mutex
        try:
            with held(mutex):
                self._study = self._optuna.create_study(
                    storage=storage,
                    study_name=name,
                    directions=["maximize"] * len(objectives),
                    load_if_exists=True,
                    sampler=self._optuna.samplers.RandomSampler(),
                )
                before = self._study.user_attrs.get("settings")
                if before is None and not self._study.get_trials(deepcopy=False):
                    self._study.set_user_attr("settings", dict(settings))
                    before = settings
        except DataError:
            raise
        except Exception as error:
            raise _unreachable(where, error) from error
        self._compare(name, before or {}, settings)

    @staticmethod
    def _compare(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        flat, given = _flat(before), _flat(json.loads(json.dumps(now)))
        changes = [
            f"{key} was {json.dumps(flat.get(key))}, now {json.dumps(given.get(key))}"
            for key in dict.fromkeys([*flat, *given])
            if flat.get(key) != given.get(key)
        ]
        if changes:
            raise OptionError(
                f"the study {name!r} is of other settings: {'; '.join(changes)}. Use the same, or "
                "another name and folder. Trials of the same settings are allowed."
            )

    def path(self, number: int) -> Path:
        """The folder of a trial."""
        return self._folder / f"{number:04d}"

    def claim_next(
        self,
        choose: Callable[[Any], dict[str, Any]],
        *,
        points: Sequence[dict[str, Any]] | None = None,
        parameters: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        limit: int = 0,
        sampler: str = "grid",
        seed: int = 0,
    ) -> Claim | None:
        """The next trial for this process: one that another left when it ended, or a new one.

        Args:
            choose: From Optuna's trial to the settings.
            points: Of a grid; None lets the sampler choose.
            parameters: From a point of the grid to what Optuna keeps; None keeps none.
            limit: How many trials a sampler makes.
            sampler: Of `SAMPLERS`.
            seed: Of the sampler.

        Returns:
            None where nothing is left to begin; other processes may still be busy.
        """
        state = self._optuna.trial.TrialState
        with held(self._mutex):
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state != state.RUNNING:
                    continue
                if "settings" not in trial.user_attrs:  # it ended within this context
                    self._study.tell(trial.number, state=state.FAIL)
                elif (lock := try_to_hold(self.path(trial.number) / ".lock")) is not None:
                    attrs = trial.user_attrs
                    rows = list(attrs.get("rows", []))
                    return Claim(trial.number, trial._trial_id, attrs["settings"], rows, lock)
            known = {_text(t.user_attrs["settings"]) for t in trials if "settings" in t.user_attrs}
            if points is not None:
                left = [point for point in points if _text(point) not in known]
                if not left:
                    return None
                waiting = any(trial.state == state.WAITING for trial in trials)
                if parameters is not None and not waiting:
                    self._study.enqueue_trial(parameters(left[0]))
                trial = self._study.ask()
                settings = left[0] if parameters is None else choose(trial)
            else:
                if len(known) >= limit:
                    return None
                found = self._draw(choose, known, sampler=sampler, seed=seed, limit=limit)
                if found is None:
                    return None
                trial, settings = found
            settings = _plain(settings)
            lock = try_to_hold(self.path(trial.number) / ".lock")
            if lock is None:
                raise DataError(
                    f"'{self.path(trial.number)}' is in use by another study. Use a folder for each "
                    "study. A new one is allowed."
                )
            trial.set_user_attr("settings", settings)
            return Claim(trial.number, trial._trial_id, settings, [], lock)

    def _draw(
        self,
        choose: Callable[[Any], dict[str, Any]],
        known: set[str],
        *,
        sampler: str,
        seed: int,
        limit: int,
    ) -> tuple[Any, dict[str, Any]] | None:
        """Settings that were not trained yet; None where the sampler finds no more."""
        state = self._optuna.trial.TrialState
        for _ in range(_TRIES):
            trials = self._study.get_trials(deepcopy=False)
            # With another seed each time: a process that begins again must not repeat its draws.
            self._study.sampler = self._sampler(sampler, seed + 7919 * len(trials), limit)
            trial = self._study.ask()
            settings = choose(trial)
            if _text(settings) not in known:
                return trial, settings
            # Of equal settings the same would come out, which the sampler is told at once.
            twin = next(t for t in trials if _text(t.user_attrs.get("settings")) == _text(settings))
            if twin.state == state.COMPLETE:
                self._study.tell(trial, twin.values)
            else:
                self._study.tell(trial, state=state.FAIL)
        return None

    def _sampler(self, name: str, seed: int, limit: int) -> Any:
        if name == "nsga2":
            # Generations of a quarter of all trials; Optuna's 50 would be one for most sweeps.
            size = min(max(limit // 4, 4), 50)
            return self._optuna.samplers.NSGAIISampler(seed=seed, population_size=size)
        return self._optuna.samplers.RandomSampler(seed=seed)

    def keep(self, claim: Claim, key: str, value: Any) -> None:
        """Keep something of a trial beside it."""
        self._storage.set_trial_user_attr(claim.trial_id, key, value)

    def finish(self, claim: Claim, values: Sequence[float] | None, *, pruned: bool = False) -> None:
        """Tell what came out; None and not pruned is a failure."""
        state = self._optuna.trial.TrialState
        if values is not None:
            self._study.tell(claim.number, list(values))
        else:
            self._study.tell(claim.number, state=state.PRUNED if pruned else state.FAIL)
        claim.lock.close()

    def trials(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Number, state and what is kept, of each trial that was begun."""
        return [
            (trial.number, trial.state.name.lower(), dict(trial.user_attrs))
            for trial in self._study.get_trials(deepcopy=False)
            if "settings" in trial.user_attrs
        ]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """One level of dicts taken apart, so that a difference names what differs."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
