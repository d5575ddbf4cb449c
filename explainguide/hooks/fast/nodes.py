"""What the backward passes of operations of one's own share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_laid_out", "builds_graph", "by_autograd", "mark_own", "wanted"]

_OWN = "_explainguide_own"  # attribute of a marked leaf


def wanted(ctx: Any, places: Sequence[int]) -> list[bool]:
    """Which gradients the running backward pass uses.

    PyTorch tells an operation of one's own only which inputs require a gradient: the gradient with
    respect to a layer would cost as much as one with respect to all parameters above it.

    Args:
        ctx: Of the backward pass.
        places: Which of the operation's arguments were tensors, in order.

    Returns:
        One an argument of the operation.
    """
    used = [False] * len(ctx.needs_input_grad)
    for place, (node, _) in zip(places, ctx.next_functions, strict=True):
        used[place] = node is not None and _runs(node)
    return used


def builds_graph(grad: Tensor) -> bool:
    """Whether the backward pass that runs will be differentiated itself.

    Raises:
        RuntimeError: In a backward pass for several gradients at once, as PyTorch's own operations do
            that cannot take them; `layer_gradients` then takes one after another.
    """
    if torch._C._functorch.is_legacy_batchedtensor(grad):
        raise RuntimeError("a fast form takes one gradient at a time")
    return torch.is_grad_enabled()


def _runs(node: Any) -> bool:
    leaf = _own_leaf(node)
    try:
        runs = torch._C._will_engine_execute_node(node if leaf is None else leaf)
    except RuntimeError:  # a leaf whose gradient `autograd.grad` was asked for
        return True
    return bool(runs) and leaf is None


def _own_leaf(node: Any) -> Any:
    """The node of a leaf marked by `mark_own` that a node leads to at once, or None."""
    if node.name().startswith("CloneBackward"):
        node = node.next_functions[0][0]
    return node if getattr(getattr(node, "variable", None), _OWN, False) else None


def mark_own(leaf: Tensor) -> Tensor:
    """Mark a leaf that nobody sees: its gradient is computed where it is asked for, never stored.

    The image as a layer is such a leaf, and the derivative of a first convolution with respect to it is
    slow.
    """
    setattr(leaf, _OWN, True)
    return leaf


def by_autograd(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    gradient: Tensor,
    used: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of a function that is written in PyTorch's own operations.

    They can be differentiated on and on, as the fast ones cannot.

    Args:
        function: Takes the inputs.
        inputs: Tensors, or None.
        gradient: Of the function's result.
        used: Which gradients are used, one an input.
    """
    with torch.enable_grad():
        # Views, since one input may have been computed from another.
        own = [None if x is None else x.view_as(x) for x in inputs]
        chosen = [x for x, use in zip(own, used, strict=False) if x is not None and use]
        found = iter(
            torch.autograd.grad(
                function(*own), chosen, gradient, create_graph=True, allow_unused=True
            )
        )
    return [
        next(found) if x is not None and use else None for x, use in zip(own, used, strict=False)
    ]


def as_laid_out(x: Tensor, like: Tensor | None = None) -> Tensor:
    """A tensor with its elements in order, or, where `like` (or it itself) is so, channels last.

    Given these two, a kernel of PyTorch's returns what its fake implementation says that it returns.
    For other orders, or two tensors of different ones, the strides of the two may differ, and
    inductor reads the result by those of the fake one.
    """
    like = x if like is None else like
    last = like.ndim == 4 and not like.is_contiguous()
    last = last and like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
