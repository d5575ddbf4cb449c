"""Where in the image each element of a tensor comes from, followed through one forward pass.

A layer's shape does not say which of its numbers belong to which place: tokens may lie in another
order, have others before or between them, or lack some. So the operations of the pass itself are
followed. Beside a tensor that was computed from the image goes a `Trace`: for each element the height
and the width, as shares of the image, of the pixels that it came from. What moves elements (reshape,
permute, cat, an index) is done to the trace as well; a convolution or pooling averages its window; a
linear layer averages its input's channels; attention leaves a token where its query is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.pass_mode import PassMode

__all__ = ["Arrangement", "PlaceTracer"]

# What moves elements: done to a trace as to the tensor. (Zero, of padding, is no place.)
_MOVES = {
    "flatten", "reshape", "view", "view_as", "reshape_as", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "t", "unflatten", "ravel", "unsqueeze", "squeeze", "expand",
    "expand_as",
    "broadcast_to", "repeat", "repeat_interleave", "tile", "narrow", "select", "__getitem__", "chunk",
    "split", "tensor_split", "split_with_sizes", "unbind", "cat", "concat", "concatenate", "stack",
    "hstack", "vstack", "dstack", "roll", "flip", "fliplr", "flipud", "rot90", "index_select", "gather",
    "take_along_dim", "unfold", "pad", "pixel_unshuffle", "pixel_shuffle", "channel_shuffle", "adjoint",
    "__get__", "diagonal", "masked_select",
}  # fmt: skip
_WINDOWS = {
    "max_pool2d", "_max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "_adaptive_max_pool2d", "interpolate", "upsample",
}  # fmt: skip
_SUMS = {"mean", "sum", "amax", "amin", "nanmean", "std", "var", "logsumexp", "norm"}
_PRODUCTS = {"matmul", "__matmul__", "bmm", "mm"}
_FRESH = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "argsort", "argmax", "argmin",
    "topk", "sort", "multinomial", "bernoulli",
}  # fmt: skip
_VIEWS = {"view", "view_as", "unflatten"}
_NEAR = 1e-4  # of a side: places nearer than that are one


class Trace:
    """Heights and widths, as shares of the image, of a tensor's elements; 0 where there is no place.

    Attributes:
        axes: Two tensors of the traced tensor's shape, with values in [1, 2], shifted by 1 so that 0
            is free; dimensions along which nothing changes take no memory.
        detail: Spread over the elements: 0 where all come from one place.
    """

    __slots__ = ("axes", "detail")

    def __init__(self, axes: Iterable[Tensor]) -> None:
        self.axes = tuple(_folded(axis) for axis in axes)
        self.detail = sum(float(_spread(_compact(axis))) for axis in self.axes)

    @classmethod
    def of_image(cls, image: Tensor) -> Trace:
        """The trace of the image itself, ``(N, C, H, W)``."""
        height, width = image.shape[-2:]
        rows = 1 + (torch.arange(height, dtype=torch.float32) + 0.5) / height
        columns = 1 + (torch.arange(width, dtype=torch.float32) + 0.5) / width
        return cls((rows[:, None].expand(image.shape), columns.expand(image.shape)))

    def mapped(self, act: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Trace | None:
        """The trace of what was computed from the tensor, broadcast to a shape, if it can be."""
        try:
            return Trace([act(axis).expand(shape) for axis in self.axes])
        except RuntimeError:
            return None


class Arrangement(NamedTuple):
    """Which token of a layer lies at which cell of a grid.

    Attributes:
        grid: (h, w).
        order: The token of each cell, row by row.
        channels_first: (N, C, tokens), not (N, tokens, C).
    """

    grid: tuple[int, int]
    order: tuple[int, ...]
    channels_first: bool = False


def _arranged(rows: Tensor, columns: Tensor) -> Arrangement | None:
    """The grid of tokens at these heights and widths, ``(L,)``, if they make one of all the image.

    Args:
        rows: 0 for tokens of no place.
        columns: Likewise.
    """
    placed = (rows > 0).nonzero().flatten().tolist()
    if len(placed) < 2 or not all(_covers(axis[placed]) for axis in (rows, columns)):
        return None
    heights, widths = _levels(rows[placed]), _levels(columns[placed])
    grid = max(heights) + 1, max(widths) + 1
    at = dict(zip(zip(heights, widths, strict=True), placed, strict=True))
    if not len(at) == len(placed) == grid[0] * grid[1]:
        return None
    return Arrangement(grid, tuple(at[r, c] for r in range(grid[0]) for c in range(grid[1])))


def _covers(axis: Tensor) -> bool:
    """Whether places reach from side to side of the image, up to a cell."""
    first, last, count = float(axis.min()), float(axis.max()), max(_levels(axis))
    cell = (last - first) / count if count else 0.5
    return max(first - 1, 2 - last) < 1.01 * cell


def _levels(axis: Tensor) -> list[int]:
    """The rank of each of some numbers, where near ones share it."""
    values, back = axis.unique(return_inverse=True)
    ranks = torch.cat([values.new_zeros(1), (values.diff() > _NEAR).cumsum(0)]).long()
    levels: list[int] = ranks[back].tolist()
    return levels


class PlaceTracer(PassMode):
    """Context of one forward pass in which traces follow what is computed from the image.

    It costs time, and the memory of copies of what is moved about, on the host; so it is for the first
    pass of a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batch = 0
        self._traces: dict[int, tuple[weakref.ref[Tensor], Trace]] = {}
        self._rows: dict[int, set[Arrangement]] = {}

    def start(self, image: Tensor) -> None:
        """Trace what is computed from this image."""
        self._batch = len(image)
        self._put(image, Trace.of_image(image))

    def arrangement(self, feature: Any) -> Arrangement | None:
        """How the tokens of a layer lie, ``(N, L, C)`` or ``(N, C, L)``; None if that is lost."""
        trace = self._of(feature)
        if trace is None or feature.ndim != 3 or len(feature) != self._batch:
            return None
        with torch._C.DisableTorchFunction(), torch.no_grad():
            last = [_mean(axis[0], (1,))[:, 0] for axis in trace.axes]
            first = [_mean(axis[0], (0,))[0] for axis in trace.axes]
            if sum(map(_spread, last)) >= sum(map(_spread, first)):
                return _arranged(*last)
            arrangement = _arranged(*first)
        return arrangement and arrangement._replace(channels_first=True)

    def row(self, count: int) -> Arrangement | None:
        """How so many tokens lie, wherever there were so many; None where that is not one way."""
        arrangements = self._rows.get(count, set())
        return next(iter(arrangements)) if len(arrangements) == 1 else None

    def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run an operation, and follow where it puts the places."""
        kwargs = dict(kwargs)
        output = func(*args, **kwargs)
        if torch.compiler.is_compiling():
            return output
        inputs = [t for t in _tensors((args, kwargs)) if self._of(t) is not None]
        if inputs:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                try:
                    self._follow(func, args, kwargs, inputs, output)
                except Exception:  # whatever was done, the model goes on, and the places are lost
                    for tensor in _tensors(output):
                        self._put(tensor, None)
        return output

    def _of(self, tensor: object) -> Trace | None:
        kept = self._traces.get(id(tensor))
        return kept[1] if kept is not None and kept[0]() is tensor else None

    def _put(self, tensor: Tensor, trace: Trace | None) -> None:
        key = id(tensor)
        if trace is None:
            self._traces.pop(key, None)
        else:  # not on the tensor itself, which may be the caller's, and is not ours to mark
            gone = weakref.ref(tensor, lambda _: self._traces.pop(key, None))
            self._traces[key] = gone, trace

    def _follow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        output: Any,
    ) -> None:
        """Put the trace of an operation's inputs beside its output."""
        name = getattr(func, "__name__", "")
        outputs = [output] if isinstance(output, Tensor) else output
        if name == "__setitem__":
            self._written(*args)
        elif name in _FRESH or not isinstance(outputs, tuple | list) or not outputs:
            return
        elif name in _MOVES:
            self._moved(func, name, args, kwargs, outputs)
        elif isinstance(outputs[0], Tensor) and outputs[0].is_floating_point():
            self._put(outputs[0], self._computed(func, name, args, kwargs, inputs, outputs[0]))

    def _axis(self, value: Any, axis: int) -> Any:
        """Arguments of an operation with traces in the place of tensors."""
        if isinstance(value, Tensor):
            trace = self._of(value)
            if trace is not None:
                return trace.axes[axis]
            if value.is_floating_point():  # of no place
                return torch.zeros((), dtype=torch.float32).expand(value.shape)
            return value.cpu()  # an index
        if isinstance(value, dict):
            return {k: self._axis(v, axis) for k, v in value.items()}
        if isinstance(value, tuple | list) and _tensors(value):
            return type(value)(self._axis(v, axis) for v in value)
        return value

    def _moved(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Sequence[Any],
    ) -> None:
        """An operation that moves elements, done to the trace as well."""
        if name == "pad":  # whatever the border is filled with is of no place
            args, kwargs = args[:2], {k: v for k, v in kwargs.items() if k in ("input", "pad")}
        both: list[Any] = []
        for axis in (0, 1):
            if name in _VIEWS:  # of what lies otherwise in memory here
                both.append(self._axis(args[0], axis).reshape(outputs[0].shape))
            else:
                moved = func(*(self._axis(a, axis) for a in args), **self._axis(kwargs, axis))
                both.append(moved)
        parts = zip(*([b] if isinstance(b, Tensor) else b for b in both), strict=True)
        for output, axes in zip(outputs, parts, strict=True):
            if isinstance(output, Tensor) and output.is_floating_point():
                trace = Trace(axes)
                self._put(output, trace)
                self._saw_tokens(output, trace)

    def _saw_tokens(self, output: Tensor, trace: Trace) -> None:
        if output.ndim == 3 and len(output) == self._batch and trace.detail:
            arrangement = _arranged(*(_mean(axis[0], (1,))[:, 0] for axis in trace.axes))
            if arrangement is not None:
                self._rows.setdefault(output.shape[1], set()).add(arrangement)

    def _written(self, tensor: Tensor, index: Any, value: Any) -> None:
        """``tensor[index] = value``."""
        axes = []
        for axis in (0, 1):
            whole = self._axis(tensor, axis).clone()
            placed = self._axis(value, axis) if isinstance(value, Tensor) else 0.0
            whole[self._axis(index, axis)] = placed
            axes.append(whole)
        self._put(tensor, Trace(axes))

    def _computed(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        output: Tensor,
    ) -> Trace | None:
        """The trace of what an operation computed."""
        shape = output.shape
        first = args[0] if args else next(iter(kwargs.values()))
        trace = self._of(first)
        if name == "conv2d" or name in _WINDOWS:
            if trace is None:
                return None
            if first.shape[-2:] == shape[-2:]:  # a window about each place
                return trace.mapped(lambda s: _mean(s, (-3,)), shape)
            if name == "conv2d":
                return trace.mapped(lambda s: _convolved(s, args, kwargs), shape)
            return trace.mapped(lambda s: _pooled(func, s, args[1:], kwargs), shape)
        if name in _SUMS:
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            keep = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
            if trace is None or dims is None:
                return None
            over = (dims,) if isinstance(dims, int) else tuple(dims)
            return trace.mapped(lambda s: _mean(s, over, keep=keep), shape)
        if name in _PRODUCTS and len(args) > 1:
            rows, columns = self._of(args[0]), self._of(args[1])
            return _finest(
                [
                    rows and rows.mapped(lambda s: _mean(s, (-1,)), shape),
                    columns and columns.mapped(lambda s: _mean(s, (-2,)), shape),
                ]
            )
        if name == "scaled_dot_product_attention":  # a token stays where its query is
            inputs = [first] if trace is not None else []
        return _finest([self._carried(t, shape) for t in inputs])

    def _carried(self, tensor: Tensor, shape: torch.Size) -> Trace | None:
        """From one input of an operation of which nothing is known but its shapes."""
        trace = self._of(tensor)
        if trace is None or tensor.shape == shape:
            return trace
        if tensor.shape[:-1] == shape[:-1] and tensor.shape[-1] > 1:  # a linear layer
            return trace.mapped(lambda s: _mean(s, (-1,)), shape)
        return trace.mapped(lambda s: s, shape)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, tuple | list) else []


def _finest(traces: Iterable[Trace | None]) -> Trace | None:
    """That which tells most places apart: a branch that mixed them joins one that did not."""
    known = [trace for trace in traces if trace is not None]
    return max(known, key=lambda t: round(t.detail, 6), default=None)


def _convolved(axis: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The mean place of each window of `F.conv2d`, ``(n, 1, h, w)``."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation")
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    how = {n: call[n] for n in ("stride", "padding", "dilation") if n in call}
    kernel = axis.new_ones(1, 1, *call["weight"].shape[-2:])
    places = _mean(axis, (-3,))
    seen = F.conv2d((places > 0).to(places.dtype), kernel, **how)
    return F.conv2d(places, kernel, **how) / seen.clamp(min=1)


def _pooled(
    func: Callable[..., Any], axis: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The middle of each window of a pooling, or of a resampling, ``(n, 1, h, w)``."""

    def pool(values: Tensor) -> Tensor:
        pooled = func(values, *args, **{k: v for k, v in kwargs.items() if k != "input"})
        return pooled[0] if isinstance(pooled, tuple) else pooled

    places = _mean(axis, (-3,))
    if "max" in func.__name__:
        nowhere = torch.full_like(places, -9)
        ends = [pool(torch.where(places > 0, side * places, nowhere)) for side in (1, -1)]
        return torch.where(ends[0] > 0, (ends[0] - ends[1]) / 2, 0)
    seen = pool((places > 0).to(places.dtype))
    return pool(places) / torch.where(seen > 0, seen, 1)


def _mean(axis: Tensor, dims: tuple[int, ...], *, keep: bool = True) -> Tensor:
    """The mean over dimensions of what has a place, without making constant ones longer."""
    for dim in dims:
        if axis.shape[dim] > 1 and axis.stride(dim) == 0:
            axis = axis.narrow(dim, 0, 1)
    seen = (axis > 0).sum(dims, keepdim=keep)
    return axis.sum(dims, keepdim=keep) / seen.clamp(min=1)


def _compact(axis: Tensor) -> Tensor:
    """One element of each dimension along which memory does not move."""
    for dim in range(axis.ndim):
        if axis.shape[dim] > 1 and axis.stride(dim) == 0:
            axis = axis.narrow(dim, 0, 1)
    return axis


def _folded(axis: Tensor) -> Tensor:
    """The same values with constant dimensions of no length in memory."""
    shape, axis = axis.shape, _compact(axis)
    for dim in range(axis.ndim):
        if axis.shape[dim] > 1:
            first = axis.narrow(dim, 0, 1)
            if torch.equal(axis, first.expand_as(axis)):
                axis = first
    return axis.expand(shape)


def _spread(axis: Tensor) -> Tensor:
    placed = axis[axis > 0]
    return placed.var(unbiased=False) if placed.numel() else placed.new_zeros(())
