r"""Batch normalization whose second derivative is a closed form.

With :math:`\hat x = r (x - \mu)`, all means over a channel, and :math:`P v = v - \overline{v} -
\hat x\, \overline{v \hat x}`,

.. math:: g_x = w\, r\, P g_y

For the gradient u of a function of :math:`g_x`, with D the sum of :math:`u\, P g_y` over the channel
and n its number of elements:

.. math::
    \frac{\partial}{\partial g_y} = w\, r\, P u,\quad
    \frac{\partial}{\partial w} = r D,\quad
    \frac{\partial}{\partial x} = -r \Big(\frac{w r D}{n}\, \hat x
        + \overline{g_y \hat x}\; w r P u + \overline{u \hat x}\; w r P g_y\Big)

In evaluation mode :math:`\mu` and r are constants, and :math:`g_x = w\, r\, g_y`. PyTorch composes the
same of single operations (pytorch #3076), in both modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.fast.nodes import as_laid_out, builds_graph, by_autograd, wanted
from explainguide.hooks.fast.table import Unsuited, elements, fast_form

__all__ = ["batch_norm"]

_aten = torch.ops.aten


@torch.library.custom_op(
    "explainguide::batch_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _normalized(x, weight, bias, eps)


def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Running statistics with a momentum of 1 are the batch's own, as PyTorch would add them.
    kind = torch.promote_types(x.dtype, torch.float32)
    mean, variance = (torch.zeros(x.shape[1], dtype=kind, device=x.device) for _ in range(2))
    output, used, factor = _aten.native_batch_norm.default(
        as_laid_out(x), weight, bias, mean, variance, True, 1.0, eps
    )
    return output, used, factor, variance


_forward.register_fake(lambda x, weight, bias, eps: _normalized(x, weight, bias, eps))


@torch.library.custom_op(
    "explainguide::batch_norm_input",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor factor, float eps)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)
def _input(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, x, weight, mean, factor, eps, (True, True, True))


_input.register_fake(
    lambda grad, x, weight, mean, factor, eps: _gradients(
        grad, x, weight, mean, factor, eps, (True, True, True)
    )
)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    eps: float,
    mask: Sequence[bool],
) -> Any:
    """PyTorch's first derivatives, of x, the weight and the bias."""
    x = as_laid_out(x)
    grad = as_laid_out(grad, x)
    return _aten.native_batch_norm_backward.default(
        grad, x, weight, None, None, mean, factor, True, eps, mask
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps = inputs
    _, mean, factor, variance = output
    ctx.places = [i for i, tensor in enumerate(inputs[:3]) if tensor is not None]
    ctx.mark_non_differentiable(mean, factor, variance)
    ctx.save_for_backward(x, weight, bias, mean, factor)


def _composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The same in single operations."""
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def _forward_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, factor = ctx.saved_tensors
    use = wanted(ctx, ctx.places)
    if not builds_graph(grad):
        found = _gradients(grad, x, weight, mean, factor, ctx.eps, use[:3])
        return *(g if u else None for g, u in zip(found, use, strict=False)), None
    if use[1] or use[2]:
        found = by_autograd(
            lambda x, weight, bias: _composed(x, weight, bias, ctx.eps),
            (x, weight, bias),
            grad,
            use,
        )
        return *found, None
    return _input(grad, x, weight, mean, factor, ctx.eps)[0], None, None, None


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x, weight, mean, factor, ctx.eps = inputs
    _, scaled, summed = output
    ctx.places = [i for i, tensor in enumerate(inputs[:5]) if tensor is not None]
    ctx.mark_non_differentiable(scaled, summed)
    ctx.save_for_backward(grad, x, weight, mean, factor, scaled, summed)


def _input_backward(ctx: Any, u: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad, x, weight, mean, factor, scaled, summed = ctx.saved_tensors
    use = wanted(ctx, ctx.places)
    if builds_graph(u):

        def gradient(grad: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
            output = _composed(x, weight, None, ctx.eps)
            (found,) = torch.autograd.grad(output, x, grad, create_graph=True)
            return found

        return *by_autograd(gradient, (grad, x, weight), u, use), None, None, None
    onward, of_x, of_weight = second_derivative(
        u, grad, x, weight, mean, factor, ctx.eps, (scaled, summed)
    )
    return onward, of_x, of_weight if use[2] else None, None, None, None


def second_derivative(
    u: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    eps: float,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three formulas above.

    Args:
        u: The gradient with respect to g_x.
        grad: g_y, ``(N, C, ...)``.
        x: What was normalized.
        weight: Of the channels; None for 1.
        mean: Of the channels.
        factor: r.
        eps: Of the variance.
        sums: Of g_y times the normalized x, and of g_y, over each channel, where they are known.
    """
    if sums is None:
        sums = _gradients(grad, x, None, mean, factor, eps, (False, True, True))[1:]
    scaled, summed = sums
    onward, u_scaled, u_summed = _gradients(u, x, weight, mean, factor, eps, (True, True, True))
    kind = factor.dtype  # float32 where x is half precision
    u, grad = u.to(kind), grad.to(kind)
    # Few operations: on a small layer they cost more than the passes over x.
    share = 1 / (x.numel() // x.shape[1])
    own, unit = _plain(x, kind)
    both = _gradients(u, grad, None, own, unit, 0.0, (False, True, False))[1]  # sums of u times g_y
    both = both.addcmul(summed, u_summed, value=-share).addcmul_(scaled, u_scaled, value=-share)
    lead = (factor * factor).mul_(-share)
    lead = lead if weight is None else lead * weight
    of_x = both.addcmul(scaled, u_scaled, value=-2 * share).mul_(lead * factor)
    cross = (scaled * u_summed).addcmul_(u_scaled, summed)
    rest = (of_x * mean).addcmul_(lead, cross, value=share).neg_()
    # of_x * x + rest: a normalization in evaluation mode, in one pass.
    dx: Tensor = _aten.native_batch_norm.default(
        x.to(kind), of_x, rest, own, unit, False, 0.0, 0.0
    )[0]
    dx.addcmul_(grad, _of_channels(lead * u_scaled, x))
    dx.addcmul_(u, _of_channels(lead * scaled, x))
    return onward, dx.to(x.dtype), factor * both


def _of_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _plain(like: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and factor of channels that are normalized already."""
    channels = like.shape[1]
    return like.new_zeros(channels, dtype=kind), like.new_ones(channels, dtype=kind)


_forward.register_autograd(_forward_backward, setup_context=_keep)
_input.register_autograd(_input_backward, setup_context=_keep_input)


@torch.library.custom_op(
    "explainguide::batch_norm_constant",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float eps)"
    " -> Tensor",
)
def _constant(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    return _shifted(x, weight, bias, mean, variance, eps)


def _shifted(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    output: Tensor = _aten.native_batch_norm.default(
        as_laid_out(x), weight, bias, mean, variance, False, 0.0, eps
    )[0]
    return output


_constant.register_fake(
    lambda x, weight, bias, mean, variance, eps: _shifted(x, weight, bias, mean, variance, eps)
)


def _keep_constant(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.places = [i for i, tensor in enumerate(tensors) if tensor is not None]
    ctx.save_for_backward(*tensors)


def _constant_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, _, mean, variance = ctx.saved_tensors
    use = wanted(ctx, ctx.places)
    if builds_graph(grad):
        factor = (variance + ctx.eps).rsqrt()
        of_x = factor if weight is None else factor * weight
        others = [0, *range(2, x.ndim)]
        return (
            grad * _of_channels(of_x, x).to(grad.dtype),
            (grad * (x - _of_channels(mean, x))).sum(others) * factor if use[1] else None,
            grad.sum(others) if use[2] else None,
            *[None] * 3,
        )
    found = _aten.native_batch_norm_backward.default(
        grad, x, weight, mean, variance, None, None, False, ctx.eps, use[:3]
    )
    return *(g if u else None for g, u in zip(found, use, strict=False)), None, None, None


_constant.register_autograd(_constant_backward, setup_context=_keep_constant)


@fast_form(F.batch_norm, name="batch_norm", pays=elements(2**15), autocast="")
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`."""
    if not training:
        if running_mean is None or running_var is None:
            raise Unsuited("in evaluation without running statistics")  # which PyTorch refuses
        return _constant(input, weight, bias, running_mean, running_var, eps)
    if weight is not None and weight.dtype != torch.promote_types(weight.dtype, torch.float32):
        raise Unsuited("with a weight in half precision")  # PyTorch's kernels then want all in it
    output, mean, _, variance = _forward(input, weight, bias, eps)
    with torch.no_grad():
        for running, own in ((running_mean, mean), (running_var, variance)):
            if running is not None:
                torch.add(own * momentum, running * (1 - momentum), out=running)
    return output
