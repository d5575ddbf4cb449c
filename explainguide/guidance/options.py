"""What a guide can be built with: every option is checked here, before any forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from torch import nn

from explainguide.attr import ATTRIBUTIONS, LayerMap
from explainguide.errors import GuidanceError, OptionError, check_option
from explainguide.hooks.layers import resolve_layers
from explainguide.hooks.reading import AS_FOUND, Reading

__all__ = [
    "NAME",
    "check_choices",
    "check_model",
    "check_weights",
    "combine_layers",
    "name_of",
    "named_attribution",
    "place",
    "resolve_attribution",
]

NAME = "ExplanationGuidance"
Layers = str | nn.Module | Sequence[str | nn.Module]
_TARGETS = ("sample", "all", "predicted")
_SCORES = ("logit", "log_prob", "sum_log_probs")
_REDUCTIONS = ("mean", "sum", "none")


def resolve_attribution(
    attribution: str | LayerMap,
    model: nn.Module,
    layer: Layers | None,
    reading: Reading,
) -> LayerMap:
    """A name, or an object that was built for this model."""
    if isinstance(attribution, LayerMap):
        if attribution.model is not model:
            raise OptionError(
                f"the attribution {type(attribution).__name__} was built for another model. "
                "Build it with the model that is guided. A name is allowed too."
            )
        for field in fields(Reading):
            said, built = getattr(reading, field.name), getattr(attribution.reading, field.name)
            if said not in (None, built):
                raise OptionError(
                    f"{field.name} is {said!r}, but the attribution was built with "
                    f"{built!r}. Leave out one of the two. They must agree."
                )
        return attribution
    if isinstance(attribution, type) and issubclass(attribution, LayerMap):
        raise OptionError(
            f"attribution is the class {attribution.__name__}. Build it: "
            f"{attribution.__name__}(model). A name or an object is allowed."
        )
    return named_attribution(attribution, model, layer, reading=reading)


def named_attribution(
    name: str, model: nn.Module, layer: Layers | None, *, reading: Reading = AS_FOUND
) -> LayerMap:
    """The attribution of a name, with its defaults, placed at the layer."""
    check_option("attribution", name, ATTRIBUTIONS)
    return place(ATTRIBUTIONS[name](model, **vars(reading)), layer)


def place(attribution: LayerMap, layer: Layers | None) -> LayerMap:
    """An attribution that places itself, at the layer that is named instead; others as they are."""
    if not attribution.places_itself or layer is None:
        return attribution
    if not isinstance(layer, str) and isinstance(layer, Sequence):
        if len(layer) != 1:
            raise OptionError(
                f"{len(layer)} layers for {type(attribution).__name__}. Name the one where "
                "its roll-out starts, or none. One layer is allowed."
            )
        layer = layer[0]
    return attribution.at(layer)


def combine_layers(layer: Layers | None, attribution: LayerMap) -> Layers | None:
    """The guide's layer, or the one that the attribution object was built for."""
    own = attribution.layer
    if layer is None or own is None:
        return own if layer is None else layer
    named, built = (resolve_layers(attribution.model, n) for n in (layer, own))
    if list(named) == list(built):
        return layer
    raise OptionError(
        f"layer is {layer!r}, but the attribution was built for {own!r}. Leave out one of "
        "the two. They must agree."
    )


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be trained through."""
    parameters = list(model.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        raise GuidanceError(
            f"every parameter of {type(model).__name__} is frozen, so a loss has nothing to "
            "train. Unfreeze some with requires_grad_(True). At least one must require a gradient."
        )
    for name, module in model.named_modules():
        if type(module).__name__.startswith("PatchDropout") and getattr(module, "prob", 0) > 0:
            raise GuidanceError(
                f"module {name!r} drops patches in training (prob={module.prob}), and no map "
                "can tell which. Build the model with patch_drop_rate=0. Dropout of other kinds is "
                "allowed."
            )
    synchronised = next(
        (n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)), ""
    )
    if synchronised:
        raise GuidanceError(
            f"module {synchronised!r} is a SyncBatchNorm, which has no second derivative. "
            "Use BatchNorm (with larger batches a process) or another norm. Every operation above "
            "the layer must be differentiable twice."
        )


def check_choices(target: str, score: str, reduction: str, negatives: float) -> None:
    """What is explained, and how it is averaged: known names, and a probability where it is used."""
    check_option("target", target, _TARGETS)
    check_option("score", score, _SCORES)
    check_option("reduction", reduction, _REDUCTIONS)
    if not 0 <= negatives <= 1 or (negatives > 0 and target != "sample"):
        raise OptionError(
            f"negatives is {negatives} with target={target!r}. Use target='sample' and "
            "a probability such as 0.5. A number in [0, 1] is allowed, 0 with other targets."
        )


def check_weights(weights: Sequence[float] | None, layers: list[str]) -> list[float]:
    """One weight a layer."""
    if weights is None:
        return [1.0] * len(layers)
    if len(weights) != len(layers):
        raise OptionError(
            f"{len(weights)} layer_weights for {len(layers)} layers {layers}. Give one a "
            "layer. Numbers are allowed."
        )
    return [float(w) for w in weights]


def name_of(choice: str | Callable[..., Any]) -> str:
    """What `repr` calls an option."""
    if isinstance(choice, str):
        return choice
    if isinstance(choice, partial):
        options = ", ".join(f"{name}={value!r}" for name, value in choice.keywords.items())
        return f"{name_of(choice.func)}({options})"
    return getattr(choice, "__name__", type(choice).__name__)
