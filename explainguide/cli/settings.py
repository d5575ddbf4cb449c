"""Options of the command line that are the fields of a class of settings: made, and read back."""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Callable, Container, Mapping
from dataclasses import Field, fields
from typing import Any

from explainguide.cli.usage import UsageError

__all__ = ["Later", "add_settings", "given_settings"]

_METAVARS = {int: "N", float: "X"}


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
        kind: A class of settings, with fields made by `explainguide.guidance.options.setting`.
        only: The fields that are meant; None is all.
        default: What to say of every default, in place of it.
    """
    for field in fields(kind):
        metadata = field.metadata
        shown = (
            metadata and (metadata["text"] or metadata["choices"]) and metadata["group"] in groups
        )
        if not shown or (only is not None and field.name not in only):
            continue
        options: dict[str, Any] = {"help": _help(field, default), "default": None}
        if metadata["kind"] is bool:
            options["action"] = "store_true"
        else:
            options["type"] = _index_or_name if field.name == "output" else metadata["kind"]
            options["metavar"] = (
                "NAME=VALUE" if metadata["pairs"] else _METAVARS.get(metadata["kind"], "NAME")
            )
            if metadata["many"] or metadata["pairs"]:
                options["nargs"] = "+"
        groups[metadata["group"]].add_argument(f"--{field.name.replace('_', '-')}", **options)


def given_settings(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """What was given of a class of settings, by name."""
    given: dict[str, Any] = {}
    for field in fields(kind):
        value = getattr(args, field.name, None)
        if value is None:
            continue
        if field.metadata["pairs"]:
            value = _pairs(field.name, value)
        elif field.metadata["many"] == "one or several" and len(value) == 1:
            (value,) = value
        given[field.name] = value
    return given


def _help(field: Field[Any], default: str | None) -> str:
    metadata = field.metadata
    silent = field.default is None or metadata["kind"] is bool or metadata["pairs"]
    usual = default or (None if silent else field.default)
    # Fields of many kinds have None for "as usual", which their text explains.
    end = "" if usual is None or "default" in metadata["text"] else f" (default: {usual})"
    if metadata["choices"]:
        *most, last = metadata["choices"]
        words = f"{', '.join(most)} or {last}"
        return (f"{metadata['text']}: {words}" if metadata["text"] else words) + end
    if metadata["table"]:
        return Later(lambda: f"{', '.join(_table(metadata['table']))}, {metadata['text']}{end}")
    return f"{metadata['text']}{end}"


def _table(where: str) -> list[str]:
    module, _, name = where.partition(":")
    return list(getattr(importlib.import_module(module), name))


def _index_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


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
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments
