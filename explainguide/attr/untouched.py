"""A model as it was, whatever a foreign attribution does to it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from explainguide.attr.evidence import buffers_aside

__all__ = ["untouched"]

# What torch keeps of every module: its mode, its hooks, its parts.
_OF_TORCH = frozenset(vars(nn.Module()))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within this context a model is in evaluation mode; afterwards it is as it was before.

    That is each module's mode, hooks, parts, parameters and buffers, the attributes that were put on it
    or taken off it, and each parameter's `requires_grad` and gradient; after an error as well. Values
    of attributes that are a model's own, as a counter of calls, stay what they have become.
    """
    modules = [(module, _own(module)) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None  # not zeroed, nor added to
        with buffers_aside(model):
            model.eval()
            yield
    finally:
        for module, before in modules:
            _put_back(module, before)
        for parameter, required, gradient in parameters:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _own(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, and copies of what torch's own hold."""
    return {
        name: (value, _copy(value) if name in _OF_TORCH else None)
        for name, value in vars(module).items()
    }


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | set) else value


def _put_back(module: nn.Module, before: dict[str, Any]) -> None:
    attributes = vars(module)
    for name in [name for name in attributes if name not in before]:
        del attributes[name]
    for name, (value, held) in before.items():
        if name in _OF_TORCH:
            if isinstance(value, dict | set):  # handles of hooks refer to this very object
                value.clear()
                value.update(held)
            attributes[name] = value
        else:
            attributes.setdefault(name, value)
