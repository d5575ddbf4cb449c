"""How a guide is copied, or read from a pickle: built anew on the copy of its model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from explainguide.guidance.options import GuideOptions

__all__ = ["build", "rebuild"]


def rebuild(kind: Any, model: nn.Module, *rest: Any) -> Any:
    """A guide from its arguments; those of `build`."""
    guide = kind.__new__(kind)
    if "_modules" in vars(model):
        build(guide, model, *rest)
    else:  # the model holds the guide, and is being copied itself
        vars(guide)["_late"] = (model, *rest)
    return guide


def build(
    guide: Any,
    model: nn.Module,
    options: GuideOptions,
    state: tuple[torch.device, Tensor] | None,
    attached: bool,
) -> None:
    """Build it.

    Args:
        guide: That is to be built.
        model: The copy.
        options: Of the guide.
        state: Of its random generator, if it has one of its own.
        attached: Whether its hooks were on the model.
    """
    generator = None
    if state is not None:
        generator = torch.Generator(state[0])
        generator.set_state(state[1])
    guide._begin(model, options, generator)
    if not attached:
        guide.remove()
