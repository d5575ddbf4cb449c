"""The B-cos form of each kind of layer, with the layer's weights where they are kept."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, cast

import timm.layers
import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from explainguide.bcos.modules import Gated, GatedChannels
from explainguide.bcos.norm_table import NormForm, find_form, takes_images
from explainguide.bcos.norms import ChannelsLast
from explainguide.bcos.settings import ConversionSettings
from explainguide.bcos.units import BcosConv2d, BcosLinear

__all__ = ["LINEAR", "as_conv", "bcos_activation", "bcos_norm", "bcos_unit", "squeeze_excite"]

# Kinds with the forward of nn.Linear; any other subclass may compute something else.
LINEAR = (nn.Linear, timm.layers.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@torch.no_grad()
def bcos_unit(
    layer: nn.Module, settings: ConversionSettings, *, stem: bool = False
) -> nn.Module | None:
    """A convolution or linear layer as a B-cos unit; None for a kind that has none.

    Args:
        layer: The ordinary layer.
        settings: What is kept of it.
        stem: Whether it sees the image, and from now on the inverse as well.
    """
    if type(layer) is timm.layers.Conv2dSame:
        return _padded(layer, settings, stem=stem)
    options: dict[str, Any] = {"b": settings.b, "max_out": settings.max_out, "gain": settings.gain}
    unit: BcosConv2d | BcosLinear
    if type(layer) is nn.Conv2d:
        unit = BcosConv2d(
            2 * layer.in_channels if stem else layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            cast(tuple[int, int], layer.stride),
            cast("tuple[int, int] | str", layer.padding),
            cast(tuple[int, int], layer.dilation),
            layer.groups,
            settings.bias and layer.bias is not None,
            layer.padding_mode,
            **options,
        )
    elif type(layer) in LINEAR:
        layer = cast(nn.Linear, layer)
        bias = settings.bias and layer.bias is not None
        unit = BcosLinear(layer.in_features, layer.out_features, bias, **options)
    else:
        return None
    if settings.keep_weights:
        unit.weight = nn.Parameter(
            _stem_weight(layer.weight, settings) if stem else layer.weight.clone()
        )
    else:
        nn.init.kaiming_normal_(unit.weight, mode="fan_out", nonlinearity="relu")
    if unit.bias is not None and settings.keep_weights:
        old = cast(nn.Parameter, layer.bias)
        unit.bias = nn.Parameter(old.clone(), requires_grad=old.requires_grad)
    unit.to(layer.weight)
    if settings.keep_weights:  # new weights are there to be trained
        unit.weight.requires_grad_(layer.weight.requires_grad)
    return unit.train(layer.training)


class SamePadding(nn.Module):
    """TensorFlow's "same" padding, which depends on the size of the image.

    Args:
        conv: The convolution whose input is padded.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.sizes = (list(conv.kernel_size), list(conv.stride), list(conv.dilation))

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same with zeros around."""
        padded: Tensor = timm.layers.pad_same(input, *self.sizes)
        return padded


def _padded(layer: nn.Conv2d, settings: ConversionSettings, *, stem: bool) -> nn.Module:
    """A convolution of timm that pads by itself: the padding, then a unit without."""
    plain = copy.copy(layer)
    plain.__class__, plain.padding = nn.Conv2d, (0, 0)
    plain._reversed_padding_repeated_twice = [0, 0, 0, 0]
    conv = cast(nn.Module, bcos_unit(plain, settings, stem=stem))
    return nn.Sequential(OrderedDict(pad=SamePadding(layer), conv=conv)).train(layer.training)


def _stem_weight(weight: Tensor, settings: ConversionSettings) -> Tensor:
    """Weights for an image and its inverse, equal to `weight` on the normalised image.

    (x - m) / s = ((1 - m) x - m (1 - x)) / s: linear in the six channels, so that no bias is
    needed, and zero padding of the six channels is zero padding of the normalised image.
    """
    mean = weight.new_tensor(settings.mean)[:, None, None]
    std = weight.new_tensor(settings.std)[:, None, None]
    return torch.cat([weight * (1 - mean) / std, -weight * mean / std], 1)


@torch.no_grad()
def as_conv(layer: BcosLinear) -> BcosConv2d:
    """A linear unit as a 1 x 1 convolution, for every place instead of the mean over places."""
    conv = BcosConv2d(
        layer.in_features,
        layer.out_features,
        1,
        b=layer.b,
        max_out=layer.max_out,
        gain=layer.gain,
    )
    conv.weight = nn.Parameter(
        layer.weight[:, :, None, None].clone(), requires_grad=layer.weight.requires_grad
    )
    return conv.train(layer.training)


@torch.no_grad()
def bcos_norm(layer: nn.Module, settings: ConversionSettings) -> nn.Module | None:
    """A norm whose statistics are constants of explanations; None for a kind that has no such form."""
    form = find_form(layer, settings.norm)
    if form is None:
        return None
    new = _new_norm(form, layer, settings).to(_like(layer))
    if settings.keep_weights:
        _copy_norm(new.norm if isinstance(new, ChannelsLast) else new, layer)
    new.train(layer.training)
    if not isinstance(getattr(layer, "act", None), nn.Module):
        return new
    made: Any = layer  # a norm of timm with its activation, which is converted in its turn
    return nn.Sequential(OrderedDict(norm=new, drop=made.drop, act=made.act))


def _new_norm(form: NormForm, layer: Any, settings: ConversionSettings) -> nn.Module:
    if callable(settings.norm):
        size = getattr(layer, form.channels)
        if not isinstance(size, int):
            (size,) = size
        new = settings.norm(size)
        return ChannelsLast(new) if form.channels_last and takes_images(new) else new
    arguments = [getattr(layer, name) for name in form.arguments]
    # A running mean that is subtracted is a bias, even where the norm has no other.
    if settings.bias and (getattr(layer, "bias", None) is not None or form.running):
        return form.kind(*arguments, bias=True)
    return form.kind(*arguments)


def _copy_norm(new: Any, old: Any) -> None:
    """Weight, statistics and bias; where biases stay, a running mean goes on being subtracted."""
    weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
    if getattr(new, "weight", None) is not None and weight is not None:
        new.weight = nn.Parameter(weight.clone(), requires_grad=weight.requires_grad)
    for name, statistic in old.named_buffers(recurse=False):
        if getattr(new, name, None) is not None:
            getattr(new, name).copy_(statistic)
    if getattr(new, "bias", None) is None:
        return
    if hasattr(new, "centering"):
        new.centering = torch.ones_like(new.bias[0])
    frozen = bias is not None and not bias.requires_grad
    bias = torch.zeros_like(new.bias) if bias is None else bias.clone()
    new.bias = nn.Parameter(bias, requires_grad=not frozen)


def _like(layer: nn.Module) -> Tensor:
    """A tensor of the layer's device and dtype."""
    tensors = [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]
    return tensors[0] if tensors else torch.zeros(())


def bcos_activation(layer: nn.Module, settings: ConversionSettings) -> nn.Module | None:
    """An activation dropped, or kept as a gate; None for what is no activation that is known."""
    if isinstance(layer, _PIECEWISE):
        if not settings.keep_activations:
            return nn.Identity()
        return _not_in_place(layer)
    if isinstance(layer, _SMOOTH):
        return Gated(layer) if settings.keep_activations else nn.Identity()
    return None


# Linear on each side of zero: a network with them is dynamic linear as it is.
_PIECEWISE = (nn.ReLU, nn.LeakyReLU, nn.PReLU, timm.layers.PReLU)
_SMOOTH = (
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.ReLU6,
    nn.Mish,
    nn.ELU,
    timm.layers.GELU,
    timm.layers.GELUTanh,
    timm.layers.QuickGELU,
    timm.layers.Swish,
    timm.layers.Mish,
)


def _not_in_place(layer: nn.Module) -> nn.Module:
    kept: Any = copy.copy(layer)
    if hasattr(kept, "inplace"):  # it would write into what an explanation needs
        kept.inplace = False
    return kept


def squeeze_excite(layer: nn.Module) -> nn.Module | None:
    """Squeeze and excitation as a gate that explanations hold; None for what is none that is known."""
    made: Any = layer
    if type(layer) is SqueezeExcitation:
        parts = [made.fc1, made.activation, made.fc2, made.scale_activation]
    elif type(layer) is SqueezeExcite:
        parts = [made.conv_reduce, made.act1, made.conv_expand, made.gate]
    elif type(layer) is timm.layers.SEModule and not made.add_maxpool:
        parts = [made.fc1, made.bn, made.act, made.fc2, made.gate]
    elif type(layer) is timm.layers.EffectiveSEModule and not made.add_maxpool:
        parts = [made.fc, made.gate]
    else:
        return None
    return GatedChannels(nn.Sequential(*parts)).train(layer.training)
