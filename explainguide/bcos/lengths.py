"""Filters times a power of their own length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["rescaled"]


def rescaled(weight: Tensor, power: float) -> Tensor:
    r"""Each filter, a row of `weight`, as :math:`w\,\lVert w \rVert^p`; -1 gives them length 1."""
    output: Tensor = _Rescaled.apply(weight, power)
    return output


def _length(weight: Tensor) -> Tensor:
    """Of each filter."""
    length = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return length.clamp_min(1e-12)


class _Rescaled(torch.autograd.Function):
    r"""Each filter times a power of its length, :math:`w\,\lVert w \rVert^p`.

    One function rather than its operations: beside a small batch, weights are the largest tensors
    of a network, and its backward pass goes over them half as often.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, power: float) -> Tensor:
        return weight * _length(weight).pow(power)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        weight, ctx.power = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        if weight.is_contiguous():  # the second derivative of a convolution returns a transpose
            grad = grad.contiguous()
        length = _length(weight)
        along = (grad * weight).sum(tuple(range(1, weight.ndim)), keepdim=True)
        turned = torch.addcmul(grad, weight, ctx.power * along / length.square())
        return turned.mul_(length.pow(ctx.power)), None
