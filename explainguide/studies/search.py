"""What a sweep searches: fields of the training's settings, each a list of values or a range."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from explainguide.errors import OptionError, check_option, constructor
from explainguide.training.config import TrainConfig

__all__ = ["LogRange", "Search", "searchable"]

# How a training runs, and how maps are scored, are the same in all: otherwise numbers do not compare.
_FIXED: tuple[str, ...]
_FIXED = ("output_dir", "device", "tensorboard", "log_interval", "workers", "compile")
_FIXED += ("threshold", "fit_share")
# What decides of which map EPG and IoU are: an unguided training is measured by each.
_MEASURES = ("layer", "layer_weights", "attribution", "attribution_options", "region", "seed")


@dataclass(frozen=True)
class LogRange:
    """All numbers between two, drawn so that each factor is as likely: 0.1 to 1 as often as 1 to 10.

    Attributes:
        low: The smallest, positive.
        high: The largest.

    Raises:
        OptionError: If they are no positive numbers in this order.
    """

    low: float
    high: float

    @constructor
    def __post_init__(self) -> None:
        for value in (self.low, self.high):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise OptionError(
                    f"{value!r} is no end of a range of factors. Use a small number such as 0.001. "
                    "Positive numbers are allowed."
                )
        if not self.low < self.high:
            raise OptionError(
                f"the range is from {self.low:g} to {self.high:g}. Write the smaller first, or a list "
                "for one value. A range goes up."
            )


def searchable() -> list[str]:
    """The fields of `TrainConfig` that a sweep can search."""
    return [field.name for field in fields(TrainConfig) if field.name not in _FIXED]


@dataclass(frozen=True)
class Search:
    """A checked space.

    Attributes:
        space: Field to its values.
        config: The settings of all trainings, which those of a point replace.
    """

    space: Mapping[str, Sequence[Any] | LogRange]
    config: TrainConfig

    def check(self, *, grid: bool, unguided: bool) -> None:
        """Refuse what cannot be searched, before anything is trained.

        Args:
            grid: Whether every combination is to be trained.
            unguided: Whether unguided trainings are made besides.

        Raises:
            OptionError: With the field.
        """
        if not isinstance(self.space, Mapping) or not self.space:
            raise OptionError(
                f"search is {self.space!r}. Say what to search, as {{'lam': [0.1, 1, 10]}}. Fields of "
                "TrainConfig, each with a list of values or a LogRange, are allowed."
            )
        for name, values in self.space.items():
            if name in _FIXED:
                raise OptionError(
                    f"{name} is not searched: it says how trainings run or are measured, which is the "
                    f"same in all. Set it in config. {', '.join(searchable())} are allowed."
                )
            check_option("setting to search", name, searchable())
            if isinstance(values, LogRange):
                self._check_range(name, values, grid=grid)
            else:
                self._check_list(name, values, unguided=unguided)
        if self.config.lam == 0 and "lam" not in self.space:
            raise OptionError(
                "lam is 0, so that no training would be guided. Search it, as {'lam': [0.1, 1, 10]}, "
                "or leave it out of config. A positive lam is needed."
            )

    def _check_range(self, name: str, values: LogRange, *, grid: bool) -> None:
        (field,) = (field for field in fields(TrainConfig) if field.name == name)
        if field.metadata["shown"].kind is not float:
            raise OptionError(
                f"search has a range for {name}, which is no number with a fraction. Use a list. "
                "lam, lr, weight_decay and the like can have a range."
            )
        if grid:
            raise OptionError(
                f"search has a range for {name}, which is no grid. Use a list of values, or "
                "sampler='random'. Ranges are allowed with 'random' and 'nsga2'."
            )
        for end in (values.low, values.high):
            self.at({name: end})

    def _check_list(self, name: str, values: Any, *, unguided: bool) -> None:
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise OptionError(
                f"search has {values!r} for {name}. Write a list, as [{values!r}]. A list of at least "
                "one value, or a LogRange, is allowed."
            )
        texts = [json.dumps(value, sort_keys=True, default=repr) for value in values]
        for index, value in enumerate(values):
            if texts[index] in texts[:index]:
                raise OptionError(
                    f"search has {value!r} for {name} twice. Leave one out. Each value once is allowed."
                )
            if name == "lam" and value == 0 and unguided:
                raise OptionError(
                    "search has lam=0. Leave it out: unguided trainings are made besides. Positive "
                    "numbers are allowed."
                )
            self.at({name: value})

    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the lists; a range takes no part."""
        lists = {n: v for n, v in self.space.items() if not isinstance(v, LogRange)}
        return [
            dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())
        ]

    def unguided(self) -> list[dict[str, Any]]:
        """What is trained without guidance: by each map that is measured, and each seed."""
        kept = {name: values for name, values in self.space.items() if name in _MEASURES}
        return [{**point, "lam": 0.0} for point in Search(kept, self.config).settings()]

    def at(self, settings: Mapping[str, Any], **also: Any) -> TrainConfig:
        """The settings of one training."""
        return replace(self.config, **{**settings, **also})

    def suggest(self, trial: Any) -> dict[str, Any]:
        """What Optuna chooses for a trial."""
        chosen: dict[str, Any] = {}
        for name, values in self.space.items():
            if isinstance(values, LogRange):
                chosen[name] = trial.suggest_float(name, values.low, values.high, log=True)
            else:
                words = [_word(value) for value in values]
                chosen[name] = values[words.index(trial.suggest_categorical(name, words))]
        return chosen

    def as_parameters(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A point as Optuna keeps it."""
        return {name: _word(value) for name, value in settings.items()}

    def to_dict(self) -> dict[str, Any]:
        """In values that JSON can hold."""
        return {
            name: {"low": v.low, "high": v.high} if isinstance(v, LogRange) else list(v)
            for name, v in self.space.items()
        }

    def method_fields(self, methods: Sequence[str] | None) -> list[str]:
        """The searched fields that tell methods apart: by default those whose values are no numbers.

        Raises:
            OptionError: For a name that is not searched.
        """
        if methods is None:
            return [
                name
                for name, values in self.space.items()
                if not isinstance(values, LogRange)
                and not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
            ]
        for name in methods:
            check_option("field of methods", name, self.space)
        return list(methods)


def _word(value: Any) -> Any:
    """A value as Optuna takes it: plain, or as text."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, sort_keys=True)
