"""Options of the command line that are the fields of a class of settings: made, and read back."""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Callable, Container, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from explainguide.cli.usage import UsageError
from explainguide.guidance.settings import Shown

__all__ = ["Later", "add_settings", "given_settings"]

_METAVARS: dict[Any, str] = {int: "N", float: "X"}


class Later(str):
    """Help that is written when it is shown, since what it lists takes long to import."""

    write: Callable[[], str]

    def __new__(cls, write: Callable[[], str]) -> Later:
        """The text is still to be written by the function."""
        text = super().__new__(cls)
        text.write = write
        return text


def add_settings(
    groups: Mapping[str, Any],
    kind: type,
    *,
    only: Container[str] | None = None,
    default: str | None = None,
) -> None:
    """An option for each field that says what it is.

    What is not given stays None, so that a recipe can tell it from what is.

    Args:
        groups: Where the options of a group of fields go, by its name; others are passed over.
        kind: A class of settings, with fields made by `explainguide.guidance.settings.setting`.
        only: The fields that are meant; None is all.
        default: What to say of every default, in place of it.
    """
    for field in fields(kind):
        shown: Shown = field.metadata.get("shown", Shown())
        offered = (shown.text or shown.choices) and shown.group in groups
        if not offered or (only is not None and field.name not in only):
            continue
        options: dict[str, Any] = {"help": _help(field, shown, default), "default": None}
        if shown.kind is bool:
            options["action"] = "store_true"
        else:
            options["type"] = shown.kind
            options["metavar"] = "NAME=VALUE" if shown.pairs else _METAVARS.get(shown.kind, "NAME")
            if shown.many != "no" or shown.pairs:
                options["nargs"] = "+"
        groups[shown.group].add_argument(f"--{field.name.replace('_', '-')}", **options)


def given_settings(
    args: argparse.Namespace, kind: type, *, only: Container[str] | None = None
) -> dict[str, Any]:
    """What was given of a class of settings, by name; with `only` as in `add_settings`."""
    given: dict[str, Any] = {}
    for field in fields(kind):
        value = getattr(args, field.name, None)
        if value is None or (only is not None and field.name not in only):
            continue
        shown: Shown = field.metadata["shown"]
        if shown.pairs:
            value = _pairs(field.name, value)
        elif shown.many == "one or several" and len(value) == 1:
            (value,) = value
        given[field.name] = value
    return given


def _help(field: Field[Any], shown: Shown, default: str | None) -> str:
    silent = field.default in (None, MISSING) or shown.kind is bool
    usual = default or shown.unset or (None if silent else field.default)
    end = "" if usual is None else f" (default: {usual})"
    if shown.choices:
        *most, last = shown.choices
        words = f"{', '.join(most)} or {last}"
        return (f"{shown.text}: {words}" if shown.text else words) + end
    if shown.table:
        return Later(lambda: f"{', '.join(_table(shown.table))}, {shown.text}{end}")
    return f"{shown.text}{end}"


def _table(where: str) -> list[str]:
    module, _, name = where.partition(":")
    return list(getattr(importlib.import_module(module), name))


def _pairs(name: str, pairs: list[str]) -> dict[str, Any]:
    """``["normalize=False", "eps=1e-3"]`` as keyword arguments: Python's values, or else words."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(
                f"--{name.replace('_', '-')}: {pair!r} is no option. Write it as "
                "normalize=False. NAME=VALUE is allowed."
            )
        spelt = value.capitalize()  # true and FALSE, as other programs write them
        try:
            arguments[key] = ast.literal_eval(spelt if spelt in ("True", "False") else value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments
