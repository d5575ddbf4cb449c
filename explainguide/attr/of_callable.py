"""The package's attributions, references and functions of one's own as makers of maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from typing import Any

from torch import Tensor, nn

from explainguide.attr.base import ATTRIBUTIONS, LayerMap
from explainguide.attr.placement import place_attribution
from explainguide.attr.references import REFERENCES
from explainguide.errors import OptionError, did_you_mean
from explainguide.hooks.layers import INPUT, resolve_layers
from explainguide.hooks.reading import Reading
from explainguide.named import check_values, parameters_of

__all__ = ["FunctionMaps", "OwnMaps", "named_function"]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class OwnMaps:
    """The maps of an attribution of the package, or of one that is derived from it, at one layer.

    Attributes:
        name: As it is named, or the key of its class.
        layer: Dotted name, or ``"input"``.
        root: The model.
        copyable: True.
        placed: True: the layer's places are known.
    """

    copyable = placed = True

    def __init__(
        self,
        attribution: Any,
        model: nn.Module,
        layer: Any,
        *,
        arguments: Mapping[str, Any],
        reading: Reading,
    ) -> None:
        if arguments and not isinstance(attribution, str):
            raise OptionError(
                f"arguments is {dict(arguments)!r}, but the attribution is an object. Build the "
                "object with them. Arguments of what is named are allowed."
            )
        method, layers = place_attribution(
            model, attribution, layer, options=arguments, reading=reading, movable=True
        )
        if len(layers) != 1:
            raise OptionError(
                f"{len(layers)} layers for one explainer. Make one for each. One layer is allowed."
            )
        (self.layer,) = layers
        self.method: LayerMap = method if method.places_itself else method.at(self.layer)
        self.root = model
        keys = [key for key, kind in ATTRIBUTIONS.items() if kind is type(method)]
        own = attribution if isinstance(attribution, str) else type(method).__name__
        self.name = keys[0] if keys else own

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Maps at the layer's own resolution."""
        return self.method.attribute(images, target)

    def check_classes(self, count: int) -> None:
        """Any number is allowed."""


class FunctionMaps:
    """The maps of a callable ``(images, target) -> maps``.

    Attributes:
        name: As it is named, or the function's own.
        layer: As the caller says; ``"input"`` by default.
        root: The model that it explains.
        copyable: Whether a copy of the callable holds a copy of the model.
        placed: False: maps must have the image's proportions.
    """

    placed = False

    def __init__(
        self,
        function: Callable[..., Any],
        model: nn.Module,
        layer: Any = None,
        *,
        arguments: Mapping[str, Any],
        name: str | None = None,
    ) -> None:
        self.name = name or _name(function)
        if arguments:
            _check_arguments(self.name, function, arguments, given=2)
        self.function = partial(function, **arguments) if arguments else function
        (self.layer,) = resolve_layers(model, INPUT if layer is None else layer)
        self.root, self.copyable = model, _holds(function, model)

    def __call__(self, images: Tensor, target: Tensor) -> Any:
        """What the callable returns."""
        return self.function(images, target)

    def check_classes(self, count: int) -> None:
        """Any number is allowed: class 1 of a single logit is its yes."""


def named_function(
    name: str,
    function: Callable[..., Any],
    model: nn.Module,
    layer: Any,
    *,
    arguments: Mapping[str, Any],
    reading: Reading,
) -> FunctionMaps:
    """A reference of the table, or a user's function by name: ``(model, images, target, **options)``.

    Args:
        name: How it was named.
        function: What that stands for.
        model: The unwrapped classifier.
        layer: What the caller says of where a function's maps are; a reference is at the input.
        arguments: Its options.
        reading: Whose `output` a function gets that has an option of this name.

    Raises:
        OptionError: If it takes something else, or has no such option.
    """
    parameters = parameters_of(function, name)
    places = [p for p in parameters if p.kind in _POSITIONAL]
    several = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
    if len(places) < 3 and not several:
        taken = ", ".join(p.name for p in places)
        raise OptionError(
            f"{name!r} takes ({taken}), but by name it is called with (model, images, target). Let "
            "it take the model, or give the function itself. A function of these three that "
            "returns maps is allowed."
        )
    if name in REFERENCES and layer not in (None, INPUT):
        raise OptionError(
            f"layer is {layer!r}, but {name!r} is a map of the input. Leave layer= out. 'input' is "
            "allowed."
        )
    _check_arguments(name, function, arguments, given=3)
    if reading.output is not None and any(p.name == "output" for p in parameters):
        arguments = {"output": reading.output, **arguments}
    whole = partial(function, model, **arguments)
    return FunctionMaps(whole, model, layer, arguments={}, name=name)


def _check_arguments(
    name: str, function: Callable[..., Any], arguments: Mapping[str, Any], *, given: int
) -> None:
    parameters = parameters_of(function, name)
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    positional = [p.name for p in parameters if p.kind in _POSITIONAL][:given]
    allowed = [p.name for p in parameters if p.kind in named and p.name not in positional]
    if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        for argument in arguments:
            if argument not in allowed:
                raise OptionError(
                    f"{name} has no argument {argument!r}.{did_you_mean(argument, allowed)} It has "
                    f"{', '.join(map(repr, allowed)) or 'none'}."
                )
    check_values(name, function, arguments)


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _holds(function: Any, model: nn.Module) -> bool:
    """Whether `copy.deepcopy` of a callable finds the model in it: not in a function's closure."""
    if isinstance(function, partial):
        held = [*function.args, *function.keywords.values()]
        return _holds(function.func, model) or any(_has(value, model) for value in held)
    owner = getattr(function, "__self__", function)
    return any(_has(value, model) for value in getattr(owner, "__dict__", {}).values())


def _has(value: Any, model: nn.Module) -> bool:
    return isinstance(value, nn.Module) and any(module is model for module in value.modules())
