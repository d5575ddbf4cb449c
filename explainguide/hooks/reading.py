"""How a model is called and read, where nothing but the caller can say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from explainguide.errors import OptionError

__all__ = ["AS_FOUND", "Output", "Reading", "check_reading"]

Output = int | str | Callable[[Any], Any]


@dataclass(frozen=True)
class Reading:
    """What the caller says of his model; None is what the library finds out, or refuses to guess.

    Attributes:
        output: Which of several things that the model returns are the logits: an index, a key or
            attribute, or a callable that takes what the model returned.
        image_argument: Which of the model's arguments are the images: a position or a name.
        layout: ``"NCHW"`` or ``"NHWC"``, how a layer's four dimensions are read; ``"NLC"`` or
            ``"NCL"``, how tokens and channels lie in three; or a kind that was entered in `KINDS`.
        grid: (h, w) of a layer's tokens.
        prefix_tokens: How many tokens in front belong to no place, or their positions.
        image_size: (H, W) of an image that the model takes, where it is run on one of our own.
    """

    output: Output | None = None
    image_argument: int | str | None = None
    layout: str | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int | tuple[int, ...] | None = None
    image_size: tuple[int, int] | None = None


AS_FOUND = Reading()  # the caller said nothing


def check_reading(
    *,
    output: Output | None = None,
    image_argument: int | str | None = None,
    layout: str | None = None,
    grid: Sequence[int] | None = None,
    prefix_tokens: int | Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
) -> Reading:
    """The options as one object, each checked.

    Raises:
        OptionError: For a value that is not allowed.
    """
    from explainguide.hooks.layout_table import KINDS  # here: settings are read without torch

    if isinstance(output, bool) or not (
        output is None or isinstance(output, int | str) or callable(output)
    ):
        raise OptionError(
            f"output is {output!r}. Say which of the model's outputs are the logits, such as "
            "output=1 or output='logits'. An index, a key, an attribute or a callable is allowed."
        )
    if isinstance(image_argument, bool) or not isinstance(image_argument, int | str | None):
        raise OptionError(
            f"image_argument is {image_argument!r}. Name the argument of the model's forward "
            "that takes the images. A position from 0 on or a name is allowed."
        )
    if layout is not None and layout not in [kind.called for kind in KINDS.values()]:
        of_shapes, of_tokens = (
            " and ".join(repr(k.called) for k in KINDS.values() if (k.grid is None) == tokens)
            for tokens in (False, True)
        )
        raise OptionError(
            f"unknown layout {layout!r}. Leave it out: shapes tell it nearly always. {of_shapes}, "
            f"and for tokens {of_tokens}, are allowed."
        )
    return Reading(
        output,
        image_argument,
        layout,
        _pair("grid", grid, "(h, w) of the tokens, such as (14, 14)"),
        _prefix(prefix_tokens),
        _pair(
            "image_size",
            (image_size, image_size) if isinstance(image_size, int) else image_size,
            "(H, W) in pixels, such as (224, 224)",
        ),
    )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _pair(name: str, value: Sequence[int] | None, form: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, Sequence) and len(value) == 2 and all(_whole(v, 1) for v in value):
        return value[0], value[1]
    raise OptionError(f"{name} is {value!r}. Give {form}. Two positive whole numbers are allowed.")


def _prefix(value: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    if value is None or _whole(value, 0):
        return value  # type: ignore[return-value]
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(_whole(v, 0) for v in value)
    ):
        return tuple(sorted(set(value)))
    raise OptionError(
        f"prefix_tokens is {value!r}. Give how many tokens in front belong to no place, or "
        "their positions. A whole number from 0 on, or several, are allowed."
    )
