"""What B-cos units share: their settings, the weights of their linear map, their scale."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from explainguide.bcos.cosine import times_cosine
from explainguide.bcos.lengths import rescaled
from explainguide.errors import OptionError, did_you_mean
from explainguide.hooks.dynamic import DynamicLinear

__all__ = ["BcosUnit", "Gain", "check_unit"]

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
    if gain not in get_args(Gain):
        raise OptionError(
            f"unknown gain {gain!r}.{did_you_mean(str(gain), get_args(Gain))} "
            f"{', '.join(map(repr, get_args(Gain)))} are allowed."
        )
