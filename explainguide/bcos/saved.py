"""A B-cos network from what is saved of it: options and weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.bcos.convert import bcosify, convert
from explainguide.bcos.settings import resolve_settings
from explainguide.bcos.transform import BcosUnit
from explainguide.errors import operation

__all__ = ["rebuild"]


@operation("bcosify", default=True)
def rebuild(model: nn.Module, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Convert a model as it was converted before, ready to load what was saved then.

    Whether a unit has a `scale` depends on the weights that the model had at that time, so the saved
    weights say it.

    Args:
        model: Built as then; its weights do not matter.
        options: Keyword arguments of `bcosify`.
        state: The state dict of the network, whose values are left to `load_state_dict`.

    Returns:
        A network with the names and shapes of `state`.

    Raises:
        OptionError: As `bcosify`.
    """
    asked = inspect.signature(bcosify).bind(model, **options)
    asked.apply_defaults()
    network = convert(model, resolve_settings(**asked.arguments))
    for name, unit in network.named_modules():
        if isinstance(unit, BcosUnit):
            saved = state.get(f"{name}.scale")
            unit.scale = None if saved is None else torch.ones_like(saved)
    return network
