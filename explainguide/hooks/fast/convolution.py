r"""The two-dimensional convolution, closed under differentiation.

It is linear in its input x and in its weight w, so that its derivatives are convolutions again:

.. math:: y = w * x,\quad g_x = w^T * g_y,\quad g_w = g_y \star x

and the derivatives of :math:`g_x` and :math:`g_w` are the same three. PyTorch has a kernel for
:math:`g_w`, and uses it in the first backward pass only: in the second one it computes the same by a
forward convolution over transposed tensors (pytorch #22577). Where that kernel is slow, a matrix
product takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.fast.nodes import builds_graph, wanted
from explainguide.hooks.fast.table import Unsuited, elements, fast_form

__all__ = ["as_window", "conv2d"]

_aten = torch.ops.aten
# Stride, padding and dilation, two numbers each, and the number of groups.
Window = Sequence[int]
_NO_OUTPUT_PADDING = [0, 0]


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    sizes = window[:2], window[2:4], window[4:6]
    output: Tensor = _aten.convolution.default(
        x, weight, bias, *sizes, False, _NO_OUTPUT_PADDING, window[6]
    )
    return output


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, mask: Sequence[bool]
) -> list[Tensor | None]:
    """The first derivatives, of x, the weight and the bias; None where the mask is false."""
    of_x, of_weight, of_bias = mask
    folded = of_x and _folding_pays(x, window)
    apart = of_weight and _apart_pays(x, weight, window)
    unfolded = of_weight and not apart and _unfolding_pays(grad, weight, window)
    sizes = window[:2], window[2:4], window[4:6]
    by_kernel = of_weight and not (apart or unfolded)
    # The kernel computes both, whichever is asked for.
    rest = (of_x and not folded, by_kernel, of_bias and by_kernel)
    bias = [weight.shape[0]] if rest[2] else None
    found: list[Tensor | None] = [None, None, None]
    if any(rest):
        found = list(
            _aten.convolution_backward.default(
                grad, x, weight, bias, *sizes, False, _NO_OUTPUT_PADDING, window[6], rest
            )
        )
    stride, padding, dilation = map(tuple, sizes)
    kernel = tuple(weight.shape[2:])
    if folded:
        columns = torch.bmm(weight.flatten(1).mT.expand(len(grad), -1, -1), grad.flatten(2))
        # Into a tensor of its own: what `F.fold` returns holds as much memory as the columns.
        found[0] = x.new_empty(x.shape)
        arguments = columns, x.shape[2:], kernel, dilation, padding, stride
        _aten.col2im.out(*arguments, out=found[0])
    if of_bias and not by_kernel:
        found[2] = grad.sum((0, 2, 3))
    if apart:
        found[1] = _apart(x, grad, sizes).sum(0)[:, None, : kernel[0], : kernel[1]].contiguous()
    if unfolded:
        columns = F.unfold(x, kernel, dilation, padding, stride)
        rows, columns = (t.transpose(0, 1).flatten(1) for t in (grad.flatten(2), columns))
        # Into a tensor that is no view, so that autograd adds to it in place.
        of_weights = torch.empty_like(weight, memory_format=torch.contiguous_format)
        torch.mm(rows, columns.mT, out=of_weights.view(len(weight), -1))
        found[1] = of_weights
    return found


def _apart(x: Tensor, grad: Tensor, sizes: tuple[Window, Window, Window]) -> Tensor:
    """g_w of each image alone, ``(N, C, h, w)``: x convolved with g_y, each channel by itself.

    The last rows and columns may lie beyond the kernel, where a stride leaves a rest.
    """
    stride, padding, dilation = sizes
    count = x.shape[0] * x.shape[1]
    image, kernel = x.reshape(1, count, *x.shape[2:]), grad.reshape(count, 1, *grad.shape[2:])
    found: Tensor = _aten.convolution.default(
        image, kernel, None, dilation, padding, stride, False, _NO_OUTPUT_PADDING, count
    )
    return found.view(*x.shape[:2], *found.shape[2:])


# What PyTorch's kernels are slow at, on a CPU; measured by benchmarks/operations.py.


def _folding_pays(x: Tensor, window: Window) -> bool:
    """Few input channels, as the image has: the kernel for g_x works in blocks of channels."""
    return x.device.type == "cpu" and x.shape[1] <= 4 and window[6] == 1


def _apart_pays(x: Tensor, weight: Tensor, window: Window) -> bool:
    """A large kernel for each channel: the kernel for g_w takes ten times the forward pass's time."""
    single = window[6] == x.shape[1] == weight.shape[0]
    return x.device.type == "cpu" and single and weight[0].numel() >= 25


def _unfolding_pays(grad: Tensor, weight: Tensor, window: Window) -> bool:
    """Many weights for few places: the kernel for g_w reorders them all."""
    places = grad.shape[0] * grad.shape[2] * grad.shape[3]
    columns = places * weight[0].numel()
    many = weight.numel() >= max(2**19, 3 * columns)
    return grad.device.type == "cpu" and many and window[6] == 1


@torch.library.custom_op(
    "explainguide::conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[] window) -> Tensor",
)
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    return _convolution(x, weight, bias, window)


@torch.library.custom_op(
    "explainguide::conv2d_input",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, int[] window) -> Tensor",
)
def _input(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
    (found, _, _) = _gradients(grad, x, weight, window, (True, False, False))
    assert found is not None
    return found


@torch.library.custom_op(
    "explainguide::conv2d_weight",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, int[] window) -> Tensor",
)
def _weight(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
    (_, found, _) = _gradients(grad, x, weight, window, (False, True, False))
    assert found is not None
    return found


_forward.register_fake(_convolution)
_input.register_fake(
    lambda grad, x, weight, window: _gradients(grad, x, weight, window, (True, False, False))[0]
)
_weight.register_fake(
    lambda grad, x, weight, window: _gradients(grad, x, weight, window, (False, True, False))[1]
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    use = wanted(ctx, (0, 1) if bias is None else (0, 1, 2))
    if not builds_graph(grad):
        return *_gradients(grad, x, weight, ctx.window, use[:3]), None
    return (
        _input(grad, x, weight, ctx.window) if use[0] else None,
        _weight(grad, x, weight, ctx.window) if use[1] else None,
        grad.sum((0, 2, 3)) if use[2] else None,
        None,
    )


def _input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    before, _, weight = ctx.saved_tensors
    use = wanted(ctx, (0, 1, 2))
    return (
        _forward(grad, weight, None, ctx.window) if use[0] else None,
        None,  # linear in the gradient: the input gives its shape alone
        _weight(before, grad, weight, ctx.window) if use[2] else None,
        None,
    )


def _weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    before, x, _ = ctx.saved_tensors
    use = wanted(ctx, (0, 1, 2))
    return (
        _forward(x, grad, None, ctx.window) if use[0] else None,
        _input(before, x, grad, ctx.window) if use[1] else None,
        None,
        None,
    )


_forward.register_autograd(_forward_backward, setup_context=_keep)
_input.register_autograd(_input_backward, setup_context=_keep)
_weight.register_autograd(_weight_backward, setup_context=_keep)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value) * (3 - len(value))


@fast_form(torch.conv2d, name="conv2d", pays=elements(0), autocast="half")
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`."""
    if input.ndim != 4:
        raise Unsuited("of an image without a batch")
    input, window = as_window(input, weight, stride, padding, dilation, groups)
    output: Tensor = _forward(input, weight, bias, window)
    return output


def as_window(
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, list[int]]:
    """The arguments of `F.conv2d` as numbers; x is padded where the two sides need not the same."""
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):  # "same", for which the stride is 1
        total = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2))
        padding = [t // 2 for t in total]
    return x, [*_pair(stride), *_pair(padding), *_pair(dilation), groups]
