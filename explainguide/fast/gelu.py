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

from explainguide.fast.nodes import by_autograd, wanted
from explainguide.fast.table import Unsuited, fast_form

__all__ = ["gelu"]

_aten = torch.ops.aten


@torch.library.custom_op("explainguide::gelu", mutates_args=(), schema="(Tensor x) -> Tensor")
def _forward(x: Tensor) -> Tensor:
    output: Tensor = _aten.gelu(x)
    return output


@torch.library.custom_op(
    "explainguide::gelu_input", mutates_args=(), schema="(Tensor grad, Tensor x) -> Tensor"
)
def _input(grad: Tensor, x: Tensor) -> Tensor:
    found: Tensor = _aten.gelu_backward(grad, x)
    return found


_forward.register_fake(torch.empty_like)
_input.register_fake(lambda grad, x: torch.empty_like(x))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _forward_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return _input(grad, x) if torch.is_grad_enabled() else _aten.gelu_backward(grad, x)


def _input_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    if torch.is_grad_enabled():

        def gradient(grad: Tensor, x: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(F.gelu(x), x, grad, create_graph=True)
            return found

        return tuple(by_autograd(gradient, (grad, x), u, wanted(ctx, (0, 1))))
    square = x * x
    of_x = (square * -0.5).exp_()
    of_x.mul_(square.sub_(2)).mul_(u).mul_(grad).mul_(-1 / math.sqrt(2 * math.pi))
    return _aten.gelu_backward(u, x), of_x


_forward.register_autograd(_forward_backward, setup_context=_keep)
_input.register_autograd(_input_backward, setup_context=_keep)


@fast_form(torch._C._nn.gelu, name="gelu", autocast="")
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """`F.gelu`."""
    if approximate != "none":
        raise Unsuited("its approximation by tanh")
    return _forward(input)
