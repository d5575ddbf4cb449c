"""The B-cos transform: what a unit computes of weights and inputs, and its two factors.

The factors, a power of the cosine and of the length of each filter, have backward passes of their own.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from explainguide.errors import OptionError, check_option
from explainguide.hooks.dynamic import DynamicLinear, Mode, hold, wide

__all__ = ["BcosUnit", "Gain", "check_unit", "rescaled", "times_cosine"]

Gain = Literal["unit", "norm", "power"]


class BcosUnit(DynamicLinear):
    r"""What the B-cos convolution and the B-cos linear layer share.

    .. math:: y = \lVert w \rVert^{e}\; (\hat w \cdot x)\; |\cos(x, \hat w)|^{B-1}

    with :math:`\hat w = w / \lVert w \rVert`, computed as a linear map with the weights
    :math:`w\,\lVert w \rVert^{e/B - 1}` times :math:`|\cos|^{B-1}` of that map.

    Attributes:
        b: The exponent B; it may be changed between steps.
        max_out: Number of filters of which each output is the largest.
        gain: What is left of the length of w, e above: ``"unit"`` nothing, ``"norm"`` 1, so that at
            B = 1 the unit is the ordinary layer, ``"power"`` B.
        scale: A number that multiplies the output, or None. `bcosify` sets it where no norm
            follows, so that the output keeps the size that it has at B = 1; it is saved with the
            weights.
    """

    weight: Tensor
    b: float
    max_out: int
    gain: Gain
    cos_eps: float
    scale: Tensor | None

    def _weights(self) -> Tensor:
        """The weights of the linear map: w times a power of its own length."""
        exponent = {"unit": 0.0, "norm": 1 / self.b, "power": 1.0}[self.gain]
        if exponent == 1:
            return self.weight
        return rescaled(self.weight, exponent - 1)

    def _times_cosine(self, linear: Tensor, norm: Tensor) -> Tensor:
        output: Tensor = times_cosine(linear, norm, self.b, self.cos_eps, self.mode)
        return output if self.scale is None else output * self.scale

    def extra_repr(self) -> str:
        """The layer's own, and what makes it a B-cos layer."""
        extra = f"b={self.b:g}"
        extra += f", max_out={self.max_out}" if self.max_out > 1 else ""
        extra += f", gain={self.gain!r}" if self.gain != "unit" else ""
        return f"{super().extra_repr()}, {extra}"


def check_unit(b: float, max_out: int, gain: str) -> None:
    """Refuse settings that no B-cos unit can have.

    Raises:
        OptionError: For b below 1, an unknown gain, a max_out that is no positive integer.
    """
    if not isinstance(b, int | float) or not 1 <= b < math.inf:
        raise OptionError(
            f"b is {b!r}. Use 2, the papers' value, or 1 for a linear layer. Numbers from "
            "1 on are allowed."
        )
    if isinstance(max_out, bool) or not isinstance(max_out, int) or max_out < 1:
        raise OptionError(
            f"max_out is {max_out!r}. Use 1 for no MaxOut, or 2 as in the first paper. "
            "A positive integer is allowed."
        )
    check_option("gain", gain, get_args(Gain))


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
