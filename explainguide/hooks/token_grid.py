"""What a forward pass itself shows of its tokens: the grids they were made of, and what joined them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor

from explainguide.hooks.places import Arrangement

__all__ = ["Steps", "Tokens", "find_tokens"]

Grid = tuple[int, int]

_SIZED = {"conv2d", "max_pool2d", "_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate"}
_SHAPED = {"flatten", "reshape", "view", "unfold", "unflatten"}
_JOINED = {"cat", "concat", "concatenate"}
_CUT = {"pad", "__getitem__"}
_TURNED = {"transpose", "permute", "swapaxes", "swapdims", "movedim"}
_NOTED = _SIZED | _SHAPED | _JOINED | _CUT | _TURNED | {"__get__"}
_MARGIN = 0.04  # of a side: what padding of a convolution adds is less
_MOST_PREFIX = 5  # a class token and four registers, of which nothing is seen


class _Flat(NamedTuple):
    """Places that became tokens: (N, C, h, w) to (N, C, h*w), or (N, h, w, C) to (N, h*w, C)."""

    grid: Grid
    channels_first: bool
    shape: tuple[int, ...]
    output: weakref.ReferenceType[Tensor]


@dataclass
class Steps:
    """What was seen so far in a pass; one list a kind, in order.

    Attributes:
        images: N of the pass, and the images' size; other tensors' steps are not noted.
        sizes: (h, w) of what convolutions, pooling and resizing return.
        flats: Where places became tokens.
        folds: Shapes of five and more dimensions, such as (N, C, h, 16, w, 16), without N.
        joins: How many tokens each part had of what was put together along the tokens.
        cut: How the images were padded or cropped, in words.
        arrangement: Which token of the layer lies where, if every operation could be followed.
    """

    images: tuple[int, ...] = ()
    sizes: list[Grid] = field(default_factory=list)
    flats: list[_Flat] = field(default_factory=list)
    folds: list[tuple[int, ...]] = field(default_factory=list)
    joins: list[tuple[int, ...]] = field(default_factory=list)
    cut: str = ""
    arrangement: Arrangement | None = None

    def note(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
    ) -> None:
        """Look at one operation of the pass; shapes alone are read."""
        name = getattr(func, "__name__", "")
        if name not in _NOTED or not isinstance(output, Tensor) or not self.images:
            return
        shape, count = tuple(output.shape), self.images[0]
        if not shape or shape[0] % max(count, 1):
            return
        if name in _SIZED:
            if len(shape) == 4:
                self.sizes.append((shape[2], shape[3]))
        elif name in _JOINED:
            parts, dim = args[0] if args else kwargs["tensors"], _dim(args, kwargs)
            if len(shape) == 3 and dim in (1, -2):
                self.joins.append(tuple(int(part.shape[1]) for part in parts if part.shape[1]))
        elif args and isinstance(args[0], Tensor):
            before = tuple(args[0].shape)
            turned = name in _TURNED or getattr(func, "__self__", None) is Tensor.mT
            if turned and shape == (before[0], *before[:0:-1]):
                for i, flat in enumerate(self.flats):
                    if flat.output() is args[0]:  # tokens and channels changed places
                        first = not flat.channels_first
                        self.flats[i] = _Flat(flat.grid, first, shape, weakref.ref(output))
            elif name in _CUT:
                self._note_cut(name, before, shape, args)
            elif len(shape) > 4:
                self.folds.append(shape[1:])
            elif len(shape) == 3 and len(before) == 4 and before[0] == shape[0] == count:
                self._note_flat(name, before, shape, args, kwargs, output)

    def _note_flat(
        self,
        name: str,
        before: tuple[int, ...],
        shape: tuple[int, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> None:
        if name == "unfold":  # F.unfold: (N, C * k * k, L)
            grid = _unfolded(before, args, kwargs)
            if grid[0] * grid[1] == shape[2]:
                self.sizes.append(grid)
                self.flats.append(_Flat(grid, True, shape, weakref.ref(output)))
            return
        if shape[1:] == (before[1], before[2] * before[3]):
            self.flats.append(_Flat((before[2], before[3]), True, shape, weakref.ref(output)))
        if shape[1:] == (before[1] * before[2], before[3]):
            self.flats.append(_Flat((before[1], before[2]), False, shape, weakref.ref(output)))

    def _note_cut(
        self, name: str, before: tuple[int, ...], shape: tuple[int, ...], args: tuple[Any, ...]
    ) -> None:
        """Padding and cropping of the images themselves; strided slices keep all of the image."""
        if before != self.images or len(shape) != 4 or shape[1] != before[1]:
            return
        slices = args[1] if len(args) > 1 and isinstance(args[1], tuple) else ()
        if name == "__getitem__" and any(
            isinstance(s, slice) and s.step not in (None, 1) for s in slices
        ):
            return
        if any(abs(a - b) > _MARGIN * b for a, b in zip(shape[2:], before[2:], strict=True)):
            done = "pads" if name == "pad" else "crops"
            self.cut = f"{done} its images from {_by(before[2:])} to {_by(shape[2:])}"

    @property
    def shown(self) -> bool:
        """Whether the tokens were seen being made, so that no grid need be guessed."""
        return any(flat.grid in self.sizes for flat in self.flats)

    def copy(self) -> Steps:
        """As seen until now."""
        return Steps(
            self.images, self.sizes[:], self.flats[:], self.folds[:], self.joins[:], self.cut
        )


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _dim(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))


def _unfolded(before: tuple[int, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Grid:
    names = ("kernel_size", "dilation", "padding", "stride")
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    sides = []
    for axis in (0, 1):
        kernel, dilation, padding, stride = (
            value if isinstance(value, int) else value[axis]
            for value in (given.get(n, d) for n, d in zip(names, (1, 1, 0, 1), strict=True))
        )
        sides.append((before[2 + axis] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    return sides[0], sides[1]


class Tokens(NamedTuple):
    """One way to read a layer's three dimensions.

    Attributes:
        channels_first: (N, C, tokens), not (N, tokens, C).
        grid: (h, w).
        others: Positions of tokens that belong to no place.
        assumed: What is taken for granted, in words; empty where all of it was seen or said.
    """

    channels_first: bool
    grid: Grid
    others: tuple[int, ...] = ()
    assumed: str = ""


def find_tokens(
    feature: Tensor,
    steps: Steps | None,
    *,
    prefix: int | tuple[int, ...] | None,
    certain: bool,
    orders: Sequence[bool],
) -> list[Tokens]:
    """The ways in which a layer's output can be read, from what the pass has shown.

    Args:
        feature: ``(N, tokens, C)`` or ``(N, C, tokens)``.
        steps: What was seen until it was computed.
        prefix: How many tokens belong to no place, or their positions; None where nobody says so.
        certain: Whether that is the user's word, from which nothing may differ.
        orders: Which of channels first (True) and tokens first (False) may be tried. Channels first is
            tried together with the other only where something of that very shape was flattened so.

    Returns:
        One a possible order of the dimensions; none where the pass has shown nothing that fits.
    """
    if steps is None:
        return []
    for flat in reversed(steps.flats):
        if flat.output() is feature and flat.channels_first in orders:  # it was flattened just now
            return [Tokens(flat.channels_first, flat.grid)]
    readings = []
    shape = tuple(feature.shape)
    for channels_first in orders:
        alike = [f for f in steps.flats if f.channels_first and f.shape == shape]
        if channels_first and len(orders) > 1 and not any(f.grid in steps.sizes for f in alike):
            continue
        count = int(feature.shape[2 if channels_first else 1])
        reading = _fit(count, steps, prefix, certain)
        if reading is not None:
            readings.append(reading._replace(channels_first=channels_first))
    return readings


def _fit(
    count: int, steps: Steps, prefix: int | tuple[int, ...] | None, certain: bool
) -> Tokens | None:
    """A grid that was seen and that, with the tokens that belong to no place, makes `count`."""
    number = len(prefix) if isinstance(prefix, tuple) else prefix
    for grid in _grids(steps, count):
        extra = count - grid[0] * grid[1]
        if number is not None and extra == number:
            if isinstance(prefix, tuple):
                return Tokens(False, grid, prefix)
            # The model's own count; where they stand is seen, or else in front, as libraries do.
            joined = None if certain else _joined(count, extra, steps)
            return Tokens(False, grid, joined or tuple(range(extra)))
        if extra == 0 and not certain:
            return Tokens(False, grid)
    if certain or number is not None:
        return None
    for grid in _grids(steps, count, seen_alone=True):
        extra = count - grid[0] * grid[1]
        joined = _joined(count, extra, steps)
        if extra > 0 and joined is not None:
            return Tokens(False, grid, joined)
        if 0 < extra <= min(_MOST_PREFIX, count // 2):
            first, belong, do = f"the first {extra} tokens", "belong", "do"
            if extra == 1:
                first, belong, do = "the first token", "belongs", "does"
            return Tokens(
                False,
                grid,
                tuple(range(extra)),
                f"{first} of {count} {belong} to no place. Say prefix_tokens= (a number or "
                f"positions) where {'they' if extra > 1 else 'it'} {do}",
            )
    return None


def _grids(steps: Steps, count: int, *, seen_alone: bool = False) -> Iterator[Grid]:
    """Grids of at most `count` places, the latest and nearest first."""
    seen = list(dict.fromkeys(reversed(steps.sizes)))
    if seen_alone:
        yield from sorted((g for g in seen if g[0] * g[1] < count), key=lambda g: -g[0] * g[1])
        # And those of a cut into patches by reshaping, (N, C, h, 16, w, 16).
        seen = []
    else:
        # Attentions flatten (N, tokens, heads, channels), which looks like (N, C, h, w), and (N, 1,
        # tokens, channels), which looks like one row.
        flats = (flat.grid for flat in reversed(steps.flats) if not flat.channels_first)
        seen += [grid for grid in flats if min(grid) > 1]
        yield from seen
    for dims in reversed(steps.folds):
        yield from _pairs(dims, count)


def _pairs(dims: tuple[int, ...], count: int) -> Iterator[Grid]:
    """(h, w) among the dimensions of a tensor, where one pair alone makes that many places."""
    pairs = {
        (a, b)
        for a, b in combinations(dims, 2)
        if min(a, b) > 1 and 0 <= count - a * b <= min(2, count // 2)
    }
    if len(pairs) == 1:
        yield from pairs


def _joined(count: int, extra: int, steps: Steps) -> tuple[int, ...] | None:
    """Positions of the tokens that were put beside the places, where a join shows them."""
    if extra < 1:
        return None
    for parts in reversed(steps.joins):
        if sum(parts) != count:
            continue
        chosen = [
            picked
            for size in range(1, len(parts))
            for picked in combinations(range(len(parts)), size)
            if sum(parts[i] for i in picked) == extra
        ]
        if len(chosen) == 1:
            starts = [sum(parts[:i]) for i in range(len(parts))]
            return tuple(p for i in chosen[0] for p in range(starts[i], starts[i] + parts[i]))
    return None
