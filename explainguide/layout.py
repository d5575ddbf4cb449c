"""Activations of any family as (N, C, h, w), and the layer that is chosen when none is named."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from explainguide.errors import LayerError
from explainguide.layers import INPUT
from explainguide.tap import Tap

__all__ = ["LayerInfo", "Layout", "automatic_layer", "infer_layout", "probe_layers", "to_nchw"]


@dataclass(frozen=True)
class Layout:
    """How to read an activation as (N, C, h, w).

    Attributes:
        kind: "NCHW", "NHWC" or "tokens" (N, prefix + h*w, C).
        grid: (h, w).
        prefix: Number of tokens in front that belong to no place (class token, registers).
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    def __str__(self) -> str:
        place = f"{self.grid[0]} x {self.grid[1]}"
        if self.kind == "tokens":
            return f"{self.prefix} + {place} tokens" if self.prefix else f"{place} tokens"
        return f"{self.kind} {place}"


def to_nchw(feature: Tensor, layout: Layout) -> Tensor:
    """A view of an activation as (..., C, h, w); leading dimensions stay.

    Example:
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
    return rearrange(patches, "... (h w) c -> ... c h w", h=layout.grid[0])


def infer_layout(
    name: str,
    feature: object,
    image_size: tuple[int, int],
    *,
    model: nn.Module,
    module: nn.Module | None,
    caller: str,
) -> Layout:
    """Read the layout of a layer's output from its shape and from what the model says of itself.

    Args:
        name: The layer, for the error.
        feature: What the layer returned.
        image_size: (H, W) of the input.
        model: The whole model: its `num_prefix_tokens`, class token and `output_fmt` are read.
        module: The layer's module; None for the input.
        caller: The public callable that the error names.

    Raises:
        LayerError: If the output has no spatial extent, or can be read in two ways.
    """
    if not isinstance(feature, Tensor):
        raise LayerError(
            f"{caller}: layer {name!r} returns a {type(feature).__name__}, not a tensor. "
            "Choose a layer before or after it. One tensor with a height and a width is needed."
        )
    shape = tuple(feature.shape)
    if feature.ndim == 3:
        readings = _token_readings(shape, image_size, model)
    elif feature.ndim == 4:
        readings = _image_readings(shape, image_size, model, module)
    else:
        readings = []
    if not readings or readings[0].grid == (1, 1):
        raise LayerError(
            f"{caller}: the output of layer {name!r} has shape {shape}, which has no spatial extent "
            f"for an image of {image_size[0]} x {image_size[1]}. Choose an earlier layer. "
            "(N, C, h, w), (N, h, w, C) and (N, tokens, C) can be guided."
        )
    if len(readings) > 1:
        raise LayerError(
            f"{caller}: the output of layer {name!r} has shape {shape}, which can be read as "
            f"{' or '.join(map(str, readings))}. Choose a layer next to it. The reading must be "
            "certain."
        )
    return readings[0]


def _token_readings(
    shape: tuple[int, ...], image_size: tuple[int, int], model: nn.Module
) -> list[Layout]:
    """Grids h*w = tokens - prefix whose cells are square on the image (equal strides)."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is None:
        prefix = 1 if getattr(model, "class_token", None) is not None else None
    # What the model says of its prefix comes first; CaiT's class token joins only in later blocks.
    for candidate in (0, 1) if prefix is None else (int(prefix), 0):
        patches = shape[1] - candidate
        grids = [(h, patches // h) for h in range(1, patches + 1) if patches % h == 0]
        readings = [
            Layout("tokens", grid, candidate) for grid in grids if _same_stride(grid, image_size)
        ]
        if readings:
            return readings
    return []


def _image_readings(
    shape: tuple[int, ...], image_size: tuple[int, int], model: nn.Module, module: nn.Module | None
) -> list[Layout]:
    first = Layout("NCHW", (shape[2], shape[3]))
    last = Layout("NHWC", (shape[1], shape[2]))
    if module is None:  # the image itself
        return [first]
    channels_last = getattr(model, "output_fmt", None) == "NHWC"
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    on_last = {m.normalized_shape for m in module.modules() if isinstance(m, nn.LayerNorm)}
    on_last |= {(size,) for m in linear for size in (m.in_features, m.out_features)}
    readings = [r for r in (first, last) if _same_stride(r.grid, image_size)]
    if not channels_last and (shape[3],) not in on_last and readings != [last]:
        # Nothing here works on the last dimension: these are convolutions, and channels are second.
        return [first]
    return readings


def _same_stride(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether a grid covers the image with cells that are square up to rounding."""
    (h, w), (height, width) = grid, image_size
    if h > height or w > width:
        return False
    return abs(h * width / height - w) < 1 and abs(w * height / width - h) < 1


@dataclass(frozen=True)
class LayerInfo:
    """One layer that ran in a probe of the model.

    Attributes:
        name: Dotted name.
        shape: Shape of its output for a batch of one image.
        layout: How it is read; None where it has no grid larger than 1 x 1.
        alive: Whether places other than prefix tokens reach the logits.
        calls: How often it ran in one forward pass.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout | None
    alive: bool
    calls: int


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """What the model was built for; a ViT knows it better than timm's config."""
    config = getattr(model, "pretrained_cfg", None)
    named = config.get("input_size") if isinstance(config, dict) else None
    channels, height, width = named or (3, 224, 224)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = size or getattr(model, "image_size", None) or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)


def probe_layers(
    model: nn.Module, *, image_size: tuple[int, int] | None = None, caller: str
) -> list[LayerInfo]:
    """Run one random image through the model and describe every layer, in the order they finish.

    The model is in evaluation mode meanwhile and comes back as it was; cost: one forward and one
    backward of one image, with every activation kept.

    Args:
        model: The unwrapped model.
        image_size: (H, W); by default what timm's or torchvision's model says, else 224 x 224.
        caller: The public callable that the error names.

    Raises:
        LayerError: If the model does not run on such an image.
    """
    channels, height, width = _input_size(model)
    height, width = image_size or (height, width)
    parameter = next(model.parameters(), torch.empty(0))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, height, width, generator=generator)
    modes = {m: m.training for m in model.modules()}
    tap = Tap(model, dict(modules))
    try:
        model.eval()
        with tap.alone(), torch.inference_mode(False), torch.enable_grad():
            # A head of zeros (torchvision's ViTs) would make every layer look dead.
            # So would scales of zero, with which residual branches often start.
            alive_weights = {
                n: torch.randn(p.shape, generator=generator).to(p)
                for n, p in model.named_parameters()
                if not n.endswith("bias") and not p.any()
            }
            inputs = (image.to(parameter.device, dtype),)
            logits = torch.func.functional_call(model, alive_weights, inputs)
            seen = tap.last
            if seen is None or not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ValueError("the output is not a tensor of logits (N, K)")
            features = {n: f for n, f in seen.features.items() if isinstance(f, Tensor)}
            weights = torch.randn(logits.shape, generator=generator).to(logits)
            names = [n for n, f in features.items() if f.requires_grad]
            gradients = torch.autograd.grad(
                (logits * weights).sum(), [features[n] for n in names], allow_unused=True
            )
    except Exception as error:  # whatever a model does with an image that it was not made for
        raise LayerError(
            f"{caller}: no layer could be found, because the model did not run on an image of "
            f"{channels} x {height} x {width} ({str(error).splitlines()[0]}). Name one with layer=. "
            "Any dotted name of a module is allowed, or 'input'."
        ) from error
    finally:
        tap.remove()
        for module, training in modes.items():
            module.training = training
    by_name = dict(zip(names, gradients, strict=True))
    found = []
    for name, feature in features.items():
        try:
            layout: Layout | None = infer_layout(
                name, feature, (height, width), model=model, module=modules[name], caller=caller
            )
        except LayerError:
            layout = None
        if layout is not None and layout.grid == (1, 1):
            layout = None
        gradient = by_name.get(name)
        alive = gradient is not None and layout is not None
        if alive and gradient is not None and layout is not None:
            alive = bool((to_nchw(gradient, layout) != 0).flatten(2).any(1).float().mean() > 0.5)
        found.append(LayerInfo(name, tuple(feature.shape), layout, alive, seen.calls[name]))
    return found


def automatic_layer(model: nn.Module, layers: list[LayerInfo], *, caller: str) -> str:
    """The last layer whose places still reach the logits and whose grid is not 1 x 1.

    Layers inside an attention module are passed over (their tokens are queries, keys and values),
    as are layers that only resize or repeat the one before them: pooling, dropout, identity.

    Raises:
        LayerError: If there is none.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def inside_attention(name: str) -> bool:
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        return any("attention" in type(modules[a]).__name__.lower() for a in above)

    for layer in reversed(layers):
        kind = type(modules[layer.name]).__name__.lower()
        repeats = "pool" in kind or "drop" in kind or kind == "identity"
        if layer.alive and layer.calls == 1 and not repeats and not inside_attention(layer.name):
            return layer.name
    raise LayerError(
        f"{caller}: no layer of {type(model).__name__} keeps a spatial grid that reaches the "
        f"logits. Use layer={INPUT!r}. `explainguide layers` shows what each layer returns."
    )
