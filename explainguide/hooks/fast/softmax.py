r"""Softmax over the last dimension, whose second derivative is a closed form.

With p the softmax of x and all sums over a row,

.. math:: g_x = p\,(g_y - r),\quad r = \textstyle\sum p\, g_y

For the gradient u of a function of :math:`g_x`,

.. math::
    \frac{\partial}{\partial g_y} = e = p\,(u - \textstyle\sum p\, u),\quad
    \frac{\partial}{\partial x} = e\,(g_y - r) - p \textstyle\sum e\,(g_y - r)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.fast.nodes import builds_graph, by_autograd, wanted
from explainguide.hooks.fast.table import Unsuited, elements, fast_form

__all__ = ["softmax", "worth_it"]

_aten = torch.ops.aten


@torch.library.custom_op("explainguide::softmax", mutates_args=(), schema="(Tensor x) -> Tensor")
def softmax(x: Tensor) -> Tensor:
    """Over the last dimension."""
    return _weights(x)


@torch.library.custom_op(
    "explainguide::softmax_input",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor p) -> Tensor",
)
def _input(grad: Tensor, x: Tensor, p: Tensor) -> Tensor:
    return _through(grad, p)


softmax.register_fake(lambda x: _weights(x))
_input.register_fake(lambda grad, x, p: _through(grad, p))


def _weights(x: Tensor) -> Tensor:
    output: Tensor = _aten._softmax.default(x.contiguous(), -1, False)
    return output


def _through(grad: Tensor, p: Tensor) -> Tensor:
    found: Tensor = _aten._softmax_backward_data.default(grad.contiguous(), p, -1, p.dtype)
    return found


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _softmax_backward(ctx: Any, grad: Tensor) -> Tensor:
    x, p = ctx.saved_tensors
    return _input(grad, x, p.detach()) if builds_graph(grad) else _through(grad, p)


def _keep_input(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _input_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, p = ctx.saved_tensors
    if builds_graph(u):

        def gradient(grad: Tensor, x: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(x.softmax(-1), x, grad, create_graph=True)
            return found

        return *by_autograd(gradient, (grad, x), u, wanted(ctx, (0, 1, 2))), None
    onward = _through(u, p)
    inner = (onward * grad).addcmul_(onward, _dot(p, grad), value=-1)
    return onward, inner.addcmul_(p, inner.sum(-1, keepdim=True), value=-1), None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of a row's products, ``(..., 1)``."""
    return torch.linalg.vecdot(a, b)[..., None]


softmax.register_autograd(_softmax_backward, setup_context=_keep)
_input.register_autograd(_input_backward, setup_context=_keep_input)


worth_it = elements(2**19)


@fast_form(
    F.softmax,
    torch.softmax,
    torch.special.softmax,
    Tensor.softmax,
    name="softmax",
    pays=worth_it,
    autocast=None,
)
def _any_softmax(input: Tensor, dim: int | None = None, *_: Any, **options: Any) -> Tensor:
    """`F.softmax`."""
    if dim not in (-1, input.ndim - 1) or options.get("dtype") is not None:
        raise Unsuited("over another dimension, or in another type")
    return softmax(input)
