"""The factor of the B-cos transform, in one function with two backward passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explainguide.hooks.dynamic import Mode, hold, wide

__all__ = ["times_cosine"]


def times_cosine(linear: Tensor, norm: Tensor, b: float, cos_eps: float, mode: Mode) -> Tensor:
    r"""A linear map times the power of its cosine, :math:`z\,(|z| / n + \epsilon)^{B-1}`.

    Args:
        linear: z, the inputs times weights of length 1, any shape.
        norm: n, the length of the inputs; it broadcasts with `linear`.
        b: B; at 2 the epsilon is not used.
        cos_eps: Added to the cosine.
        mode: Of the module; while it explains, the factor is a constant of backward passes.
    """
    output: Tensor = _TimesCosine.apply(linear, norm, b, cos_eps, mode)
    return output


def _factor(linear: Tensor, norm: Tensor, b: float, cos_eps: float) -> Tensor:
    r""":math:`|\cos|^{B-1}`."""
    cosine = _cosine(linear, norm)
    return cosine if b == 2 else (cosine + cos_eps).pow(b - 1)


def _cosine(linear: Tensor, norm: Tensor) -> Tensor:
    """Its size. By the inverse, which is small: a quotient's own derivative is ten large tensors."""
    return wide(linear).abs() * norm.reciprocal()


class _TimesCosine(torch.autograd.Function):
    """``linear * |linear / norm| ** (b - 1)``, the factor a constant while a mode explains.

    One function rather than `hold` around the factor: it keeps two tensors for the backward pass
    instead of four, and computes no gradient that is thrown away. Its backward pass is written in
    operations that have derivatives, on the tensors of the graph, so that the second is complete.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(linear: Tensor, norm: Tensor, b: float, cos_eps: float, mode: Mode) -> Tensor:
        return _factor(linear, norm, b, cos_eps).mul_(linear).to(linear.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        linear, norm, ctx.b, ctx.cos_eps, ctx.mode = inputs
        ctx.save_for_backward(linear, norm)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None, None
        linear, norm = ctx.saved_tensors
        factor = _factor(linear, norm, ctx.b, ctx.cos_eps)
        if ctx.mode.explaining:  # held, so that an explanation differentiated as one is constant
            return (grad * hold(factor, ctx.mode)).to(linear.dtype), None, None, None, None
        explained = grad * factor
        # d|c|^(B-1) has the relative size (B-1) |c| / (|c| + eps) dc / c, with c = linear / norm.
        share: Tensor | float = ctx.b - 1
        if ctx.b != 2 and ctx.cos_eps:
            cosine = _cosine(linear, norm)
            share = share * (cosine / (cosine + ctx.cos_eps))
        turned = explained if ctx.b == 2 else explained * share
        along = -(turned * linear).sum_to_size(norm.shape) / norm
        return (explained * (1 + share)).to(linear.dtype), along, None, None, None
