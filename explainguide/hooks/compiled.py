"""Parts of a model that torch.compile has compiled: which they are, and how to run without that."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from explainguide.errors import GuidanceError
from explainguide.hooks.layers import each_module, split_index

__all__ = ["CompiledPart", "check_outside", "compiled_parts", "uncompiled"]


def compiled_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that were compiled in place (`nn.Module.compile`) or wrapped (`torch.compile`)."""
    if not any(_is_wrapper(m) or _in_place(m) for m in each_module(model)):
        return {}
    return {name: m for name, m in model.named_modules() if _is_wrapper(m) or _in_place(m)}


def _is_wrapper(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules


def _in_place(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


@contextmanager
def uncompiled(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within this context compiled parts run as the Python code that they were compiled from."""
    modules = parts.values()
    calls = [(part, part._compiled_call_impl) for part in modules if _in_place(part)]
    forwards = [(vars(m), vars(m)["forward"]) for m in modules if "forward" in vars(m)]
    try:
        for part, _ in calls:
            part._compiled_call_impl = None
        for part in filter(_is_wrapper, modules):
            vars(part)["forward"] = part._modules["_orig_mod"]
        yield
    finally:
        for part, call in calls:
            part._compiled_call_impl = call
        for attributes, forward in forwards:
            attributes["forward"] = forward


def check_outside(model: nn.Module, layers: Iterable[str]) -> None:
    """Refuse layers that run inside a compiled part, where no hook can read them.

    A layer that is wrapped itself can be read: its hooks run outside.

    Raises:
        GuidanceError: With the part's name.
    """
    for layer in layers:
        name, _ = split_index(layer)
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            around = model.get_submodule(inside := ".".join(parts[:count]))
            if _in_place(around) or (_is_wrapper(around) and count < len(parts)):
                raise GuidanceError(
                    f"layer {layer!r} runs inside {inside!r}, which was compiled, so that it cannot be "
                    "read. Compile what lies before it, as `guide.compile()` does. Compiled modules "
                    "that end before the layer are allowed."
                )


class CompiledPart:
    """A module that is compiled in place until `remove`, as `nn.Module.compile` does it.

    Each has a code object of its own. PyTorch compiles all modules by one, so that eight shapes,
    modes and classes of modules together meet its limit of recompilations, and the shapes of one
    module make those of another dynamic.

    Args:
        name: Of the module, in PyTorch's logs.
        module: What is compiled.
        options: Of `torch.compile`.
    """

    def __init__(self, name: str, module: nn.Module, options: Mapping[str, Any]) -> None:
        call = torch.compile(_with_own_code(name, module._call_impl), **options)
        module._compiled_call_impl = call
        self._module, self._call = weakref.ref(module), weakref.ref(call)

    def remove(self) -> None:
        """Leave the module as it was, if nobody has compiled it anew."""
        module = self._module()
        if module is not None and module._compiled_call_impl is self._call():
            module._compiled_call_impl = None


def _with_own_code(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    forward.__code__ = forward.__code__.replace(co_name=f"forward of {name}")
    return forward
