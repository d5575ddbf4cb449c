"""Members of what a layer returns, and the image among what a model is called with."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor, nn

from explainguide.hooks.layers import split_index

__all__ = ["find_image", "find_member", "is_image", "is_map", "with_image", "with_member"]


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


def find_image(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], choice: int | str | None
) -> tuple[int | str | None, str]:
    """Which argument of a call the images are: a position or a name; or None and why not.

    Args:
        model: The model that was called.
        args: Its arguments by position.
        kwargs: Its arguments by name.
        choice: What the caller says; by default the only one that is floating point (N, C, H, W).
    """
    given: dict[int | str, Any] = dict(enumerate(args)) | dict(kwargs.items())
    if choice is not None:
        place = choice
        if isinstance(choice, str) and choice not in given:
            names = list(signature(model.forward).parameters)
            place = names.index(choice) if choice in names else choice
        if place in given and is_image(given[place]):
            return place, ""
        return (
            None,
            f"image_argument={choice!r} is {_described(given[place]) if place in given else 'absent'}",
        )
    candidates = [place for place, value in given.items() if is_image(value)]
    if len(candidates) == 1:
        return candidates[0], ""
    if candidates:
        places = ", ".join(map(repr, candidates))
        return None, f"several of its arguments can be the images: {places}. Say image_argument="
    return None, "it got " + (", ".join(map(_described, given.values())) or "nothing")


def is_image(value: Any) -> bool:
    """Whether an argument can be a batch of images."""
    return is_map(value) and value.ndim == 4


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def with_image(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str, image: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with another image in its place."""
    if isinstance(place, int):
        return (*args[:place], image, *args[place + 1 :]), kwargs
    return args, {**kwargs, place: image}
