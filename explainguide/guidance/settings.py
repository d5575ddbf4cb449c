"""A setting: a dataclass field that says what the command line shows of it, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Any, Literal, TypeVar

from explainguide.errors import OptionError, check_flag, check_number, did_you_mean, operation

__all__ = ["Shown", "check_flags", "check_numbers", "named_settings", "setting"]

Settings = TypeVar("Settings", bound=type)


@dataclass(frozen=True)
class Shown:
    """What the command line shows of a field, and what is allowed of its values.

    Attributes:
        text: What it is, in a few words; empty where the command line does not offer it.
        kind: Of a value: int, float, str, bool, or a function that reads one; None is that of the
            default, or str.
        unset: What None stands for.
        choices: The values that are allowed.
        table: Where the names that are allowed are, ``module:TABLE``; some take long to import.
        least: The smallest number that is allowed; None checks none.
        most: The largest.
        above: Whether the smallest itself is not allowed.
        many: Whether there are several values; of one or several, one stands alone.
        pairs: Whether its values are NAME=VALUE.
        group: Under which heading the command line lists it.
    """

    text: str = ""
    kind: Callable[[str], Any] | None = None
    unset: str = ""
    choices: Sequence[str] = ()
    table: str = ""
    least: float | None = None
    most: float = math.inf
    above: bool = False
    many: Literal["no", "several", "one or several"] = "no"
    pairs: bool = False
    group: str = "training"


def setting(default: Any, shown: Shown | None = None) -> Any:
    """A field of a class of settings.

    Args:
        default: Its default; a dict is copied.
        shown: What the command line shows of it; None: nothing.
    """
    shown = shown or Shown()
    if shown.kind is None:
        plain = default is None or isinstance(default, dict)
        shown = replace(shown, kind=str if plain else type(default))
    metadata = {"shown": shown}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def named_settings(cls: Settings) -> Settings:
    """A class of settings that refuses a name that is none of its fields, with the nearest of them.

    Args:
        cls: A dataclass; one that inherits from it has a constructor of its own.
    """
    construct = cls.__init__  # type: ignore[misc]
    names = [setting.name for setting in fields(cls)]

    @wraps(construct)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        with operation(type(self).__name__, default=True):
            for name in given:
                if name not in names:
                    raise OptionError(
                        f"unknown setting {name!r}.{did_you_mean(name, names)} "
                        f"{', '.join(names)} are allowed."
                    )
        construct(self, *args, **given)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def check_flags(settings: Any) -> None:
    """Each field of a class of settings that is True or False.

    Raises:
        OptionError: For the first that is anything else.
    """
    for option in fields(settings):
        if option.metadata.get("shown", Shown()).kind is bool:
            check_flag(option.name, getattr(settings, option.name))


def check_numbers(settings: Any) -> None:
    """Each number of a class of settings, against what its field says is allowed.

    Raises:
        OptionError: For the first that is not.
    """
    for option in fields(settings):
        value, shown = getattr(settings, option.name), option.metadata.get("shown", Shown())
        if shown.least is not None and (value is not None or option.default is not None):
            check_number(
                option.name,
                value,
                least=shown.least,
                most=shown.most,
                above=shown.above,
                whole=shown.kind is int,
            )
