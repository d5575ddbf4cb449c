"""The small parts of a B-cos network: the input's encoding, gates, the logits' bias, CoDA's layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from explainguide.errors import OptionError, ShapeError, check_option, constructor, named
from explainguide.hooks.dynamic import DynamicLinear, hold
from explainguide.host import host_array

__all__ = [
    "AddInverse",
    "DynamicLinearUnit",
    "Gated",
    "GatedChannels",
    "LogitBias",
]


class AddInverse(v2.Transform):
    """Encode an image with its inverse, so that black has a length as well: ``cat(x, 1 - x)``.

    A module, for the start of a network, and one of `torchvision.transforms.v2`, for the end of a
    list of them: in a sample of the detection references the image gains its inverse, boxes and
    masks stay. What comes out is a plain tensor, because six channels are no image of
    torchvision's.

    Raises:
        ShapeError: If the image has not three channels, or is not of a floating type.
        OptionError: If its values are not in [0, 1] (checked where the image is on the CPU).

    References:
        Boehle et al., 2022, Sec. 4.

    Example:
        >>> AddInverse()(torch.zeros(1, 3, 2, 2)).shape
        torch.Size([1, 6, 2, 2])
    """

    unit_range = True  # for what runs a model on images of its own making

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Called by `forward` with every part of a sample: ``(..., 3, H, W)`` to ``(..., 6, H, W)``."""
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(
            inpt, tv_tensors.Image | tv_tensors.Video
        ):
            return inpt
        image = _check_image(inpt)
        return torch.cat([image, 1 - image], -3)

    _transform = transform  # the name that torchvision calls before 0.21


@named("AddInverse")
def _check_image(inpt: Any) -> Tensor:
    if not isinstance(inpt, Tensor):
        raise ShapeError(
            f"the image is a {type(inpt).__name__}. Put v2.ToImage() and "
            "v2.ToDtype(torch.float32, scale=True) before. A tensor (..., 3, H, W) is allowed."
        )
    image = inpt.as_subclass(Tensor)
    if image.ndim < 3 or image.shape[-3] != 3:
        twice = " It holds the inverse already." if image.ndim > 2 and image.shape[-3] == 6 else ""
        raise ShapeError(
            f"the image has shape {tuple(image.shape)}.{twice} Give RGB. (..., 3, H, W) is allowed."
        )
    if not image.is_floating_point():
        raise ShapeError(
            f"the image is {image.dtype}. Put v2.ToDtype(torch.float32, scale=True) "
            "before. Floating point in [0, 1] is allowed."
        )
    # Values are read where nothing has to wait for them. Resizing can overshoot a little.
    if image.device.type == "cpu" and image.numel():
        low, high = (float(host_array(value)) for value in image.detach().aminmax())
        if not (low >= -0.1 and high <= 1.1):
            raise OptionError(
                f"the image has values from {low:.3g} to {high:.3g}, so 1 - x is no "
                "inverse. Leave out Normalize: a B-cos network takes plain images. [0, 1] is allowed."
            )
    return image


class LogitBias(nn.Module):
    """Temperature and bias of the logits, ``z / temperature + bias``.

    The bias is the one part of a logit that a B-cos explanation leaves out: a map sums to the logit
    less the bias.

    Args:
        bias: One number for all classes, or one a class.
        temperature: Divides the logits.
        trainable: Whether the bias is a parameter that optimizers change.

    Raises:
        OptionError: If the temperature is not positive.

    References:
        Boehle et al., 2024, Sec. 4.2; ``-log(K - 1)`` starts K classes at the probability 1 / K.
    """

    @constructor
    def __init__(
        self, bias: float | Tensor = 0.0, *, temperature: float = 1.0, trainable: bool = False
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise OptionError(
                f"temperature is {temperature}. Use 1 for none. Positive numbers are allowed."
            )
        value = torch.as_tensor(bias, dtype=None if isinstance(bias, Tensor) else torch.float32)
        self.bias = nn.Parameter(value.detach().clone(), requires_grad=trainable)
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """``(N, K)`` to ``(N, K)``."""
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return scaled + self.bias

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}bias")
        if saved is not None and saved.numel() != self.bias.numel():
            # torch 2.4 would put the first of several numbers into one, without a word.
            errors: list[str] = args[-1]
            errors.append(
                f"LogitBias: {prefix}bias was saved with {saved.numel()} numbers but is built with "
                f"{self.bias.numel()}. Give the same number of classes. One number for all classes, "
                "or one a class, is allowed."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The bias, where it is one number."""
        bias = f"bias={float(self.bias):.4g}" if self.bias.ndim == 0 else f"{len(self.bias)} biases"
        return bias if self.temperature == 1 else f"{bias}, temperature={self.temperature:g}"


class Gated(DynamicLinear):
    """An activation as a gate, ``x * (act(x) / x)``, the gate a constant of explanations.

    Args:
        activation: Elementwise, with ``act(0) = 0``: GELU, SiLU, hardswish, ReLU6.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        if getattr(activation, "inplace", False):  # it would overwrite what it is divided by
            activation = copy.copy(activation)
            activation.inplace = False  # type: ignore[assignment]
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """Any shape to the same shape; values are the activation's to rounding."""
        return input * hold(self._gate(input), self.mode)

    def _gate(self, input: Tensor) -> Tensor:
        known = _GATES.get(type(self.activation))
        if known is not None:
            return known(self.activation, input)
        small = input.abs() < 1e-6
        safe = torch.where(small, 1e-6, input)
        gate: Tensor = self.activation(safe) / safe
        return gate


def _gelu_gate(activation: nn.Module, x: Tensor) -> Tensor:
    if getattr(activation, "approximate", "none") == "tanh":
        return 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * (1 + torch.erf(x * 0.5**0.5))


# act(x) / x in a form that is smooth through zero, for the activations that networks use most.
_GATES: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    nn.GELU: _gelu_gate,
    nn.SiLU: lambda _, x: torch.sigmoid(x),
    nn.Hardswish: lambda _, x: F.relu6(x + 3) / 6,
    nn.ReLU6: lambda _, x: (x > 0) * 6 / x.clamp_min(6),
    nn.Mish: lambda _, x: torch.tanh(F.softplus(x)),
    timm.layers.GELU: lambda _, x: 0.5 * (1 + torch.erf(x * 0.5**0.5)),
    timm.layers.QuickGELU: lambda _, x: torch.sigmoid(1.702 * x),
    timm.layers.Swish: lambda _, x: torch.sigmoid(x),
    timm.layers.Mish: lambda _, x: torch.tanh(F.softplus(x)),
}


class GatedChannels(DynamicLinear):
    """Squeeze and excitation: channels scaled by a gate that is a constant of explanations.

    The layers that compute the gate stay ordinary ones: they are part of the dynamic weights, and
    their biases of no explanation.

    Args:
        squeeze: From the mean over places, ``(N, C, 1, 1)``, to the gate of the same shape.
    """

    def __init__(self, squeeze: nn.Module) -> None:
        super().__init__()
        self.squeeze = squeeze

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        return input * hold(self.squeeze(input.mean((2, 3), keepdim=True)), self.mode)


class DynamicLinearUnit(DynamicLinear):
    r"""CoDA's dynamic linear unit, an earlier form of the same idea.

    .. math:: y = w(x)^\top x, \qquad w(x) = g(A B x + b)

    with g the squashing of the length of each weight vector, :math:`v \mapsto \frac{\lVert
    v\rVert}{1 + \lVert v\rVert^2}\, v`, or the scaling to length 1.

    Args:
        in_features: Size of x.
        out_features: Number of units.
        rank: Size of B x, the bottleneck.
        scaling: ``"squash"`` or ``"l2"``.

    Raises:
        OptionError: For an unknown scaling or a rank below 1.

    References:
        Boehle et al., 2021 (Convolutional Dynamic Alignment Networks), Eq. 2 to 4.
    """

    @constructor
    def __init__(
        self, in_features: int, out_features: int, *, rank: int = 32, scaling: str = "squash"
    ) -> None:
        super().__init__()
        if rank < 1:
            raise OptionError(f"rank is {rank}. Use 32. A positive integer is allowed.")
        check_option("scaling", scaling, ("squash", "l2"))
        self.in_features, self.out_features, self.scaling = in_features, out_features, scaling
        self.reduce = nn.Linear(in_features, rank, bias=False)
        self.expand = nn.Linear(rank, out_features * in_features)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        weight = self.expand(self.reduce(input)).unflatten(
            -1, (self.out_features, self.in_features)
        )
        squares = weight.square().sum(-1, keepdim=True) + 1e-12
        length = squares.sqrt()
        weight = weight * (length / (1 + squares) if self.scaling == "squash" else 1 / length)
        return (hold(weight, self.mode) @ input.unsqueeze(-1)).squeeze(-1)
