"""Finds operations that can be differentiated once but not twice, before a training steps over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from explainguide.errors import GuidanceError
from explainguide.logits import find_logits

__all__ = ["check_derivatives"]


def check_derivatives(
    derived: Tensor, output: Any, features: Iterable[Tensor], *, caller: str
) -> None:
    """Refuse what would fail in the backward pass of the loss, or be left out of it without a word.

    Walks the graph, computes nothing, and reads nothing from the device.

    Args:
        derived: A function of the gradient of the logits: a loss, or the gradient itself.
        output: What the model returned: its logits, or more.
        features: The guided layers' activations; the model above them is differentiated twice.
        caller: The public callable that the error names.

    Raises:
        GuidanceError: With the operation's name.
    """
    below = {f.grad_fn for f in features if f.grad_fn is not None}
    named = next((n for n in map(_once_by_hand, _nodes(find_logits(output), below)) if n), None)
    named = named or next((n for n in map(_without, _nodes(derived, set())) if n), None)
    if named is not None:
        raise GuidanceError(
            f"{caller}: operation {named!r} has no second derivative. Exchange it for one that has, "
            "or guide a layer above it. Every operation between the layer and the logits must be "
            "differentiable twice."
        )


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
        found = re.search(r"aten::(\w+?)(_backward)? ", str(error))
        return found[1].strip("_") if found else str(error).splitlines()[0]
    return None
