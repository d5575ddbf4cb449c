"""One probe forward of a model: what every layer returns, and which layer is the automatic one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from explainguide.errors import ExplainGuideError, LayerError, first_line, warn
from explainguide.hooks.compiled import compiled_parts, uncompiled
from explainguide.hooks.derivatives import check_derivatives
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.layers import INPUT, split_index
from explainguide.hooks.layout import Layout, infer_layout, to_nchw
from explainguide.hooks.logits import check_logits
from explainguide.hooks.reading import AS_FOUND, Reading
from explainguide.hooks.tap import ForwardPass, Tap

__all__ = [
    "LayerInfo",
    "automatic_layer",
    "find_layer",
    "input_size",
    "probe",
    "probe_layers",
    "probed_size",
]


Result = TypeVar("Result")
# Modules that hand on, drop or resize what the one before them computed, by the end of their names: a
# PoolFormerBlock is none of them.
_PASSED_OVER = re.compile(r"(pool(ing|er)?|drop(out|path)?|identity|permute)(\dd)?(same)?$")


@dataclass(frozen=True)
class LayerInfo:
    """One layer that ran in a probe of the model.

    Attributes:
        name: Dotted name.
        shape: Shape of its output for a batch of one image.
        layout: How it is read; None where it has no grid larger than 1 x 1.
        alive: Whether places other than prefix tokens reach the logits.
        calls: How often it ran in one forward pass.
        cancels: Whether activation times gradient sums to zero over the channels of every place, as
            it must where nothing but a normalisation follows (it undoes the length of what it gets).
        reaches: Whether anything of its output reaches the logits.
        usable: Whether it can be guided and its places are the image's: alive, run once, and not
            inside an attention module, whose tokens are queries, keys and values.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout | None
    alive: bool
    calls: int
    cancels: bool
    reaches: bool
    usable: bool


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """What the model was built for; a ViT knows it better than timm's config."""
    # A wrapper does not know what timm's model inside knows.
    configs = [getattr(m, "pretrained_cfg", getattr(m, "default_cfg", 0)) for m in model.modules()]
    named = [c["input_size"] for c in configs if isinstance(c, dict) and c.get("input_size")]
    channels, height, width = named[0] if named else (3, 224, 224)
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), channels)
    if first < 12:  # and not a stem that folds 2 x 2 pixels, or more, into channels
        # A model that adds the inverse itself takes half of what its stem does.
        channels = first // 2 if _adds_inverse(model) else first
    # timm's patch embeddings, of which later stages may have smaller ones, and torchvision's ViT.
    told = [getattr(m, "img_size", None) for m in model.modules()]
    told.append(getattr(model, "image_size", None))
    for config in [getattr(m, "config", None) for m in model.modules()]:  # Transformers'
        told += [
            getattr(c, "image_size", None) for c in (config, getattr(config, "vision_config", 0))
        ]
    sizes = [
        (size, size) if isinstance(size, int) else tuple(size)
        for size in told
        if isinstance(size, int | tuple | list) and size
    ]
    height, width = max(sizes, default=(height, width))
    return int(channels), int(height), int(width)


def _adds_inverse(model: nn.Module) -> bool:
    """Whether a model encodes images in [0, 1] with their inverse (`bcos.AddInverse`)."""
    return any(getattr(module, "unit_range", False) for module in model.modules())


class _Probe(nn.Module):
    """A model and what is done with its output, in one call."""

    def __init__(self, model: nn.Module, act: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self._act = model, act

    def forward(self, image: Tensor) -> Any:
        return self._act(self.model(image))


def probe(
    model: nn.Module,
    size: tuple[int, int, int],
    act: Callable[[Tensor], Result],
    *,
    reading: Reading = AS_FOUND,
    seed: int = 0,
) -> Result:
    """Run one random image of (C, H, W) through the model and act on a random sum of its logits.

    The model is in evaluation mode meanwhile, without its compiled parts, and comes back as it was.
    What is computed again while `act` takes a gradient (a checkpointed segment) sees the same mode
    and weights.
    """
    parameter = next(model.parameters(), torch.empty(0))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if _adds_inverse(model) else torch.randn
    image = draw(1, *size, generator=generator).to(parameter.device, dtype)
    # A head of zeros (torchvision's ViTs) would make every layer look dead.
    # So would scales of zero, with which residual branches often start.
    alive_weights = {
        f"model.{n}": torch.randn(p.shape, generator=generator).to(p)
        for n, p in model.named_parameters()
        if not n.endswith("bias") and not p.any()
    }

    def finish(output: Any) -> Result:
        logits = check_logits(output, reading=reading, images=1)
        return act((logits * torch.randn(logits.shape, generator=generator).to(logits)).sum())

    probing = _Probe(model, finish)
    plain = uncompiled(compiled_parts(model))
    with plain, evaluating(probing), torch.inference_mode(False), torch.enable_grad():
        return cast(Result, torch.func.functional_call(probing, alive_weights, (image,)))


def probe_layers(
    model: nn.Module, *, image_size: tuple[int, int] | None = None, reading: Reading = AS_FOUND
) -> list[LayerInfo]:
    """Run one random image through the model and describe every layer, in the order they finish.

    The model is in evaluation mode meanwhile and comes back as it was; cost: one forward and one
    backward of one image, with every activation kept, and two more where products seem to cancel, which
    one draw of an image and of scores may do by chance.

    Args:
        model: The unwrapped model.
        image_size: (H, W); by default what timm's or torchvision's model says, else 224 x 224.
        reading: What the user has said of the model.

    Raises:
        LayerError: If the model does not run on such an image.
    """
    asked = dataclasses.replace(reading, image_size=image_size or reading.image_size)
    layers = _look(model, asked, 0)
    for seed in (1, 2):
        if any(layer.cancels for layer in layers):
            again = {layer.name: layer.cancels for layer in _look(model, asked, seed)}
            layers = [
                dataclasses.replace(layer, cancels=layer.cancels and again.get(layer.name, False))
                for layer in layers
            ]
    return layers


def _look(model: nn.Module, reading: Reading, seed: int) -> list[LayerInfo]:
    """Every layer, as one draw shows it."""
    channels, height, width = probed_size(model, reading)
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    attention = {name for name, m in modules.items() if _is_attention(name, m)}
    tap = Tap(model, dict(modules), replace=False)

    def look(score: Tensor) -> tuple[ForwardPass, dict[str, Tensor], dict[str, Tensor | None]]:
        seen = cast(ForwardPass, tap.last)
        features = {n: f for n, f in seen.features.items() if isinstance(f, Tensor)}
        asked = {n: f for n, f in features.items() if f.requires_grad}
        gradients = torch.autograd.grad(score, list(asked.values()), allow_unused=True)
        return seen, features, dict(zip(asked, gradients, strict=True))

    try:
        with tap.alone():
            seen, features, by_name = probe(
                model, (channels, height, width), look, reading=reading, seed=seed
            )
    except ExplainGuideError:
        raise
    except Exception as error:  # whatever a model does with an image that it was not made for
        raise LayerError(
            f"no layer could be found, because the model did not run on an image of "
            f"{channels} x {height} x {width} ({first_line(error)}). Say image_size=(H, W), "
            "or name one with layer=. Any dotted name of a module is allowed, or 'input'."
        ) from error
    finally:
        tap.remove()
    layers = []
    for name, feature in features.items():
        try:
            layout: Layout | None = infer_layout(
                name,
                feature,
                (height, width),
                model=model,
                module=modules[split_index(name)[0]],
                batch=1,
                reading=reading,
                steps=seen.until.get(name, seen.until.get(split_index(name)[0])),
            )
        except LayerError:
            layout = None
        if layout is not None and layout.grid == (1, 1):
            layout = None
        gradient = by_name.get(name)
        alive, cancels = False, False
        reaches = gradient is not None and bool(gradient.any())
        if gradient is not None and layout is not None:
            gradient, values = to_nchw(gradient, layout), to_nchw(feature.detach(), layout)
            alive = bool((gradient != 0).flatten(2).any(1).float().mean() > 0.5)
            product = gradient * values
            largest = product.abs().sum(1).max()  # 0 where the signal of untrained weights died out
            cancels = bool(largest > 0 and product.sum(1).abs().max() <= 1e-4 * largest)
        calls = seen.calls[split_index(name)[0]]
        usable = alive and calls == 1 and not _inside(attention, name)
        layers.append(
            LayerInfo(name, tuple(feature.shape), layout, alive, calls, cancels, reaches, usable)
        )
    return layers


def automatic_layer(model: nn.Module, layers: list[LayerInfo]) -> str:
    """The last layer whose places still reach the logits and whose grid is not 1 x 1.

    Layers that only resize or repeat the one before them are passed over: pooling, dropout and so
    on; and those whose activation times gradient cancels.

    Raises:
        LayerError: If there is none.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    whole = {split_index(layer.name)[0] for layer in layers if layer.alive}
    unread: LayerInfo | None = None
    for layer in reversed(layers):
        kind = type(modules[split_index(layer.name)[0]]).__name__.lower()
        if _PASSED_OVER.search(kind):
            continue
        if layer.usable and not layer.cancels and not _is_branch(layer, whole):
            if unread is not None:
                warn(
                    f"layer {layer.name!r} is taken. Of the output of a later one, "
                    f"{unread.name!r}, {unread.shape}, the places cannot be told. Say grid=(h, w) and "
                    "prefix_tokens=, or name a layer."
                )
            return layer.name
        unread = unread or (layer if _is_unread(layer, modules) else None)
    raise LayerError(
        f"no layer of {type(model).__name__} keeps a spatial grid that reaches the "
        f"logits. Use layer={INPUT!r}. `explainguide layers` shows what each layer returns."
    )


def _is_branch(layer: LayerInfo, whole: set[str]) -> bool:
    """Whether a layer lies inside one whose own places reach the logits, and that was passed over.

    What is added to a skip connection does not cancel by itself, and is a part of the truth only.
    """
    parts = split_index(layer.name)[0].split(".")
    return any(".".join(parts[:i]) in whole for i in range(1, len(parts)))


def _is_unread(layer: LayerInfo, modules: dict[str, nn.Module]) -> bool:
    """Whether a layer may hold tokens of which nobody could tell the places."""
    attention = {name for name, m in modules.items() if name and _is_attention(name, m)}
    tokens = len(layer.shape) == 3 and layer.shape[0] == 1 and min(layer.shape[1:]) > 2
    free = layer.layout is None and layer.calls == 1 and not _inside(attention, layer.name)
    return tokens and layer.reaches and free


def probed_size(model: nn.Module, reading: Reading) -> tuple[int, int, int]:
    """What is run on: the user's size, or the model's own."""
    channels, height, width = input_size(model)
    height, width = reading.image_size or (height, width)
    return channels, height, width


def find_layer(model: nn.Module, *, reading: Reading = AS_FOUND) -> str:
    """The automatic layer of a model that is going to be guided there.

    Costs two forward passes of one image.

    Raises:
        LayerError: If there is none.
        GuidanceError: If an operation above it cannot be differentiated twice.
    """
    layer = automatic_layer(model, probe_layers(model, reading=reading))
    tap = Tap(model, {layer: model.get_submodule(split_index(layer)[0])})

    def look(score: Tensor) -> None:
        feature = cast(ForwardPass, tap.last).features[layer]
        (gradient,) = torch.autograd.grad(score, feature, create_graph=True)
        check_derivatives(gradient, score, [feature], model=model)

    try:
        with tap.alone():
            probe(model, probed_size(model, reading), look, reading=reading)
    finally:
        tap.remove()
    return layer


def _is_attention(name: str, module: nn.Module) -> bool:
    """By what timm and torchvision call them; an attention block of convolutions is none of these."""
    last = name.rsplit(".", 1)[-1].lower()
    kind = type(module).__name__.lower()
    if last.startswith(("attn", "self_attn", "self_attention")):
        return True
    return ("attention" in kind or "attn" in kind) and "block" not in kind and "layer" not in kind


def _inside(attention: set[str], name: str) -> bool:
    parts = split_index(name)[0].split(".")
    return any(".".join(parts[:i]) in attention for i in range(1, len(parts) + 1))
