"""The B-cos unit as a convolution and as a linear layer."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.bcos.transform import BcosUnit, Gain, check_unit
from explainguide.errors import OptionError, ShapeError, named, operation
from explainguide.hooks.dynamic import wide

__all__ = ["BcosConv2d", "BcosLinear"]


class BcosConv2d(BcosUnit, nn.Conv2d):
    r"""B-cos convolution: the cosine is that of the weights with the patch they see.

    .. math:: \lVert x \rVert = \sqrt{\textstyle\sum_{\text{patch}} x^2 + 10^{-6}}

    Padding, of every mode, is part of the patch. With groups, a filter's patch is that of its
    group.

    Args:
        in_channels: As `torch.nn.Conv2d`, as are the next arguments up to `padding_mode`.
        out_channels: Outputs; there are ``out_channels * max_out`` filters, and output o is the
            largest of filters ``o * max_out`` to ``(o + 1) * max_out - 1``.
        kernel_size: An int or a pair.
        stride: An int or a pair.
        padding: An int, a pair, ``"same"`` or ``"valid"``.
        dilation: An int or a pair.
        groups: Blocks of channels that do not see each other.
        bias: Added to the output; False in the papers, because a bias is part of no explanation.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        b: The exponent B, 1 or more; at 1 a linear map.
        max_out: Number of filters of which each output is the largest.
        gain: See `BcosUnit`; ``"unit"`` in the papers, ``"norm"`` keeps pretrained weights.
        square_eps: Added to the sum of squares in a patch.
        cos_eps: Added to :math:`\lVert w \rVert^{e/B}\,|\cos|`, where B is neither 1 nor 2. At 0 the
            second derivative at a cosine of 0 is not finite where B is below 2.

    Raises:
        OptionError: For b below 1, an unknown gain, a max_out that is no positive integer.

    References:
        Boehle et al., 2022, Eq. 3, 4 and 10 (MaxOut); the epsilons are those of the published
        networks.

    Example:
        >>> BcosConv2d(6, 16, 3, padding=1)(torch.rand(1, 6, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    @operation("BcosConv2d")
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        b: float = 2.0,
        max_out: int = 1,
        gain: Gain = "unit",
        square_eps: float = 1e-6,
        cos_eps: float = 1e-6,
    ) -> None:
        check_unit(b, max_out, gain)
        if groups > 0 and out_channels % groups:
            raise OptionError(
                f"{out_channels} outputs do not divide into {groups} groups. Use "
                f"{-(-out_channels // groups) * groups}. Multiples of groups are allowed; with MaxOut "
                "it is the outputs that divide, not the filters."
            )
        super().__init__(
            in_channels,
            out_channels * max_out,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.b, self.max_out, self.gain = float(b), max_out, gain
        self.square_eps, self.cos_eps = square_eps, cos_eps
        self.register_buffer("scale", None)
        self.out_channels = out_channels
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach()[:out_channels].clone())

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)``, or one image ``(C, H, W)``, to the layer's output.

        Raises:
            ShapeError: If the number of channels is another; with the way to six, or back.
        """
        if input.ndim not in (3, 4) or input.shape[-3] != self.in_channels:
            _refuse_channels(input, self.in_channels)
        output = self._conv_forward(input, self._weights(), None)
        if self.max_out > 1:
            output = _max_out(output, self.max_out)
        if self.b != 1:
            norm = self.patch_norm(input)
            if self.groups > 1:  # (N, G, 1, H, W) beside (N, G, O / G, H, W)
                output = output.unflatten(-3, (self.groups, -1))
                output = self._times_cosine(output, norm.unsqueeze(-3)).flatten(-4, -3)
            else:
                output = self._times_cosine(output, norm)
        return output if self.bias is None else output + self.bias[:, None, None].to(output.dtype)

    def patch_norm(self, input: Tensor) -> Tensor:
        """Length of every patch, ``(N, groups, H, W)`` at the output's resolution."""
        squares = wide(input).square()
        if self.groups > 1:
            squares = squares.unflatten(-3, (self.groups, -1)).sum(-3)
        else:
            squares = squares.sum(-3, keepdim=True)
        # Left, right, top, bottom: what nn.Conv2d works out for every kind of padding.
        padding = self._reversed_padding_repeated_twice
        if any(padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            squares = F.pad(squares, padding, mode=mode)
        if self.kernel_size != (1, 1) or self.stride != (1, 1):
            squares = self._window_sums(squares)
        return (squares + self.square_eps).sqrt()

    def _window_sums(self, squares: Tensor) -> Tensor:
        height, width = self.kernel_size
        if self.dilation == (1, 1):
            mean = F.avg_pool2d(squares, self.kernel_size, self.stride)
            return mean * (height * width)
        ones = squares.new_ones(1, 1, height, width)
        shape = squares.shape
        planes = squares.reshape(-1, 1, *shape[-2:])  # faster than a grouped convolution
        with torch.autocast(squares.device.type, enabled=False):
            summed = F.conv2d(planes, ones, stride=self.stride, dilation=self.dilation)
        return summed.reshape(*shape[:-2], *summed.shape[-2:])


def _max_out(output: Tensor, count: int) -> Tensor:
    """The largest of every `count` channels, in the memory format that they came in."""
    last = output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)
    largest = output.unflatten(-3, (-1, count)).max(-3).values
    return largest.contiguous(memory_format=torch.channels_last) if last else largest


@named("BcosConv2d")
def _refuse_channels(input: Tensor, taken: int) -> NoReturn:
    batch = input.ndim in (3, 4)
    given = input.shape[-3] if batch else None
    fix = "Check the layer before."
    if (given, taken) == (3, 6):
        fix = "Put AddInverse() before the network, in [0, 1] and without Normalize."
    elif (given, taken) == (6, 3):
        fix = "Leave out AddInverse()."
    what = f"{given} channels" if batch else f"shape {tuple(input.shape)}"
    raise ShapeError(
        f"the image has {what}, but the layer takes {taken}. {fix} (N, {taken}, H, W) is allowed."
    )


class BcosLinear(BcosUnit, nn.Linear):
    r"""B-cos linear layer, over the last dimension; :math:`\lVert x \rVert + 10^{-12}` is its length.

    Args:
        in_features: Size of the last dimension.
        out_features: Size of the output's; with MaxOut there are ``out_features * max_out`` filters.
        bias: As in `BcosConv2d`.
        b: The exponent B, 1 or more.
        max_out: Number of filters of which each output is the largest.
        gain: See `BcosUnit`.
        square_eps: Added under the root; 1e-6 makes the layer equal to a 1 x 1 `BcosConv2d`.
        norm_eps: Added to the length.
        cos_eps: Added to :math:`\lVert w \rVert^{e/B}\,|\cos|`, where B is neither 1 nor 2. At 0 the
            second derivative at a cosine of 0 is not finite where B is below 2.

    Raises:
        OptionError: As `BcosConv2d`.

    References:
        Boehle et al., 2022, Eq. 3.
    """

    @operation("BcosLinear")
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        b: float = 2.0,
        max_out: int = 1,
        gain: Gain = "unit",
        square_eps: float = 0.0,
        norm_eps: float = 1e-12,
        cos_eps: float = 1e-6,
    ) -> None:
        check_unit(b, max_out, gain)
        super().__init__(in_features, out_features * max_out, bias, device, dtype)
        self.b, self.max_out, self.gain = float(b), max_out, gain
        self.square_eps, self.norm_eps, self.cos_eps = square_eps, norm_eps, cos_eps
        self.register_buffer("scale", None)
        self.out_features = out_features
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach()[:out_features].clone())

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        output = F.linear(input, self._weights())
        if self.max_out > 1:
            output = output.unflatten(-1, (self.out_features, self.max_out)).max(-1).values
        if self.b != 1:
            output = self._times_cosine(output, self._length(wide(input)))
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def _length(self, input: Tensor) -> Tensor:
        squares = input.square().sum(-1, keepdim=True) + self.square_eps
        zero = squares == 0  # where the root has no derivative
        return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt()) + self.norm_eps
