"""The exceptions, the warning, the search for the name that was meant, and tables of names.

Every message reads ``<public callable>: <what is wrong, with the value>. <nearest fix>. <what is
allowed>.`` The public callable is named once, where it is entered (`operation`, `method`); what it
calls raises and warns without a name. Each exception is also the built-in one that a caller would
expect, so that ``except ValueError`` keeps working.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, cast

__all__ = [
    "AnnotationError",
    "DataError",
    "ExplainGuideError",
    "ExplainGuideWarning",
    "ExplanationError",
    "GuidanceError",
    "LayerError",
    "OptionError",
    "ShapeError",
    "Table",
    "check_flag",
    "check_free",
    "check_number",
    "check_option",
    "constructor",
    "did_you_mean",
    "first_line",
    "method",
    "named",
    "operation",
    "warn",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Key = TypeVar("Key")
Entry = TypeVar("Entry")
# Of this thread or task alone; without one, messages go unnamed.
_operation: ContextVar[str] = ContextVar("operation", default="")


class ExplainGuideError(Exception):
    """Whatever this package refuses; catch it to catch them all."""

    _named = False  # whether the message begins with a public callable

    def _begin_with(self, name: str) -> None:
        """Name the public callable, unless an inner one is named."""
        if not self._named:
            self.args = (f"{name}: {self}",)
            self._named = True


class ExplainGuideWarning(UserWarning):
    """Whatever this package assumes, leaves out or replaces, said once.

    ``warnings.simplefilter("ignore", explainguide.ExplainGuideWarning)`` silences it.
    """


class OptionError(ExplainGuideError, ValueError):
    """An option has a value that is not allowed."""


class ShapeError(ExplainGuideError, ValueError):
    """A tensor has the wrong shape or dtype."""


class AnnotationError(ExplainGuideError, ValueError):
    """Boxes, masks or labels that cannot be what was meant."""


class LayerError(ExplainGuideError, ValueError):
    """A layer that is not there, or that cannot be guided."""


class DataError(ExplainGuideError, ValueError):
    """Files that are missing, damaged, or not in the form that was announced."""


class GuidanceError(ExplainGuideError, RuntimeError):
    """A call that comes at the wrong time, or on a model that cannot be guided."""


class ExplanationError(ExplainGuideError, RuntimeError):
    """An attribution of another package, or of one's own, that fails on a model or layer."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The sentence that names the nearest allowed spellings, with a leading space; or nothing.

    Args:
        name: What was given.
        allowed: What could have been given.

    Returns:
        ``" Did you mean 'a' or 'b'?"``, or ``""`` where nothing is near.

    Example:
        >>> did_you_mean("layer5", ["layer3", "layer4", "fc"])
        " Did you mean 'layer4' or 'layer3'?"
    """
    close = get_close_matches(name, list(allowed), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def first_line(error: BaseException) -> str:
    r"""What another's error says, in one line, for a message that quotes it.

    Args:
        error: What was caught; it may have no text, as of a bare ``assert``.

    Returns:
        The first line of its text without the full stop; where it has none, what kind it is.

    Example:
        >>> first_line(ValueError("too many axes.\nSee the manual"))
        'too many axes'
        >>> first_line(AssertionError())
        'AssertionError without a text'
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else f"{type(error).__name__} without a text"


def check_option(option: str, value: object, allowed: Iterable[object], *, also: str = "") -> None:
    """Refuse a value that is none of those allowed, with the nearest that is.

    Args:
        option: Its name, for the message.
        value: What was given.
        allowed: Strings, and True or False.
        also: What else is allowed, and checked by who calls: ``"a callable"``.

    Raises:
        OptionError: If it is not allowed.

    Example:
        >>> check_option("loss", "energi", ["energy", "l1"])
        Traceback (most recent call last):
        explainguide.errors.OptionError: unknown loss 'energi'. Did you mean 'energy'? ...
    """
    choices = list(allowed)
    # A tuple of types, not a union: torch.compile of torch 2.4 does not know the latter.
    if not isinstance(value, (str, int)) or value not in choices:
        words = [choice for choice in choices if isinstance(choice, str)]
        raise OptionError(
            f"unknown {option} {value!r}.{did_you_mean(str(value), words)} "
            f"{', '.join(map(repr, choices))}{f', or {also},' if also else ''} are allowed."
        )


def check_flag(option: str, value: object) -> None:
    """Refuse what is neither True nor False: the word "no" would be read as True.

    Args:
        option: Its name, for the message.
        value: What was given.

    Raises:
        OptionError: If it is anything else.

    Example:
        >>> check_flag("sync_dist", "no")
        Traceback (most recent call last):
        explainguide.errors.OptionError: sync_dist is 'no'. Write sync_dist=True or sync_dist=False. ...
    """
    if not isinstance(value, bool):
        raise OptionError(
            f"{option} is {value!r}. Write {option}=True or {option}=False. True and False are allowed."
        )


def check_number(
    option: str,
    value: object,
    *,
    least: float,
    most: float = math.inf,
    above: bool = False,
    whole: bool = False,
) -> None:
    """Refuse what is no number, or one outside of what is allowed.

    Args:
        option: Its name, for the message.
        value: What was given.
        least: The smallest number that is allowed.
        most: The largest.
        above: Whether the smallest itself is not allowed.
        whole: Whether it must be a whole number.

    Raises:
        OptionError: If it is not allowed.

    Example:
        >>> check_number("batch_size", 0, least=1, whole=True)
        Traceback (most recent call last):
        explainguide.errors.OptionError: batch_size is 0. A whole number from 1 on is allowed.
    """
    if isinstance(value, int if whole else (int, float)) and not isinstance(value, bool):
        if math.isfinite(value) and least <= value <= most and not (above and value == least):
            return
        hint = f" Did you mean {value / 100:g}?" if most == 1 and 1 < value <= 100 else ""
    else:
        hint = ""
    limit = f"from {least:g} {'on' if most > 1 else f'to {most:g}'}"
    limit = f"above {least:g}" if above else limit
    form = f"{'A whole' if whole else 'A'} number"
    raise OptionError(f"{option} is {value!r}.{hint} {form} {limit} is allowed.")


@contextmanager
def operation(name: str, *, default: bool = False) -> Iterator[None]:
    """Within this context, errors and warnings of the package begin with a public callable's name.

    Also a decorator of functions (not of generators, whose body runs later). Where one public
    callable calls another, the inner one is named.

    Args:
        name: As users write it: ``"evaluate"``, ``"ExplanationGuidance.loss_loc"``.
        default: Whether the name is used only where no other operation is on.

    Example:
        >>> with operation("train"):
        ...     raise OptionError("epochs is 0. Use 1. Whole numbers from 1 on are allowed.")
        Traceback (most recent call last):
        explainguide.errors.OptionError: train: epochs is 0. Use 1. Whole numbers from 1 on are allowed.
    """
    name = (default and _operation.get()) or name
    before = _operation.set(name)
    try:
        yield
    except ExplainGuideError as error:
        error._begin_with(name)
        raise
    finally:
        _operation.reset(before)


def named(name: str) -> Callable[[Function], Function]:
    """`operation` for a function of tensors: its errors are named, and `torch.compile` sees through it.

    Its warnings are not, since a context cannot be entered in a compiled function.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except ExplainGuideError as error:
                error._begin_with(name)
                raise

        return cast(Function, wrapper)

    return decorate


def method(function: Function) -> Function:
    """`operation` for a method, named after its object's class: ``"GradCam.attribute"``."""
    return _named(function, f".{function.__name__}")


def constructor(function: Function) -> Function:
    """`operation` for what makes an object or stands for it, named after its class: ``"GradCam"``."""
    return _named(function, "")


def _named(function: Function, suffix: str) -> Function:
    @wraps(function)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        with operation(f"{type(self).__name__}{suffix}"):
            return function(self, *args, **kwargs)

    return cast(Function, named)


def warn(text: str) -> None:
    """Warn with an `ExplainGuideWarning`, at the line that called this package.

    Args:
        text: The message, without the name of the operation.
    """
    name = _operation.get()
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_between(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{name}: {text}" if name else text, ExplainGuideWarning, stacklevel=level)


_BETWEEN = ("explainguide", "captum", "contextlib", "torch", "torchmetrics", "tqdm")


def _is_between(module: str) -> bool:
    """Whether a frame is this package's, or one through which it calls itself."""
    return module.partition(".")[0] in _BETWEEN


class Table(dict[Key, Entry]):
    """A table of the package: an entry does not take the place of another without a word.

    What is defined again, as in a notebook, or in a module that is loaded again, takes its own place.

    Args:
        name: Of the table, for messages.
        entries: The first ones.
        origin: What an entry was made of: a function or class, or its name; by default it itself.

    Example:
        >>> table = Table("ANIMALS", {"cat": str.lower})
        >>> table["cat"] = str.upper
        Traceback (most recent call last):
        explainguide.errors.OptionError: ANIMALS: the key 'cat' of builtins.str.upper is that of ...
    """

    def __init__(
        self,
        name: str,
        entries: Mapping[Key, Entry] | None = None,
        *,
        origin: Callable[[Entry], Any] = lambda entry: entry,
    ) -> None:
        super().__init__(entries or {})
        self._name, self._origin = name, origin

    def __setitem__(self, key: Key, entry: Entry) -> None:
        if key in self:
            with operation(self._name, default=True):
                check_free(
                    key,
                    self._origin(entry),
                    taken_by=self._origin(self[key]),
                    table=self._name,
                    keys=self,
                )
        super().__setitem__(key, entry)


def check_free(key: Any, new: Any, *, taken_by: Any, table: str, keys: Iterable[Any]) -> None:
    """Refuse a key of a table that is taken, but by what is defined again.

    Args:
        key: The key.
        new: What would be entered: a function or class, or its name.
        taken_by: What is there, likewise.
        table: The name of the table.
        keys: All that are taken.

    Raises:
        OptionError: If they are not the same, by module and name.
    """
    new, taken_by = _called(new), _called(taken_by)
    if new == taken_by:
        return
    whose = f"of {new} is that of {taken_by}"
    if not isinstance(new, str) or not isinstance(taken_by, str):
        whose = f"of a {type(new).__name__} is that of another"
    raise OptionError(
        f"the key {_shown(key)} {whose}. Use another, or take the entry out of {table} first. All but "
        f"{', '.join(map(_shown, keys))} are allowed."
    )


def _called(made_of: Any) -> Any:
    """Module and name, by which a function or class that is defined again is known."""
    if isinstance(made_of, str):
        return made_of.replace(":", ".")
    name = getattr(made_of, "__qualname__", None)
    if name is None:
        return made_of
    # A method of a built-in type has no module of its own.
    home = getattr(made_of, "__module__", None) or "builtins"
    return f"{home}.{name}"


def _shown(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)
