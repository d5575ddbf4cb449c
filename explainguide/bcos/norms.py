r"""Norms that are dynamic linear: their statistics are constants of an explanation.

.. math:: y = \frac{x - c}{\sqrt{\operatorname{var}(x) + \epsilon}}\; w

with the ordinary biased variance (of the values less their mean) in all of them. The uncentred
norms have c = 0. The detachable ones subtract the mean of x, which is linear in x. None has a bias
unless it is asked for, because a bias is part of no explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from explainguide.bcos.norm_table import in_place_of
from explainguide.errors import ShapeError, operation
from explainguide.hooks.dynamic import DynamicLinear, Mode, hold, wide

__all__ = [
    "AllNormUncentered2d",
    "BatchNormUncentered2d",
    "ChannelsLast",
    "DetachableGroupNorm2d",
    "DetachableLayerNorm",
    "DetachablePositionNorm2d",
    "GroupNormUncentered2d",
    "LayerNormUncentered",
    "PositionNormUncentered2d",
]


def variance_of(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Over some dimensions, which stay as 1; in float32 for half precision."""
    variance: Tensor = _Variance.apply(wide(x), dims)
    return variance


class _Variance(torch.autograd.Function):
    """Biased variance over some dimensions, which stay as 1.

    ``torch.var`` takes ten to twenty times as long as two passes on a CPU, where it was the most
    costly operation after the convolutions.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
        if x.device.type == "cpu":
            return (x - x.mean(dims, keepdim=True)).square_().mean(dims, keepdim=True)
        return x.var(dims, correction=0, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, ctx.dims = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope = grad * (2 * grad.numel() / x.numel())
        return (x - x.mean(ctx.dims, keepdim=True)) * slope, None


def _check(norm: nn.Module, given: int, taken: int, shape: Sequence[int]) -> None:
    if given != taken:
        with operation(type(norm).__name__):
            raise ShapeError(
                f"the input has shape {tuple(shape)}, with {given} channels, but the norm "
                f"was built for {taken}. Build it for {given}. {taken} channels are allowed."
            )


def _normalise(x: Tensor, dims: Sequence[int], eps: float, mode: Mode, *, centered: bool) -> Tensor:
    scale = hold((variance_of(x, tuple(dims)) + eps).rsqrt(), mode)
    values = x - wide(x).mean(tuple(dims), keepdim=True) if centered else x
    return (values * scale).to(x.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, channel: int) -> Tensor:
    """Weight and bias along the dimension `channel`, counted from the last."""
    shape = (-1,) + (1,) * (-1 - channel)
    if weight is not None:
        x = x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


# Centring by a running mean adds a constant, so batch norm has an uncentred form only.
@in_place_of(
    nn.BatchNorm2d,
    timm.layers.BatchNormAct2d,
    arguments=("num_features", "eps", "momentum", "affine", "track_running_stats"),
    channels="num_features",
    running=True,
)
class BatchNormUncentered2d(DynamicLinear, nn.BatchNorm2d):
    """Batch norm without centring: a statistic a channel, over images and places.

    In training the running variance follows the biased variance, as the published networks do it
    (PyTorch's own follows the unbiased one). The running mean is kept so that state dicts fit; it
    moves only while `centering` does.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        momentum: Of the running variance; None is the average of all batches.
        affine: Whether there is a weight.
        track_running_stats: Whether evaluation uses the running variance.
        bias: Whether there is a bias too.

    Attributes:
        centering: How much of the mean is subtracted, a number from 0 to 1, or None for nothing.
            `bcosify` sets it to 1 where biases are kept, so that the norm is the one that it was,
            in training too; `scale_biases` takes it back. Like a bias it is in no explanation; it
            is saved.

    References:
        Boehle et al., 2024, Sec. 4.
    """

    centering: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.channels = num_features
        self.register_buffer("centering", None)
        if not bias:
            self.bias = None  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        self._check_input_dim(input)
        _check(self, input.shape[1], self.channels, input.shape)
        if self.training and input.numel() == input.shape[1]:
            with operation(type(self).__name__):
                raise ShapeError(
                    f"one value a channel has no variance, in a batch of shape "
                    f"{tuple(input.shape)}. Use more images, or evaluation mode. More than one value a "
                    "channel is allowed."
                )
        mean: Tensor | None
        if self.training or self.running_var is None:
            variance, mean = self._statistics(wide(input))
            self._follow(variance, mean)
            scale = hold((variance + self.eps).rsqrt(), self.mode)
        else:
            scale, mean = (self.running_var + self.eps).rsqrt(), self.running_mean
        if self.weight is not None:
            scale = scale * self.weight
        output = (input * scale[:, None, None]).to(input.dtype)
        bias: Tensor | None = self.bias
        if self.centering is not None and mean is not None:
            less = hold(self.centering * mean * scale, self.mode)
            bias = -less if bias is None else bias - less
        return output if bias is None else output + bias[:, None, None].to(output.dtype)

    @torch.no_grad()
    def _follow(self, variance: Tensor, mean: Tensor) -> None:
        """Move the running statistics to those of a batch."""
        if not self.training or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share: float | Tensor | None = self.momentum
        if share is None:
            share = self.num_batches_tracked.to(self.running_var.dtype).reciprocal()
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)
        if self.centering is not None and self.running_mean is not None:
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)

    @staticmethod
    def _statistics(input: Tensor) -> tuple[Tensor, Tensor]:
        return variance_of(input, (0, 2, 3)).flatten(), input.mean((0, 2, 3))


class AllNormUncentered2d(BatchNormUncentered2d):
    """One statistic over images, channels and places; weight and bias are single numbers.

    Args:
        num_features: Channels.
        eps: As `BatchNormUncentered2d`, as are the others.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(1, eps, momentum, affine, track_running_stats, bias=bias)
        self.channels = num_features

    @staticmethod
    def _statistics(input: Tensor) -> tuple[Tensor, Tensor]:
        return variance_of(input, (0, 1, 2, 3)).flatten(), input.mean()[None]


_in_place_of_group_norm = partial(
    in_place_of,
    nn.GroupNorm,
    timm.layers.GroupNorm,
    timm.layers.GroupNorm1,
    timm.layers.GroupNormAct,
    arguments=("num_groups", "num_channels", "eps", "affine"),
    channels="num_channels",
)


@_in_place_of_group_norm(choices=("uncentered",))
class GroupNormUncentered2d(DynamicLinear, nn.GroupNorm):
    """Group norm without centring; one group is layer norm over ``(C, H, W)``, C groups instance norm.

    Args:
        num_groups: Groups of channels.
        num_channels: Channels.
        eps: Added to the variance.
        affine: Whether there is a weight.
        bias: Whether there is a bias too.
    """

    _centered = False

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine)
        if not bias:
            self.bias = None  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        _check(self, input.shape[1], self.num_channels, input.shape)
        grouped = input.unflatten(1, (self.num_groups, -1))
        output = _normalise(grouped, (2, 3, 4), self.eps, self.mode, centered=self._centered)
        return _affine(output.flatten(1, 2), self.weight, self.bias, channel=-3)


@_in_place_of_group_norm(choices=("detached",))
class DetachableGroupNorm2d(GroupNormUncentered2d):
    """Group norm, centred; only its variance is a constant. Arguments as uncentred."""

    _centered = True


_in_place_of_layer_norm = partial(
    in_place_of,
    arguments=("normalized_shape", "eps", "elementwise_affine"),
    channels="normalized_shape",
)
_LAST = (nn.LayerNorm, timm.layers.LayerNorm)
_SECOND = (LayerNorm2d, timm.layers.LayerNorm2d, timm.layers.LayerNormAct2d)


@_in_place_of_layer_norm(*_LAST, channels_last=True, choices=("uncentered",))
class LayerNormUncentered(DynamicLinear, nn.LayerNorm):
    """Layer norm without centring, over the last dimensions.

    Args:
        normalized_shape: As `torch.nn.LayerNorm`, as are `eps` and `elementwise_affine`.
        bias: Whether there is a bias.
    """

    _centered = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        *,
        bias: bool = False,
    ) -> None:
        shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, bias)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., *normalized_shape)`` to the same shape."""
        dims = range(-len(self.normalized_shape), 0)
        for dim in dims:
            taken = self.normalized_shape[dim]
            _check(self, input.shape[dim], taken, input.shape)
        output = _normalise(input, dims, self.eps, self.mode, centered=self._centered)
        if self.weight is not None:
            output = output * self.weight
        return output if self.bias is None else output + self.bias


@_in_place_of_layer_norm(*_LAST, channels_last=True, choices=("detached",))
class DetachableLayerNorm(LayerNormUncentered):
    """Layer norm, centred; only its variance is a constant. Arguments as uncentred."""

    _centered = True


@_in_place_of_layer_norm(*_SECOND, choices=("uncentered",))
class PositionNormUncentered2d(LayerNormUncentered):
    """Norm over the channels of every place of ``(N, C, H, W)``, without centring.

    Args:
        normalized_shape: Channels.
        eps: As `torch.nn.LayerNorm`, as is `elementwise_affine`.
        bias: Whether there is a bias.

    References:
        Li et al., 2019 (positional normalization).
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        _check(self, input.shape[1], self.normalized_shape[0], input.shape)
        output = _normalise(input, (1,), self.eps, self.mode, centered=self._centered)
        return _affine(output, self.weight, self.bias, channel=-3)


@_in_place_of_layer_norm(*_SECOND, choices=("detached",))
class DetachablePositionNorm2d(PositionNormUncentered2d):
    """Position norm, centred; only its variance is a constant. Arguments as uncentred."""

    _centered = True


class ChannelsLast(nn.Module):
    """A norm of ``(N, C, H, W)`` for features whose channels are last: ConvNeXt's blocks, tokens.

    Args:
        norm: The norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """``(N, ..., C)`` to the same shape."""
        places = input.reshape(len(input), -1, input.shape[-1]).mT.unsqueeze(-1)
        output: Tensor = self.norm(places).squeeze(-1).mT.reshape(input.shape)
        return output
