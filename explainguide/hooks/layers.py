"""From a layer's name to its module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from explainguide.errors import GuidanceError, LayerError, OptionError, did_you_mean

__all__ = ["INPUT", "list_layers", "nearest_attribute", "resolve_layers", "split_index", "unwrap"]

INPUT = "input"
_WRAPPERS = ("module.", "_orig_mod.")


def each_module(model: nn.Module) -> Iterator[nn.Module]:
    """All modules, some twice: for a look in every pass, without the cost of names."""
    stack = [model]
    while stack:
        module = stack.pop()
        yield module
        stack.extend(m for m in module._modules.values() if m is not None)


def unwrap(model: nn.Module, *, compiled_parts: bool = False) -> nn.Module:
    """The model itself, out of DistributedDataParallel.

    Args:
        model: A classifier.
        compiled_parts: Whether parts of it may be compiled.

    Raises:
        GuidanceError: For wrappers through which no second derivative can be taken.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model is a {type(model).__name__}, not an nn.Module. "
            "Pass the classifier itself. It must map images (N, 3, H, W) to logits (N, K)."
        )
    if "_orig_mod" in model._modules or model._compiled_call_impl is not None:
        itself = "the model before that"
        itself += " (`compiled._orig_mod`)" if "_orig_mod" in model._modules else ""
        raise GuidanceError(
            "the model was compiled as a whole by torch.compile, which can be differentiated once "
            f"alone. Build the guide with {itself} and call `guide.compile()`. Compiled modules that "
            "end before the guided layer are allowed."
        )
    compiled = next(
        (n for n, m in model.named_modules() if m._compiled_call_impl is not None), None
    )
    if compiled is not None and not compiled_parts:
        raise GuidanceError(
            f"module {compiled!r} was compiled in place by `compile()`, which cannot be "
            "differentiated twice from outside. Train the uncompiled model. Compile for evaluation "
            "only."
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise GuidanceError(
                f"{_titled(name)} was scripted or traced by torch.jit, whose layers cannot be "
                "read. Use the Python model that it was made from. An nn.Module is allowed, also one "
                "traced by torch.fx."
            )
        if ".quantized." in f"{type(module).__module__}.":
            raise GuidanceError(
                f"{_titled(name)} is quantised, and integers have no gradient. Guide the model "
                "in floating point, then quantise it. float64, float32, float16 and bfloat16 are "
                "allowed."
            )
        if type(module).__name__ == "FullyShardedDataParallel":
            raise GuidanceError(
                f"{_titled(name)} is in FullyShardedDataParallel, which lets its parameters go after "
                "a first gradient, so that there is no second. Use fully_shard "
                "(torch.distributed.fsdp). It, and DistributedDataParallel, are allowed."
            )
    if isinstance(model, nn.DataParallel):
        raise GuidanceError(
            "nn.DataParallel copies the model in every forward, so no layer can be read. "
            "Use `model.module` on one device or DistributedDataParallel."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        if model.static_graph:
            raise GuidanceError(
                "DistributedDataParallel(static_graph=True) does not average the "
                "gradients of a loss on attributions. Build it with static_graph=False."
            )
        return unwrap(model.module, compiled_parts=compiled_parts)
    return model


def _titled(name: str) -> str:
    return f"module {name!r}" if name else "the model"


def list_layers(model: nn.Module) -> list[str]:
    """The names of every module but the root, aliases included."""
    return [name for name, _ in model.named_modules(remove_duplicate=False) if name]


def split_index(layer: str) -> tuple[str, int | None]:
    """A module's name and which of its outputs is meant.

    Example:
        >>> split_index("stage4[1]"), split_index("stage4")
        (('stage4', 1), ('stage4', None))
    """
    match = re.fullmatch(r"(.+)\[(\d+)\]", layer)
    return (match[1], int(match[2])) if match else (layer, None)


def nearest_attribute(model: nn.Module, layer: str, attribute: str) -> Any:
    """What the nearest module around a layer, or the model, says of itself; None if nobody does.

    A wrapper (say, of a normalisation and a ViT) does not know what the ViT inside knows.
    """
    name, _ = split_index(layer)
    modules = dict(model.named_modules(remove_duplicate=False))
    while True:
        value = getattr(modules.get(name), attribute, None)
        if value is not None or not name:
            return value
        name = name.rpartition(".")[0]


def resolve_layers(
    model: nn.Module, layer: str | nn.Module | Sequence[str | nn.Module]
) -> dict[str, nn.Module | None]:
    """Names to modules; ``"input"`` (the image itself) to None.

    Args:
        model: The unwrapped model.
        layer: ``"input"``, a dotted name as `nn.Module.named_modules` gives it, a module, or several.
            The prefixes that DistributedDataParallel and torch.compile put in front are understood.
            ``"stage4[1]"`` is the second output of a layer that returns a tuple or a list.

    Raises:
        LayerError: For a name or a module that the model has not, a number, or no name at all.
    """
    names = [layer] if isinstance(layer, str) or not isinstance(layer, Sequence) else list(layer)
    if not names:
        raise LayerError("layer is an empty list. Name at least one layer.")
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, nn.Module | None] = {}
    for name in names:
        clean = _clean_name(model, name, modules)
        if clean in layers:
            raise LayerError(f"layer {name!r} is named twice. Name each layer once.")
        layers[clean] = None if clean == INPUT else modules[split_index(clean)[0]]
    return layers


def _clean_name(model: nn.Module, name: object, modules: dict[str, nn.Module]) -> str:
    if isinstance(name, nn.Module):
        known = next((n for n, m in modules.items() if m is name and n), None)
        if known is not None:
            return known
        whole = "It is the model itself" if name is model else "It is no module of this model"
        raise LayerError(
            f"layer is a {type(name).__name__} module. {whole}. Pass a part of the model "
            "that is guided. A dotted name, or a module of the model, is allowed."
        )
    if not isinstance(name, str):
        raise LayerError(
            f"layer is {name!r}, a {type(name).__name__}. Layers are not numbered: use a "
            f"dotted name such as {_example(modules)!r}. {_how_to_list(model, modules)}"
        )
    clean, index = split_index(name)
    while clean not in modules and clean.startswith(_WRAPPERS):
        clean = clean.split(".", 1)[1]
    if clean in modules and clean:
        return clean if index is None else f"{clean}[{index}]"
    if name == INPUT:
        return name
    hint = did_you_mean(name, [*[n for n in modules if n], INPUT])
    raise LayerError(f"unknown layer {name!r}.{hint} {_how_to_list(model, modules)}")


def _example(modules: dict[str, nn.Module]) -> str:
    top = [name for name, m in modules.items() if name and "." not in name and any(m.children())]
    return top[-1] if top else next((name for name in modules if name), INPUT)


def _how_to_list(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    known = config.get("architecture") if isinstance(config, dict) else None
    how = f"`explainguide layers {known}`" if known else "`model.named_modules()`"
    return f"{how} lists all {len(modules) - 1}; 'input' is the image."
