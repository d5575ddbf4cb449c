"""The table of layouts: how each kind of activation is read as (N, C, h, w), and what it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from explainguide.errors import Table, check_free, operation
from explainguide.host import send

__all__ = ["KINDS", "Layout", "LayoutKind", "kind_called", "layout_kind", "places_alone", "to_nchw"]


@dataclass(frozen=True)
class Layout:
    """How to read an activation as (N, C, h, w).

    Attributes:
        kind: A key of `KINDS`: "NCHW", "NHWC", "tokens" (N, prefix + h*w, C) or "channels"
            (N, C, prefix + h*w).
        grid: (h, w).
        prefix: Number of tokens that belong to no place (class token, registers).
        others: Their positions, where they are not the first ones.
        order: The token of each cell, row by row, where the tokens lie otherwise.
        assumed: What is taken for granted, in words; empty where all of it is known.
        reroll: Puts the tokens of a model that keeps them in another order (Hiera) in their places,
            (N, h*w, C) to (N, h, w, C).
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0
    others: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    assumed: str = field(default="", compare=False)
    reroll: Callable[[Tensor], Tensor] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return KINDS[self.kind].show(self)


@dataclass(frozen=True)
class LayoutKind:
    """What must be known of a kind of layout.

    Attributes:
        called: The argument `layout` that asks for it.
        ndim: Number of dimensions, images included.
        read: An activation to (..., C, h, w), a view; leading dimensions stay.
        grid: Which dimensions are h and w; None for tokens, whose grid no shape tells.
        show: A layout of this kind in words.
    """

    called: str
    ndim: int
    read: Callable[[Tensor, Layout], Tensor]
    grid: tuple[int, int] | None
    show: Callable[[Layout], str]

    def of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(h, w) of an activation, for kinds whose shape tells it."""
        assert self.grid is not None
        return shape[self.grid[0]], shape[self.grid[1]]


KINDS: Table[str, LayoutKind] = Table("KINDS", origin=lambda entry: entry.read)
_Read = Callable[[Tensor, Layout], Tensor]


def _in_words(layout: Layout) -> str:
    return f"{layout.kind} {layout.grid[0]} x {layout.grid[1]}"


def _tokens_in_words(layout: Layout) -> str:
    place = f"{layout.grid[0]} x {layout.grid[1]} tokens"
    if layout.others:
        return f"{place}, {layout.prefix} among them"
    return f"{layout.prefix} + {place}" if layout.prefix else place


def layout_kind(
    kind: str,
    *,
    ndim: int,
    grid: tuple[int, int] | None = None,
    called: str | None = None,
    show: Callable[[Layout], str] = _in_words,
) -> Callable[[_Read], _Read]:
    """Enter a kind of layout in the table: put it above the function that reads it.

    It can be asked for by ``layout=`` from then on, tokens with ``grid=`` beside it. What is found
    without being asked for is a matter of `infer_layout`, which tells the package's own kinds apart.

    Args:
        kind: Its name in the table.
        ndim: As `LayoutKind`, as are the others.
        grid: Two dimensions, or None for tokens.
        called: The name of the kind, where it has no other.
        show: Name and grid, if nothing else is given.

    Raises:
        OptionError: Where a function is decorated with a name that another kind has.

    Example:
        >>> @layout_kind("NhCw", ndim=4, grid=(1, 3))
        ... def read(feature: Tensor, layout: Layout) -> Tensor:
        ...     return feature.transpose(-3, -2)
        >>> to_nchw(torch.zeros(2, 5, 8, 6), Layout("NhCw", (5, 6))).shape
        torch.Size([2, 8, 5, 6])
        >>> del KINDS["NhCw"]
    """

    @operation("layout_kind")
    def enter(read: _Read) -> _Read:
        for other, entry in KINDS.items():
            if other != kind and entry.called == (called or kind):
                check_free(
                    called or kind,
                    read,
                    taken_by=entry.read,
                    table="KINDS",
                    keys=[each.called for each in KINDS.values()],
                )
        KINDS[kind] = LayoutKind(called or kind, ndim, read, grid, show)
        return read

    return enter


def kind_called(name: str | None) -> str:
    """The key of what ``layout=`` asks for; empty where it asks for nothing."""
    return next((kind for kind, entry in KINDS.items() if entry.called == name), "")


def to_nchw(feature: Tensor, layout: Layout) -> Tensor:
    """A view of an activation as (..., C, h, w); leading dimensions stay.

    Example:
        >>> import torch
        >>> tokens = torch.arange(10.0).reshape(1, 5, 2)  # a class token and a 2 x 2 grid
        >>> to_nchw(tokens, Layout("tokens", (2, 2), prefix=1))[0, 0]
        tensor([[2., 4.],
                [6., 8.]])
    """
    return KINDS[layout.kind].read(feature, layout)


@layout_kind("NCHW", ndim=4, grid=(2, 3))
def _channels_second(feature: Tensor, layout: Layout) -> Tensor:
    return feature


@layout_kind("NHWC", ndim=4, grid=(1, 2))
def _channels_last(feature: Tensor, layout: Layout) -> Tensor:
    return rearrange(feature, "... h w c -> ... c h w")


@layout_kind("tokens", called="NLC", ndim=3, show=_tokens_in_words)
def _tokens(feature: Tensor, layout: Layout) -> Tensor:
    patches = places_alone(feature, layout)
    if layout.reroll is not None:
        placed = layout.reroll(patches.flatten(0, -3)).unflatten(0, patches.shape[:-2])
        return rearrange(placed, "... h w c -> ... c h w")
    return rearrange(patches, "... (h w) c -> ... c h w", h=layout.grid[0])


@layout_kind(
    "channels",
    called="NCL",
    ndim=3,
    show=lambda layout: f"{_tokens_in_words(layout)}, channels first",
)
def _channels_before_tokens(feature: Tensor, layout: Layout) -> Tensor:
    return _tokens(feature.mT, layout)


def places_alone(feature: Tensor, layout: Layout, *, dim: int = -2) -> Tensor:
    """The tokens that belong to places, row by row."""
    count = layout.grid[0] * layout.grid[1]
    if layout.order:
        return feature.index_select(dim, send(torch.tensor(layout.order), feature.device))
    if not layout.others:
        return feature.narrow(dim, layout.prefix, count)
    kept = [i for i in range(count + layout.prefix) if i not in layout.others]
    return feature.index_select(dim, send(torch.tensor(kept), feature.device))
