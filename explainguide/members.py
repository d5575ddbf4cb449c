"""Members of what a layer returns, and the image among what a model is called with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from explainguide.layers import split_index

__all__ = ["find_member", "is_map", "with_image", "with_member"]


def is_map(value: Any) -> bool:
    """Whether something can have an attribution."""
    return isinstance(value, Tensor) and value.is_floating_point()


def find_member(name: str, output: Any) -> tuple[int | None, Any]:
    """Which member of a layer's output is meant, and itself: the one named, or the only one.

    Several unnamed ones stay together; `infer_layout` asks for a name then.
    """
    index = split_index(name)[1]
    if not isinstance(output, tuple | list):
        return None, output
    maps = [i for i, member in enumerate(output) if is_map(member) and member.ndim > 2]
    if index is None and len(maps) == 1:
        index = maps[0]
    if index is None or index >= len(output):
        return None, output
    return index, output[index]


def with_member(output: Any, place: int | None, value: Any) -> Any:
    """A layer's output with one member exchanged; the list or tuple that was returned stays."""
    if place is None:
        return value
    members = [value if i == place else member for i, member in enumerate(output)]
    if hasattr(output, "_fields"):
        return type(output)(*members)
    return members if isinstance(output, list) else tuple(members)


def with_image(
    args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with another image, which is the first of them."""
    if args:
        return (image, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): image}
