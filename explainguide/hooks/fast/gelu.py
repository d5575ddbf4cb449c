r"""GELU whose second derivative is a closed form.

With the normal distribution's :math:`\Phi` and its density :math:`\varphi`,

.. math:: y = x\,\Phi(x),\quad y' = \Phi(x) + x\,\varphi(x),\quad y'' = (2 - x^2)\,\varphi(x)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.fast.nodes import builds_graph, by_autograd, wanted
from explainguide.hooks.fast.table import Unsuited, elements, fast_form

__all__ = ["gelu"]

_aten = torch.ops.aten
_DENSITY = 1 / math.sqrt(2 * math.pi)


@torch.library.custom_op("explainguide::gelu", mutates_args=(), schema="(Tensor x) -> Tensor")
def _forward(x: Tensor) -> Tensor:
    output: Tensor = _aten.gelu(x)
    return output


@torch.library.custom_op(
    "explainguide::gelu_input",
    mutates_args=(),
    schema="(Tensor grad, Tensor x) -> (Tensor, Tensor)",
)
def _input(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return _slopes(grad, x)


def _slopes(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    slope = torch.ones_like(x)
    _aten.gelu_backward(slope, x, grad_input=slope)
    return grad * slope, slope


_forward.register_fake(_aten.gelu)
_input.register_fake(lambda grad, x: _slopes(grad, x))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.slope = None


def _forward_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if builds_graph(grad):
        # y' is asked for three times, and costs as much as several passes over the tensor.
        found, ctx.slope = _input(grad, x)
        return found
    return _aten.gelu_backward(grad, x) if ctx.slope is None else grad * ctx.slope


def _keep_input(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _input_backward(ctx: Any, u: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grad, x, slope = ctx.saved_tensors
    if builds_graph(u):

        def gradient(grad: Tensor, x: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(F.gelu(x), x, grad, create_graph=True)
            return found

        return tuple(by_autograd(gradient, (grad, x), u, wanted(ctx, (0, 1))))
    exponent = (x * x).mul_(-0.5)
    of_x = exponent.exp().mul_(u).mul_(grad)
    return u * slope, of_x.addcmul_(of_x, exponent).mul_(2 * _DENSITY)


_forward.register_autograd(_forward_backward, setup_context=_keep)
_input.register_autograd(_input_backward, setup_context=_keep_input)


@fast_form(torch._C._nn.gelu, name="gelu", pays=elements(2**22), autocast="")
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """`F.gelu`."""
    if approximate != "none":
        raise Unsuited("its approximation by tanh")
    return _forward(input)
