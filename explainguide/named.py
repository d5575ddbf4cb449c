"""What a name stands for: in a package's table, or anywhere as ``package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from explainguide.errors import OptionError, check_option, did_you_mean

__all__ = ["find_named", "look_up", "on_demand"]


def find_named(name: str, *, allowed: str = "'package.module:function' is allowed.") -> Any:
    """What a name stands for, imported.

    Args:
        name: ``package.module:function``.
        allowed: The sentence that ends the message.

    Raises:
        OptionError: If the module cannot be imported, or has no such function.
    """
    module, _, function = name.partition(":")
    try:
        home = importlib.import_module(module)
    except (ImportError, ValueError) as error:  # ":name" has no module
        raise OptionError(
            f"{name!r} cannot be imported ({error}). Is its folder on PYTHONPATH? {allowed}"
        ) from error
    target = getattr(home, function, None)
    if not callable(target):
        names = [n for n in dir(home) if not n.startswith("_") and callable(getattr(home, n))]
        wrong = f"has no function {function!r}.{did_you_mean(function, names)}"
        if target is not None:
            wrong = f"has a {type(target).__name__} {function!r}, which cannot be called."
        raise OptionError(f"module {module!r} {wrong} {allowed}")
    return target


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
