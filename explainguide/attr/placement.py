"""Which attribution explains which layers of a model: both resolved in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any, NamedTuple

from torch import nn

from explainguide.attr.base import ATTRIBUTIONS, LayerMap
from explainguide.attr.references import REFERENCES
from explainguide.errors import OptionError, did_you_mean
from explainguide.hooks.layers import resolve_layers
from explainguide.hooks.probe import automatic_layer, find_layer, probe_layers
from explainguide.hooks.reading import AS_FOUND, Reading
from explainguide.named import check_values, look_up

__all__ = ["Layers", "Placed", "check_attribution", "place_attribution"]

Layers = str | nn.Module | Sequence[str | nn.Module]


class Placed(NamedTuple):
    """An attribution, and the layers that it explains.

    Attributes:
        method: Built for the model.
        layers: Resolved name to module; None for the image.
    """

    method: LayerMap
    layers: dict[str, nn.Module | None]


def place_attribution(
    model: nn.Module,
    attribution: str | LayerMap,
    layer: Layers | None,
    *,
    options: Mapping[str, Any] | None = None,
    reading: Reading = AS_FOUND,
    trained: bool = False,
    movable: bool = False,
) -> Placed:
    """Build an attribution for a model, and find its layers.

    Args:
        model: The unwrapped classifier.
        attribution: A name of the table, ``package.module:Class``, or an object built for this model.
        layer: As named; None is the attribution's own, or the last whose places reach the logits.
        options: Keyword arguments of a named attribution.
        reading: What the user has said of the model.
        trained: Whether the maps will be trained through, so that an automatic layer must be
            differentiable twice.
        movable: Whether an object that was built for another layer explains the one that is named.

    Raises:
        OptionError: For an unknown name or option, or an object of another model or layer.
        LayerError: If there is no such layer, or none that can be explained.
    """
    if isinstance(layer, tuple):
        layer = list(layer)
    if isinstance(attribution, LayerMap):
        method = _of_this_model(attribution, model, reading)
        if movable:
            method = _moved(method, layer)
    else:
        kind = check_attribution(attribution, options or {})
        method = _moved(kind(model, **(options or {}), **_taken(kind, reading)), layer)
    own = method.layer
    if layer is None:
        layer = own
    elif own is not None and not movable:
        _check_agreement(method, layer)
    if layer is None:
        layer = _automatic(model, method.reading, trained)
    return Placed(method, resolve_layers(model, layer))


def check_attribution(attribution: Any, options: Mapping[str, Any]) -> type[LayerMap]:
    """The class of a name; its options are among those that it has.

    Raises:
        OptionError: For an unknown name or option, a value that the option cannot have, an option that
            is missing, or a class in place of an object.
    """
    if isinstance(attribution, type) and issubclass(attribution, LayerMap):
        name = attribution.__name__
        raise OptionError(
            f"attribution is the class {name}. Build it: {name}(model). A name or an object is allowed."
        )
    if isinstance(attribution, str) and (
        attribution in REFERENCES or attribution.startswith("captum:")
    ):
        raise OptionError(
            f"attribution {attribution!r} can be judged, but not guided: its map has no gradient that "
            "training could follow. Use 'ixg', and give this one to `evaluate`. "
            f"{', '.join(map(repr, ATTRIBUTIONS))} are allowed."
        )
    kind = look_up("attribution", attribution, ATTRIBUTIONS)
    if not (isinstance(kind, type) and issubclass(kind, LayerMap)):
        raise OptionError(
            f"attribution {attribution!r} is no attribution. Derive it from LayerMap of "
            "explainguide.attr. A class with a method `maps` is allowed."
        )
    own = [p for p in _keywords(kind) if p.name not in signature(LayerMap).parameters]
    allowed = [parameter.name for parameter in own]
    for name in options:
        if name not in allowed:
            raise OptionError(
                f"the attribution {attribution!r} has no option {name!r}."
                f"{did_you_mean(name, allowed)} It has {', '.join(map(repr, allowed)) or 'none'}."
            )
    for parameter in own:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise OptionError(
                f"the attribution {attribution!r} needs {parameter.name!r}. Say it with "
                f"attribution_options={{{parameter.name!r}: ...}}, or give it a default. "
                f"{', '.join(map(repr, allowed))} {'are' if len(allowed) > 1 else 'is'} allowed."
            )
    check_values(f"the attribution {attribution!r}", kind, options)
    kind.check_options(options)
    return kind


def _keywords(kind: type[LayerMap]) -> list[Parameter]:
    """The parameters of a constructor that have names, but for the model."""
    others = list(signature(kind).parameters.values())[1:]
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p for p in others if p.kind not in several]


def _taken(kind: type[LayerMap], reading: Reading) -> dict[str, Any]:
    """What a constructor takes of how the model is read; the whole of it where it takes anything.

    Raises:
        OptionError: If something is said of the model that the constructor does not take.
    """
    parameters = signature(kind).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return vars(reading)
    names = {parameter.name for parameter in parameters}
    for name, value in vars(reading).items():
        if value is not None and name not in names:
            raise OptionError(
                f"{name} is {value!r}, which the constructor of {kind.__name__} does not take. Let it "
                f"take {name}=None, or **reading, and give it to super().__init__. What the "
                "constructor takes is allowed."
            )
    return {name: value for name, value in vars(reading).items() if name in names}


def _of_this_model(attribution: LayerMap, model: nn.Module, reading: Reading) -> LayerMap:
    if attribution.model is not model:
        raise OptionError(
            f"the attribution {type(attribution).__name__} was built for another model. Build it with "
            "this model. A name is allowed too."
        )
    for field in fields(Reading):
        asked, built = getattr(reading, field.name), getattr(attribution.reading, field.name)
        if asked not in (None, built):
            raise OptionError(
                f"{field.name} is {asked!r}, but the attribution was built with {built!r}. Leave out "
                "one of the two. They must agree."
            )
    return attribution


def _moved(method: LayerMap, layer: Layers | None) -> LayerMap:
    """An attribution that places itself, at the layer that is named instead; others as they are."""
    if not method.places_itself or layer is None:
        return method
    if not isinstance(layer, str) and isinstance(layer, Sequence):
        if len(layer) != 1:
            raise OptionError(
                f"{len(layer)} layers for {type(method).__name__}. Name the one where its roll-out "
                "starts, or none. One layer is allowed."
            )
        layer = layer[0]
    return method.at(layer)


def _check_agreement(method: LayerMap, layer: Layers) -> None:
    own = method.layer
    assert own is not None
    if list(resolve_layers(method.model, layer)) != list(resolve_layers(method.model, own)):
        raise OptionError(
            f"layer is {layer!r}, but the attribution was built for {own!r}. Leave out one of the two. "
            "They must agree."
        )


def _automatic(model: nn.Module, reading: Reading, trained: bool) -> str:
    if trained:
        return find_layer(model, reading=reading)
    return automatic_layer(model, probe_layers(model, reading=reading))
