"""Layer normalization whose second derivative is that of a batch normalization of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.fast.batch_norm import second_derivative
from explainguide.hooks.fast.nodes import builds_graph, by_autograd, wanted
from explainguide.hooks.fast.table import elements, fast_form

__all__ = ["layer_norm"]

_aten = torch.ops.aten


@torch.library.custom_op(
    "explainguide::layer_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, int[] shape, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _aten.native_layer_norm.default(x, shape, weight, bias, eps)


@torch.library.custom_op(
    "explainguide::layer_norm_input",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor factor, int[] shape,"
    " float eps) -> Tensor",
)
def _input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    shape: Sequence[int],
    eps: float,
) -> Tensor:
    return _of_input(grad, x, weight, mean, factor, shape)


def _of_input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    shape: Sequence[int],
) -> Tensor:
    found: Tensor = _aten.native_layer_norm_backward.default(
        grad.contiguous(), x.contiguous(), shape, mean, factor, weight, None, (True, False, False)
    )[0]
    return found


_forward.register_fake(
    lambda x, weight, bias, shape, eps: _aten.native_layer_norm.default(x, shape, weight, bias, eps)
)
_input.register_fake(
    lambda grad, x, weight, mean, factor, shape, eps: _of_input(
        grad, x, weight, mean, factor, shape
    )
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.shape, ctx.eps = inputs
    _, mean, factor = output
    ctx.places = [i for i, tensor in enumerate(tensors) if tensor is not None]
    ctx.mark_non_differentiable(mean, factor)
    ctx.save_for_backward(*tensors, mean, factor)


def _forward_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, factor = ctx.saved_tensors
    use = wanted(ctx, ctx.places)
    if not builds_graph(grad):
        found = _aten.native_layer_norm_backward.default(
            grad, x, ctx.shape, mean, factor, weight, bias, use[:3]
        )
        return *(g if u else None for g, u in zip(found, use, strict=False)), None, None
    if use[1] or use[2]:
        found = by_autograd(
            lambda x, weight, bias: F.layer_norm(x, ctx.shape, weight, bias, ctx.eps),
            (x, weight, bias),
            grad,
            use,
        )
        return *found, None, None
    return _input(grad, x, weight, mean, factor, ctx.shape, ctx.eps), None, None, None, None


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.shape, ctx.eps = inputs
    ctx.places = [i for i, tensor in enumerate(tensors) if tensor is not None]
    ctx.save_for_backward(*tensors)


def _input_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, weight, mean, factor = ctx.saved_tensors
    use = wanted(ctx, ctx.places)
    if builds_graph(u):

        def gradient(grad: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
            output = F.layer_norm(x, ctx.shape, weight, None, ctx.eps)
            (found,) = torch.autograd.grad(output, x, grad, create_graph=True)
            return found

        return *by_autograd(gradient, (grad, x, weight), u, use), None, None, None, None
    # A row is a channel of a batch of one.
    rows = (1, mean.numel(), -1)
    weighted = grad if weight is None else grad * weight
    onward, of_x, _ = second_derivative(
        u.reshape(rows),
        weighted.reshape(rows),
        x.reshape(rows),
        None,
        mean.flatten(),
        factor.flatten(),
        ctx.eps,
    )
    onward = onward.reshape(x.shape)
    of_weight = (grad * onward).reshape(-1, *ctx.shape).sum(0) if use[2] else None
    return (
        onward if weight is None else onward * weight,
        of_x.reshape(x.shape),
        of_weight,
        *[None] * 4,
    )


_forward.register_autograd(_forward_backward, setup_context=_keep)
_input.register_autograd(_input_backward, setup_context=_keep_input)


@fast_form(F.layer_norm, name="layer_norm", pays=elements(2**17), autocast=None)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm`."""
    return _forward(input, weight, bias, list(normalized_shape), eps)[0]
