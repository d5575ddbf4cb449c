"""Finds operations that can be differentiated once but not twice, before a training steps over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from explainguide.errors import GuidanceError, first_line

__all__ = ["check_derivatives"]

# Whose autograd.Functions can be differentiated twice: `fully_shard` puts one before each module.
_KNOWN = ("explainguide.", "torch.distributed.")


def check_derivatives(
    derived: Tensor, logits: Tensor, features: Iterable[Tensor], *, model: nn.Module
) -> None:
    """Refuse what would fail in the backward pass of the loss, or be left out of it without a word.

    Walks the graph and reads nothing from the device; computes nothing, but where a compiled extension
    takes part, whose operations say only when they run that they have no second derivative.

    Args:
        derived: A function of the gradient of the logits: a loss, or the gradient itself.
        logits: Of the forward pass, or a sum of them.
        features: The guided layers' activations; the model above them is differentiated twice.
        model: Of that forward pass, whose compiled modules are named.

    Raises:
        GuidanceError: With the operation's name.
    """
    features = list(features)
    below = {f.grad_fn for f in features if f.grad_fn is not None}
    above = list(_nodes(logits, below))
    if any("CompiledFunction" in node.name() for node in above):
        names = ", ".join(n for n, m in model.named_modules() if _is_compiled(m))
        raise GuidanceError(
            f"between the layer and the logits a part of the model was compiled by "
            f"torch.compile ({names or 'a function'}), which cannot be differentiated twice from "
            "outside. Compile only what lies before the layer, as `guide.compile()` does, or guide a "
            "layer after it. Every operation between the layer and the logits must be differentiable "
            "twice."
        )
    named = next((n for n in map(_once_by_hand, above) if n), None)
    named = named or next((n for n in map(_without, _nodes(derived, set())) if n), None)
    named = named or _extension_without(derived, features)
    if named is not None:
        raise GuidanceError(
            f"operation {named!r} has no second derivative. Exchange it for one that has, "
            "or guide a layer above it. Every operation between the layer and the logits must be "
            "differentiable twice."
        )


def _extension_without(derived: Tensor, features: list[Tensor]) -> str | None:
    """An operation of a compiled extension whose backward cannot be differentiated.

    Its node says so only when it runs; where there is such a node, all are run once.
    """
    inside = [foreign for node in _nodes(derived, set()) if (foreign := _foreign(node))]
    if not inside or not derived.requires_grad:
        return None
    try:
        torch.autograd.grad(derived.sum(), features, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        reason = first_line(error)
        return next((name for name in inside if name in reason), f"{inside[0]}: {reason}")
    return None


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _foreign(node: Node) -> str | None:
    """The name of an operation that neither torch nor this package defines."""
    name = node.name()
    registered = re.match(r"GeneratedBackwardFor_+(.+?)(_backward)?_default", name)
    if registered and registered[1].startswith("explainguide_"):
        return None
    if registered:
        return registered[1].split("_", 1)[-1].strip("_")
    if "CppNode" in name:
        return re.split(r"::", name.rstrip(">"))[-1]
    forward: Any = getattr(type(node), "_forward_cls", None)
    if forward is None or forward.__module__.startswith(_KNOWN):
        return None
    return str(forward.__name__)


def _nodes(of: Tensor, stop: set[Node]) -> Iterator[Node]:
    seen: set[Node] = set(stop)
    waiting = [of.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(before for before, _ in node.next_functions)


def _once_by_hand(node: Node) -> str | None:
    """A custom autograd.Function that says `once_differentiable`: torch takes it for a constant."""
    forward: Any = getattr(type(node), "_forward_cls", None)
    backward: Callable[..., Any] | None = getattr(forward, "backward", None)
    where = getattr(getattr(backward, "__code__", None), "co_filename", None)
    if hasattr(backward, "__wrapped__") and where == torch.autograd.function.__file__:
        return str(forward.__name__)
    return "flex_attention" if "FlexAttention" in node.name() else None


def _without(node: Any) -> str | None:
    """An operation of torch's whose backward has no derivative; the node knows its name."""
    if not node.name().endswith("NotImplemented"):
        return None
    try:
        node(torch.zeros(()))
    except RuntimeError as error:
        match = re.search(r"aten::(\w+?)(_backward)? ", str(error))
        return match[1].strip("_") if match else first_line(error)
    return None
