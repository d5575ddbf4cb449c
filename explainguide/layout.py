"""Activations of any family as (N, C, h, w)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from explainguide.errors import LayerError
from explainguide.layers import said_of, split_index
from explainguide.reading import AS_FOUND, Reading

__all__ = ["Layout", "infer_layout", "to_nchw"]


@dataclass(frozen=True)
class Layout:
    """How to read an activation as (N, C, h, w).

    Attributes:
        kind: "NCHW", "NHWC" or "tokens" (N, prefix + h*w, C).
        grid: (h, w).
        prefix: Number of tokens in front that belong to no place (class token, registers).
        reroll: Puts the tokens of a model that keeps them in another order (Hiera) in their places,
            (N, h*w, C) to (N, h, w, C).
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0
    reroll: Callable[[Tensor], Tensor] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        place = f"{self.grid[0]} x {self.grid[1]}"
        if self.kind == "tokens":
            return f"{self.prefix} + {place} tokens" if self.prefix else f"{place} tokens"
        return f"{self.kind} {place}"


def to_nchw(feature: Tensor, layout: Layout) -> Tensor:
    """A view of an activation as (..., C, h, w); leading dimensions stay.

    Example:
        >>> import torch
        >>> tokens = torch.arange(10.0).reshape(1, 5, 2)  # a class token and a 2 x 2 grid
        >>> to_nchw(tokens, Layout("tokens", (2, 2), prefix=1))[0, 0]
        tensor([[2., 4.],
                [6., 8.]])
    """
    if layout.kind == "NCHW":
        return feature
    if layout.kind == "NHWC":
        return rearrange(feature, "... h w c -> ... c h w")
    patches = feature[..., layout.prefix :, :]
    if layout.reroll is not None:
        placed = layout.reroll(patches.flatten(0, -3)).unflatten(0, patches.shape[:-2])
        return rearrange(placed, "... h w c -> ... c h w")
    return rearrange(patches, "... (h w) c -> ... c h w", h=layout.grid[0])


def infer_layout(
    name: str,
    feature: object,
    image_size: tuple[int, int],
    *,
    model: nn.Module,
    module: nn.Module | None,
    batch: int,
    reading: Reading = AS_FOUND,
    caller: str,
) -> Layout:
    """Read the layout of a layer's output from its shape and from what the model says of itself.

    Args:
        name: The layer, for the error.
        feature: What the layer returned.
        image_size: (H, W) of the input.
        model: The whole model: its `num_prefix_tokens`, class token and `output_fmt` are read.
        module: The layer's module; None for the input.
        batch: Number of images.
        reading: What the user has said of the model.
        caller: The public callable that the error names.

    Raises:
        LayerError: If the output has no spatial extent, or can be read in two ways.
    """
    if not isinstance(feature, Tensor):
        raise LayerError(
            f"{caller}: layer {name!r} returns a {type(feature).__name__}, not a tensor. "
            f"{_members(name, feature)} One tensor with a height and a width is needed."
        )
    shape = tuple(feature.shape)
    if shape[0] != batch:
        raise LayerError(
            f"{caller}: the output of layer {name!r} has shape {shape} for {batch} images: it works on "
            "windows or parts of an image. Choose the block around it. The first dimension must be the "
            "image."
        )
    readings: list[Layout] = []
    if feature.ndim == 3:
        readings = _token_readings(name, shape, image_size, model)
    elif feature.ndim == 4:
        readings = _image_readings(name, shape, image_size, model, module, reading.layout)
    if not readings or readings[0].grid == (1, 1):
        raise LayerError(
            f"{caller}: the output of layer {name!r} has shape {shape}, which has no spatial extent "
            f"for an image of {image_size[0]} x {image_size[1]}. Choose an earlier layer. "
            "(N, C, h, w), (N, h, w, C) and (N, tokens, C) can be guided."
        )
    if len(readings) > 1:
        kinds = " or ".join(f"layout={r.kind!r}" for r in readings)
        raise LayerError(
            f"{caller}: the output of layer {name!r} has shape {shape}, which can be read as "
            f"{' or '.join(map(str, readings))}. Say {kinds}. The reading must be certain."
        )
    return readings[0]


def _members(name: str, feature: object) -> str:
    """What to do with a layer that returns several things."""
    if isinstance(feature, tuple | list):
        found = [
            f"layer='{split_index(name)[0]}[{i}]' {tuple(f.shape)}"
            for i, f in enumerate(feature)
            if isinstance(f, Tensor) and f.ndim > 2
        ]
        if found:
            return f"Choose one of its members: {', '.join(found)}."
    return "Choose a layer before or after it."


def _token_readings(
    name: str, shape: tuple[int, ...], image_size: tuple[int, int], model: nn.Module
) -> list[Layout]:
    """The grid of the patch embedding, or grids h*w = tokens - prefix of cells that are square."""
    order: Any = said_of(model, name, "reroll")
    for block, (_, size) in getattr(order, "schedule", {}).items():
        if math.prod(size) == shape[1]:
            return [Layout("tokens", (size[0], size[1]), reroll=partial(order, block_idx=block))]
    prefix = said_of(model, name, "num_prefix_tokens")
    if prefix is None:
        prefix = 1 if said_of(model, name, "class_token") is not None else None
    # What the model says of its prefix comes first; CaiT's class token joins only in later blocks.
    candidates = (0, 1) if prefix is None else (int(prefix), 0)
    embedding: Any = said_of(model, name, "patch_embed")
    if hasattr(embedding, "dynamic_feat_size"):
        height, width = embedding.dynamic_feat_size(image_size)
        for candidate in candidates:
            if candidate + height * width == shape[1]:
                return [Layout("tokens", (height, width), candidate)]
    for candidate in candidates:
        patches = shape[1] - candidate
        grids = [(h, patches // h) for h in range(1, patches + 1) if patches % h == 0]
        readings = [
            Layout("tokens", grid, candidate) for grid in grids if _same_stride(grid, image_size)
        ]
        if readings:
            return readings
    return []


def _image_readings(
    name: str,
    shape: tuple[int, ...],
    image_size: tuple[int, int],
    model: nn.Module,
    module: nn.Module | None,
    choice: str | None,
) -> list[Layout]:
    first = Layout("NCHW", (shape[2], shape[3]))
    last = Layout("NHWC", (shape[1], shape[2]))
    if choice is not None:
        return [first if choice == "NCHW" else last]
    if module is None:  # the image itself
        return [first]
    channels_last = said_of(model, name, "output_fmt") == "NHWC"
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    on_last = {m.normalized_shape for m in module.modules() if isinstance(m, nn.LayerNorm)}
    on_last |= {(size,) for m in linear for size in (m.in_features, m.out_features)}
    readings = [r for r in (first, last) if _same_stride(r.grid, image_size)]
    if not channels_last and (shape[3],) not in on_last and readings != [last]:
        # Nothing here works on the last dimension: these are convolutions, and channels are second.
        # Those without padding lose as many cells of the height as of the width, so that the grid of
        # a long image is a little longer than the image. (A map of attention is far from its shape.)
        slack = 0.25 * (1 - min(image_size) / max(image_size))
        return [first] if _same_stride(first.grid, image_size, slack=slack) else []
    return readings


def _same_stride(grid: tuple[int, int], image_size: tuple[int, int], *, slack: float = 0.0) -> bool:
    """Whether a grid covers the image with cells that are square up to rounding."""
    (h, w), (height, width) = grid, image_size
    if h > height or w > width:
        return False
    allowed = 1 + slack * max(h, w)
    return abs(h * width / height - w) < allowed and abs(w * height / width - h) < allowed
