"""A hook that does not keep what it belongs to alive."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

__all__ = ["WeakHook"]


class WeakHook:
    """A hook that keeps neither its owner alive nor a copy of the model bound to it.

    Copies (an EMA of the model, a pickled model) carry a hook that does nothing.
    """

    def __init__(self, owner: Any = None, method: str = "", *args: Any) -> None:
        self._owner = weakref.ref(owner) if owner is not None else lambda: None
        self._method, self._args = method, args

    def __call__(self, module: nn.Module, *call: Any) -> Any:
        """Call the owner's method, if there still is an owner."""
        owner = self._owner()
        if owner is not None and torch.compiler.is_compiling():
            owner.compiled = True
            return None
        return getattr(owner, self._method)(*self._args, *call) if owner is not None else None

    def __reduce__(self) -> tuple[type[WeakHook], tuple[()]]:
        return WeakHook, ()
