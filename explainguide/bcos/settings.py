"""How a network is converted: the arguments of `bcosify`, checked and resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from explainguide.bcos.transform import Gain, check_unit
from explainguide.errors import OptionError
from explainguide.hooks.dynamic import is_bcos
from explainguide.hooks.layers import unwrap
from explainguide.hooks.probe import input_size
from explainguide.models.plain_weights import check_plain_weights

__all__ = ["ConversionSettings", "Numbers", "resolve_settings"]

Numbers = float | Sequence[float]
NormChoice = str | Callable[[int], nn.Module]


@dataclass(frozen=True)
class ConversionSettings:
    """The arguments of `bcosify`, with no None but a logit bias that is left to the classifier."""

    b: float
    max_out: int
    gain: Gain
    norm: NormChoice
    logit_bias: float | None
    keep_weights: bool
    bias: bool
    keep_activations: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int, int]


def resolve_settings(
    model: nn.Module,
    *,
    b: float,
    norm: NormChoice | None,
    max_out: int,
    logit_bias: float | None,
    keep_weights: bool,
    bias: bool | None,
    activations: str | None,
    gain: Gain | None,
    mean: Numbers,
    std: Numbers,
    image_size: tuple[int, int] | None,
) -> ConversionSettings:
    """Check what `bcosify` was called with.

    Raises:
        OptionError: As `bcosify`.
    """
    model = unwrap(model)
    check_plain_weights(model)
    if is_bcos(model):
        raise OptionError(
            f"this {type(model).__name__} is a B-cos network already. Change its exponent "
            "with set_b. An ordinary network is allowed."
        )
    if not any(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()):
        raise OptionError(
            f"{type(model).__name__} has no convolution and no linear layer. Give a network "
            "of nn.Conv2d and nn.Linear. Models of timm and torchvision are allowed."
        )
    gain = gain or ("norm" if keep_weights else "unit")
    check_unit(b, max_out, gain)
    if keep_weights and max_out > 1:
        raise OptionError(
            f"max_out is {max_out}, but the kept weights are those of one filter an "
            "output. Use keep_weights=False, or max_out=1. With keep_weights, 1 is allowed."
        )
    if activations not in (None, "keep", "drop"):
        raise OptionError(
            f"activations is {activations!r}. Leave it out: they are kept with the "
            "weights. 'keep' and 'drop' are allowed."
        )
    channels, *own_size = input_size(model)
    height, width = image_size or own_size
    return ConversionSettings(
        b=b,
        max_out=max_out,
        gain=gain,
        norm=_check_norm(norm or ("detached" if keep_weights else "uncentered")),
        logit_bias=logit_bias,
        keep_weights=keep_weights,
        bias=(keep_weights and b == 1) if bias is None else bias,
        keep_activations=keep_weights if activations is None else activations == "keep",
        mean=_three(mean, "mean"),
        std=_three(std, "std"),
        size=(channels, height, width),
    )


def _three(value: Numbers, name: str) -> tuple[float, ...]:
    try:
        numbers = (value,) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        numbers = ()
    low, high = (0.0, 1.0) if name == "mean" else (1e-6, 1e6)
    if len(numbers) != 3 or not all(low <= number <= high for number in numbers):
        raise OptionError(
            f"{name} is {value!r}. Give one number a channel, as for Normalize. Three "
            "numbers, or one for all, are allowed: means in [0, 1], as images are; std is positive."
        )
    return numbers


def _check_norm(norm: Any) -> NormChoice:
    """Refuse what is no choice of norm.

    Raises:
        OptionError: For an unknown name.
    """
    if norm in ("uncentered", "detached") or (callable(norm) and not isinstance(norm, nn.Module)):
        return cast(NormChoice, norm)
    raise OptionError(
        f"norm is {norm!r}. Use 'uncentered', or 'detached' for layer and group norms "
        "that keep their centring. One of the two, or a function from the number of channels to a "
        "module, is allowed."
    )
