"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["on_demand"]


def on_demand(
    package: str, homes: Mapping[str, str | None]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562), for its ``__init__``.

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
