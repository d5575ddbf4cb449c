"""Which layout an activation of any family has, so that it can be read as (N, C, h, w)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from explainguide.errors import LayerError, first_line
from explainguide.hooks.layers import nearest_attribute, split_index
from explainguide.hooks.layout_table import KINDS, Layout, kind_called, places_alone, to_nchw
from explainguide.hooks.places import Arrangement
from explainguide.hooks.reading import AS_FOUND, Reading
from explainguide.hooks.token_grid import Steps, Tokens, find_tokens

__all__ = ["Layout", "infer_layout", "places_alone", "to_nchw"]


def infer_layout(
    name: str,
    feature: object,
    image_size: tuple[int, int],
    *,
    model: nn.Module,
    module: nn.Module | None,
    batch: int,
    reading: Reading = AS_FOUND,
    steps: Steps | None = None,
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
        steps: What the forward pass has shown until the layer was read.

    Raises:
        LayerError: If the output has no spatial extent, or can be read in two ways.
    """
    if not isinstance(feature, Tensor):
        raise LayerError(
            f"layer {name!r} returns a {type(feature).__name__}, not a tensor. "
            f"{_members(name, feature)} One tensor with a height and a width is needed."
        )
    shape = tuple(feature.shape)
    if shape[0] != batch:
        raise LayerError(
            f"the output of layer {name!r} has shape {shape} for {batch} images: it works on "
            "windows or parts of an image. Choose the block around it. The first dimension must be the "
            "image."
        )
    readings: list[Layout] = []
    asked = kind_called(reading.layout)
    image = module is None and feature.ndim == 4
    fits = asked not in ("", "tokens", "channels") and KINDS[asked].ndim == feature.ndim
    if fits and not image:  # an image is (N, C, H, W), whatever its layers are
        readings = [_as_asked(name, feature, asked, reading, image_size)]
    elif feature.ndim == 3:
        readings = _token_readings(name, feature, image_size, model, module, reading, steps)
    elif feature.ndim == 4:
        readings = _image_readings(name, shape, image_size, model, module, reading)
    if not readings or readings[0].grid == (1, 1):
        raise LayerError(
            f"the output of layer {name!r} has shape {shape}, which has no spatial extent "
            f"for an image of {image_size[0]} x {image_size[1]}. Choose an earlier layer. "
            "(N, C, h, w), (N, h, w, C) and (N, tokens, C) can be guided; where tokens are dropped, "
            "merged or added, say grid=(h, w) and prefix_tokens=."
        )
    if len(readings) > 1 and feature.ndim == 3 and readings[0].kind == readings[1].kind:
        raise LayerError(
            f"the output of layer {name!r} has shape {shape}, which can be read as "
            f"{' or '.join(map(str, readings))}. Say grid=(h, w). The reading must be certain."
        )
    if len(readings) > 1:
        kinds = " or ".join(f"layout={KINDS[r.kind].called!r}" for r in readings)
        raise LayerError(
            f"the output of layer {name!r} has shape {shape}, which can be read as "
            f"{' or '.join(map(str, readings))}. Say {kinds}. The reading must be certain."
        )
    return readings[0]


def _as_asked(
    name: str, feature: Tensor, kind: str, reading: Reading, image_size: tuple[int, int]
) -> Layout:
    """A kind that is asked for: its shape tells the grid, or, of tokens, the user does."""
    entry, prefix = KINDS[kind], reading.prefix_tokens
    if entry.grid is not None:
        layout = Layout(kind, entry.of(tuple(feature.shape)))
        even = _same_stride(layout.grid, image_size, slack=_slack(image_size))
        if feature.ndim == 4 and not even:
            raise LayerError(
                f"the output of layer {name!r} has shape {tuple(feature.shape)}, of which "
                f"layout={entry.called!r} makes {layout.grid[0]} x {layout.grid[1]} places for an "
                f"image of {image_size[0]} x {image_size[1]}. Leave layout= out, or guide a layer "
                "that has this layout. Places that cover the image evenly are allowed."
            )
        return layout
    if reading.grid is None:
        raise LayerError(
            f"layer {name!r} is read as {entry.called!r}, tokens whose grid no shape tells. Say "
            "grid=(h, w), and prefix_tokens= where some belong to no place. Two positive whole numbers "
            "are allowed."
        )
    others = prefix if isinstance(prefix, tuple) else tuple(range(prefix or 0))
    front = others == tuple(range(len(others)))
    layout = Layout(kind, reading.grid, len(others), () if front else others)
    read: object
    try:
        read = tuple(to_nchw(feature.detach(), layout).shape)
    except Exception as error:  # whatever a user's function finds that does not fit
        read = first_line(error)
    if not isinstance(read, tuple) or (read[0], read[2:]) != (len(feature), reading.grid):
        raise LayerError(
            f"the output of layer {name!r} has shape {tuple(feature.shape)}, which {entry.called!r} "
            f"with grid={reading.grid} and {len(others)} prefix tokens reads as {read}. Count its "
            "tokens. A view (N, C, h, w) with that grid is allowed."
        )
    return layout


def _members(name: str, feature: object) -> str:
    """What to do with a layer that returns several things."""
    if isinstance(feature, tuple | list):
        members = [
            f"layer='{split_index(name)[0]}[{i}]' {tuple(f.shape)}"
            for i, f in enumerate(feature)
            if isinstance(f, Tensor) and f.ndim > 2
        ]
        if members:
            return f"Choose one of its members: {', '.join(members)}."
    return "Choose a layer before or after it."


def _token_readings(
    name: str,
    feature: Tensor,
    image_size: tuple[int, int],
    model: nn.Module,
    module: nn.Module | None,
    reading: Reading,
    steps: Steps | None,
) -> list[Layout]:
    """What the user, the model's library or the pass says; else a guess, which is told."""
    # Attention weights, for which there is no module, come as (N, keys, queries).
    orders = {"tokens": [False], "channels": [True]}.get(kind_called(reading.layout), [False, True])
    orders = orders if module is not None else [False]
    if reading.grid is not None:
        return [_as_said(name, feature, reading, orders)]
    if steps is not None and steps.arrangement is not None and reading.prefix_tokens is None:
        return [_as_traced(feature, steps.arrangement, steps)]
    shape = tuple(feature.shape)
    if shape[2] == 1 and module is not None:  # what pooling over tokens leaves: (N, C, 1)
        return []
    order: Any = nearest_attribute(model, name, "reroll")
    owner = getattr(order, "__self__", order)  # a module in timm, a method in Transformers
    for block, (_, size) in getattr(owner, "schedule", {}).items():
        if math.prod(size) == shape[1]:
            return [Layout("tokens", (size[0], size[1]), reroll=partial(_reroll, order, block))]
    certain = reading.prefix_tokens is not None
    prefix = reading.prefix_tokens if certain else _said_prefix(model, name)
    # The model's library knows its own grid, of what it makes of images of this size.
    embedding: Any = nearest_attribute(model, name, "patch_embed")
    if (
        hasattr(embedding, "dynamic_feat_size")
        and not isinstance(prefix, tuple)
        and False in orders
    ):
        height, width = embedding.dynamic_feat_size(image_size)
        for candidate in (0, 1) if prefix is None else (prefix,) if certain else (prefix, 0):
            if candidate + height * width == shape[1]:
                return [Layout("tokens", (height, width), candidate)]
    readings = find_tokens(feature, steps, prefix=prefix, certain=certain, orders=orders)
    if not readings and False in orders and (steps is None or not steps.shown):
        readings = _guessed(shape[1], image_size, prefix, certain)
    return [_as_layout(tokens, steps) for tokens in readings]


def _reroll(order: Callable[..., Tensor], block: int, tokens: Tensor) -> Tensor:
    return order(tokens, block)


def _as_traced(feature: Tensor, arrangement: Arrangement, steps: Steps) -> Layout:
    """What was followed through the pass, operation by operation."""
    count = int(feature.shape[2 if arrangement.channels_first else 1])
    others = tuple(sorted(set(range(count)) - set(arrangement.order)))
    layout = _as_layout(Tokens(arrangement.channels_first, arrangement.grid, others), steps)
    in_rows = tuple(i for i in range(count) if i not in others) == arrangement.order
    return layout if in_rows else replace(layout, order=arrangement.order)


def _as_layout(tokens: Tokens, steps: Steps | None) -> Layout:
    front = tokens.others == tuple(range(len(tokens.others)))
    assumed = tokens.assumed
    if not assumed and steps is not None and steps.cut:
        assumed = (
            f"its places are spread over the images as given, though the model {steps.cut}. Pad or "
            "crop them before the model"
        )
    return Layout(
        "channels" if tokens.channels_first else "tokens",
        tokens.grid,
        len(tokens.others),
        () if front else tokens.others,
        assumed=assumed,
    )


def _said_prefix(model: nn.Module, name: str) -> int | None:
    """How many tokens belong to no place, where the model says so."""
    count = nearest_attribute(model, name, "num_prefix_tokens")
    if count is not None:
        return int(count)
    return 1 if nearest_attribute(model, name, "class_token") is not None else None


def _as_said(name: str, feature: Tensor, reading: Reading, orders: list[bool]) -> Layout:
    """The user's grid, and the tokens that are left."""
    assert reading.grid is not None
    places, prefix = math.prod(reading.grid), reading.prefix_tokens
    number = len(prefix) if isinstance(prefix, tuple) else prefix
    for channels_first in orders:
        extra = int(feature.shape[2 if channels_first else 1]) - places
        if extra >= 0 and number in (None, extra):
            others = prefix if isinstance(prefix, tuple) else tuple(range(extra))
            if others and others[-1] >= places + extra:
                break
            return _as_layout(Tokens(channels_first, reading.grid, others), None)
    raise LayerError(
        f"grid is {reading.grid} and prefix_tokens {prefix!r}, which do not make the output of "
        f"layer {name!r}, {tuple(feature.shape)}. Count its tokens. h * w and the others make them all."
    )


def _guessed(
    count: int, image_size: tuple[int, int], prefix: int | tuple[int, ...] | None, certain: bool
) -> list[Tokens]:
    """Grids of cells that are square, for what the pass has not shown; told where it is used."""
    if isinstance(prefix, tuple):
        candidates = [(len(prefix), prefix)]
    else:
        counts = (0, 1) if prefix is None else (prefix,) if certain else (prefix, 0)
        candidates = [(n, tuple(range(n))) for n in counts]
    for number, others in candidates:
        patches = count - number
        grids = [(h, patches // h) for h in range(1, patches + 1) if patches % h == 0]
        square = [grid for grid in grids if _same_stride(grid, image_size)]
        if square:
            told = "{} of {} tokens lie on a grid of {} x {}. Say grid=(h, w) where they do not"
            return [Tokens(False, g, others, told.format(patches, count, *g)) for g in square]
    return []


def _image_readings(
    name: str,
    shape: tuple[int, ...],
    image_size: tuple[int, int],
    model: nn.Module,
    module: nn.Module | None,
    reading: Reading,
) -> list[Layout]:
    first, last = (Layout(kind, KINDS[kind].of(shape)) for kind in ("NCHW", "NHWC"))
    if module is None:  # the image itself
        return [first]
    channels_last = nearest_attribute(model, name, "output_fmt") == "NHWC"
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    on_last = {m.normalized_shape for m in module.modules() if isinstance(m, nn.LayerNorm)}
    on_last |= {(size,) for m in linear for size in (m.in_features, m.out_features)}
    readings = [r for r in (first, last) if _same_stride(r.grid, image_size)]
    if not channels_last and (shape[3],) not in on_last and readings != [last]:
        # Nothing here works on the last dimension: these are convolutions, and channels are second.
        # Those without padding lose as many cells of the height as of the width, so that the grid of
        # a long image is a little longer than the image. (A map of attention is far from its shape.)
        return [first] if _same_stride(first.grid, image_size, slack=_slack(image_size)) else []
    return readings


def _slack(image_size: tuple[int, int]) -> float:
    """How much longer than a long image a grid may be, for `_same_stride`."""
    return 0.25 * (1 - min(image_size) / max(image_size))


def _same_stride(grid: tuple[int, int], image_size: tuple[int, int], *, slack: float = 0.0) -> bool:
    """Whether a grid covers the image with cells that are square up to rounding."""
    (h, w), (height, width) = grid, image_size
    if h > height or w > width:
        return False
    allowed = 1 + slack * max(h, w)
    return abs(h * width / height - w) < allowed and abs(w * height / width - h) < allowed
