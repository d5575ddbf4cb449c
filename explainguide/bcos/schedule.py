"""What changes while a pretrained network becomes a B-cos network: the exponent, and the biases."""

from __future__ import annotations

import torch
from torch import nn

from explainguide.bcos.tokens import BcosAttention, BcosMultiheadAttention
from explainguide.bcos.transform import BcosUnit, check_unit
from explainguide.errors import OptionError, operation
from explainguide.hooks.dynamic import DynamicLinear, is_bcos

__all__ = ["scale_biases", "set_b"]


@operation("set_b")
def set_b(model: nn.Module, b: float) -> None:
    """Give every B-cos unit of a network another exponent, as on a schedule while fine-tuning.

    The running variances of batch norms are still those of the exponent before: training finds new
    ones in a few hundred steps, `calibrate` at once, for a network that is to be evaluated now.

    Args:
        model: A B-cos network; it is changed in place.
        b: The exponent B, 1 or more.

    Raises:
        OptionError: For b below 1, or a model without B-cos units.

    References:
        Arya et al., 2024: B rises from 1 while a pretrained network is fine-tuned.
    """
    check_unit(b, 1, "unit")
    units = [module for module in model.modules() if isinstance(module, BcosUnit)]
    if not units:
        raise OptionError(
            f"{type(model).__name__} has no B-cos unit. Convert it with bcosify. A B-cos "
            "network is allowed."
        )
    for unit in units:
        unit.b = float(b)


@torch.no_grad()
@operation("scale_biases")
def scale_biases(model: nn.Module, factor: float) -> None:
    """Shrink every bias but that of the logits, so that maps become complete while b rises.

    What batch norms subtract is a bias too, and shrinks with them. Leave biases out of the
    optimizer meanwhile: trained ones grow while they are shrunk.

    Args:
        model: A B-cos network with biases (``bcosify(..., b=1)``); it is changed in place.
        factor: Multiplies the biases; 0 removes them for good.

    Raises:
        OptionError: If the factor is not in [0, 1], or the model no B-cos network.
    """
    if not 0 <= factor <= 1:
        raise OptionError(
            f"factor is {factor}. Use 0 to remove them. Numbers in [0, 1] are allowed."
        )
    if not is_bcos(model):
        raise OptionError(
            f"{type(model).__name__} is no B-cos network. Convert it with bcosify(model, "
            "b=1). A B-cos network is allowed."
        )
    for module in model.modules():
        if isinstance(module, BcosAttention):
            _scale(module.qkv, "bias", factor)
        elif isinstance(module, BcosMultiheadAttention):
            _scale(module, "in_proj_bias", factor)
        if isinstance(module, DynamicLinear):
            _scale(module, "bias", factor)
            centering = getattr(module, "centering", None)
            if centering is not None:
                module.centering = centering * factor if factor else None  # type: ignore[assignment]


def _scale(module: nn.Module, name: str, factor: float) -> None:
    bias = getattr(module, name, None)
    if not isinstance(bias, nn.Parameter):
        return
    if factor == 0:
        setattr(module, name, None)
    else:
        bias.mul_(factor)
