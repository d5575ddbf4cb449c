"""Models whose parameters `fully_shard` has cut in pieces, one for each process.

Its modules gather their parameters for a forward pass and again for a backward pass, and let them go
after it. A localization loss takes two: the first gives the map, and the second, `backward`, needs
what the first has used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import GuidanceError
from explainguide.hooks.layers import each_module

__all__ = ["check_whole", "from_logits", "kept_whole"]


def _sharded(model: nn.Module) -> dict[str, Any]:
    """The modules by name that gather their parameters themselves; torch's class has moved twice."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}
    if not any(hasattr(type(m), "set_reshard_after_backward") for m in each_module(model)):
        return {}
    return {
        n: m for n, m in model.named_modules() if hasattr(type(m), "set_reshard_after_backward")
    }


@contextmanager
def kept_whole(model: nn.Module, *, until_backward: bool = True) -> Iterator[None]:
    """Within this context a backward pass lets no parameters go that it has gathered.

    Args:
        model: With or without such modules.
        until_backward: Whether they stay until a backward pass outside of the context, or go with it.
    """
    before = {module: _lets_go(module) for module in _sharded(model).values()}
    for module in before:
        module.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for module, lets_go in before.items():
            module.set_reshard_after_backward(lets_go, recurse=False)
            if lets_go and not until_backward:
                module.reshard()


def _lets_go(module: Any) -> bool:
    """Whether its backward passes let parameters go: what `set_reshard_after_backward` was given last.

    PyTorch has no public way to ask. One that holds it elsewhere has the default, True.
    """
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    groups = getattr(state, "_fsdp_param_groups", None)  # several in later versions
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]
    return all(getattr(group, "reshard_after_backward", True) for group in groups)


def from_logits(loss: Tensor, logits: Tensor, model: nn.Module) -> Tensor:
    """The same loss; its backward pass begins at the logits too, where such a model expects it.

    It is there that the modules begin to put the gradients of all processes together. A gradient of
    the logits alone may never come back to them: the products of a linear layer need none.
    """
    if not _sharded(model):
        return loss
    everywhere = torch.ones_like(logits, dtype=torch.bool)
    return loss + logits.masked_fill(everywhere, 0).sum().to(loss.dtype)  # not 0 * inf


def check_whole(model: nn.Module, *, remedy: str) -> None:
    """Refuse a model whose parameters are in pieces.

    Raises:
        GuidanceError: With the first such module, and the remedy.
    """
    for name in _sharded(model):
        where = f"module {name!r}" if name else "the model"
        raise GuidanceError(
            f"{where} is cut in pieces by fully_shard, of which a process has one. {remedy} A model "
            "that is whole in every process is allowed."
        )
