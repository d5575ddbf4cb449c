"""What a name stands for: in a package's table, or anywhere as ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from explainguide.errors import (
    ExplainGuideError,
    OptionError,
    check_option,
    did_you_mean,
    first_line,
)

__all__ = ["call_own", "check_values", "find_named", "look_up", "on_demand", "parameters_of"]

_PLAIN = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a word",
    NoneType: "None",
}


def find_named(name: str, *, allowed: str = "'package.module:function' is allowed.") -> Any:
    """What a name stands for, imported.

    Args:
        name: ``package.module:function``.
        allowed: The sentence that ends the message.

    Raises:
        OptionError: If the module cannot be imported, or has no such function.
    """
    module, _, function = name.partition(":")
    if not _is_dotted(module):
        raise OptionError(
            f"{name!r} has no module of Python before the colon.{_as_module(module, function)} Name "
            f"the module as an import does, with its folder on PYTHONPATH. {allowed}"
        )
    try:
        home = importlib.import_module(module)
    except Exception as error:
        remedy = _remedy(error, module, function)
        raise OptionError(
            f"{name!r} cannot be imported ({_reason(error)}).{remedy} {allowed}"
        ) from error
    target = getattr(home, function, None)
    if not callable(target):
        names = [n for n in dir(home) if not n.startswith("_") and callable(getattr(home, n))]
        wrong = f"has no function {function!r}.{did_you_mean(function, names)}"
        if target is not None:
            wrong = f"has a {type(target).__name__} {function!r}, which cannot be called."
        raise OptionError(f"module {module!r} {wrong} {allowed}")
    return target


def _is_dotted(module: str) -> bool:
    return all(part.isidentifier() for part in module.split("."))


def _as_module(path: str, function: str) -> str:
    """The name that a path may have been meant as, as a question; empty where it is none."""
    parts = path.removesuffix(".py").replace("\\", "/").split("/")
    module = ".".join(part for part in parts if part not in ("", ".", ".."))
    return f" Did you mean '{module}:{function}'?" if _is_dotted(module) else ""


def _reason(error: Exception) -> str:
    text = first_line(error)
    return text if isinstance(error, ImportError) else f"{type(error).__name__}: {text}"


def _remedy(error: Exception, module: str, function: str) -> str:
    """What to do about a module that cannot be imported."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or not f"{module}.".startswith(f"{missing}."):
        return f" The error is in {module!r} itself, or in what it imports: mend it there."
    if module.endswith(".py"):
        return f"{_as_module(module, function)} Leave out '.py'."
    return " Is its folder on PYTHONPATH?"


def call_own(
    name: str,
    function: Callable[..., Any],
    *arguments: Any,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Call a user's function, and say that it is the user's where it raises.

    Args:
        name: How it was named, for the message.
        function: What `find_named` found, or a method of what it made.
        arguments: As it takes them.
        options: Its keyword arguments.

    Raises:
        OptionError: If it raises; the original follows as the cause.
    """
    options = options or {}
    try:
        return function(*arguments, **options)
    except ExplainGuideError:
        raise
    except Exception as error:
        given = ", ".join([*map(repr, arguments), *(f"{k}={v!r}" for k, v in options.items())])
        raise OptionError(
            f"{name!r}, called with ({given}), raises {type(error).__name__}: {first_line(error)}. The "
            "error is in that function, or in what it calls: mend it there. A function that returns is "
            "allowed."
        ) from error


def parameters_of(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    """The parameters of a user's function.

    Args:
        function: What `find_named` found.
        name: How it was named, for the message.

    Raises:
        OptionError: For one written in C that does not say what it takes.
    """
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{name!r} does not say what it takes, as some functions that are not written in Python. "
            "Call it in a function of your own. A function with named parameters is allowed."
        ) from error


def check_values(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Plain values of keyword arguments, against what the function's annotations say.

    Args:
        what: Whose options they are, for the message: ``"the loss 'energy'"``.
        function: A function or class; what it does not annotate may be anything.
        options: Keyword arguments that it takes.

    Raises:
        OptionError: For the first value of another kind.

    Example:
        >>> def drawn(*, steps: int = 8): ...
        >>> check_values("the loss 'drawn'", drawn, {"steps": "8"})
        Traceback (most recent call last):
        explainguide.errors.OptionError: steps of the loss 'drawn' is '8'. Did you mean 8? ...
    """
    try:
        called: Any = function
        hints = get_type_hints(called.__init__ if inspect.isclass(function) else called)
    except Exception:  # what is imported for annotations alone is not there
        return
    for name, value in options.items():
        hint = hints.get(name, Any)
        if _fits(value, hint):
            continue
        kinds = [kind for kind in _PLAIN if _fits(kind(), hint)]
        words = [_PLAIN[kind] for kind in kinds if not (kind is int and float in kinds)]
        meant: Any = {"true": True, "false": False}.get(str(value).lower())
        if meant is None:
            meant = next(
                (m for kind in (int, float) if (m := _read(kind, value)) is not None), None
            )
        near = meant is not None and _fits(meant, hint)
        fix = f"Did you mean {meant!r}?" if near else "Leave it out for the default."
        raise OptionError(f"{name} of {what} is {value!r}. {fix} {_sentence(words)}")


def _read(kind: type, value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None


def _sentence(words: list[str]) -> str:
    *most, last = words or ["another value"]
    text = f"{', '.join(most)} or {last}" if most else last
    return f"{text[0].upper()}{text[1:]} is allowed."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated kind; which words are allowed, the function tells."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(member) for member in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    kind = origin or hint
    try:
        return hint is Any or not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a Protocol
        return True


def look_up(
    option: str, name: str, table: Mapping[str, Callable[..., Any]], *, also: str = ""
) -> Callable[..., Any]:
    """An entry of one of the package's tables, or a user's own by ``package.module:function``.

    Args:
        option: What the table is of, for the message: ``"loss"``.
        name: A key of the table, or where to import from.
        table: Name to function or class.
        also: What else is allowed, for the message.

    Raises:
        OptionError: For an unknown name, with the nearest that is known.
    """
    if isinstance(name, str) and ":" in name:
        entry: Callable[..., Any] = find_named(name)
        return entry
    check_option(option, name, table, also=also)
    return table[name]


def on_demand(
    package: str, homes: Mapping[str, str | None]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562), for names imported when asked for.

    A type checker does not follow them: import the names under ``TYPE_CHECKING`` as well.

    Args:
        package: Its ``__name__``.
        homes: Each name's module, relative to the package; None where the name is that module.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = importlib.import_module(f"{package}.{home or name}")
        return module if home is None else getattr(module, name)

    return find, lambda: sorted(homes)
