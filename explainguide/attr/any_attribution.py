"""Any attribution as an `Explainer`: the package's, Captum's, pytorch-grad-cam's, or one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import isclass
from typing import Any

from captum.attr import Attribution
from torch import nn

from explainguide.attr.base import ATTRIBUTIONS, LayerMap
from explainguide.attr.explainer import Explainer, Source
from explainguide.attr.of_callable import FunctionMaps, OwnMaps, named_function
from explainguide.attr.of_cam import PACKAGE, CamMaps, NamedCamMaps, is_cam
from explainguide.attr.of_captum import CaptumMaps, build_captum
from explainguide.attr.placement import place_attribution
from explainguide.attr.references import REFERENCES
from explainguide.errors import OptionError, check_flag, check_option, operation
from explainguide.hooks.layers import resolve_layers, unwrap
from explainguide.hooks.reading import Output, Reading, check_reading
from explainguide.named import call_own, find_named, parameters_of

__all__ = ["as_explainer", "is_own"]

_FORMS = (
    "'captum:Class', 'pytorch_grad_cam:Class', 'package.module:function' (model, images, target) "
    "-> maps, an object of these, or a callable (images, target) -> maps"
)


@operation("as_explainer", default=True)
def as_explainer(
    attribution: Any,
    model: nn.Module,
    *,
    layer: str | nn.Module | None = None,
    arguments: Mapping[str, Any] | None = None,
    interpolate: bool = True,
    name: str | None = None,
    output: Output | None = None,
    layout: str | None = None,
    grid: Sequence[int] | None = None,
    prefix_tokens: int | Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
) -> Explainer:
    """Any attribution as an `Explainer`, so that metrics can judge it.

    Maps of channels are summed over them: those of the input, ``(N, C, H, W)``, and those of a layer,
    whose tokens are read as those of the package's own attributions. Class tokens are left out.

    Args:
        attribution: One of

            - a name or an object of `explainguide.attr`: ``"ixg"``, ``GradCam(model, "layer4")``;
            - a reference by name: ``"rise"``, ``"edge"``, ``"center"``, ``"random"``;
            - a class of Captum's by name, ``"captum:GuidedBackprop"``, or an object of one;
            - a class of pytorch-grad-cam's by name, ``"pytorch_grad_cam:GradCAMPlusPlus"``, or an
              object;
            - a callable ``(images, target) -> maps``, or by name, ``"package.module:function"``,
              one that takes ``(model, images, target)``. Maps are tensors or numpy arrays, ``(N,
              H, W)`` or ``(N, 1, H, W)``, or smaller ones of the same proportions.
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        layer: Dotted name or module, for what is at a layer; None is its own, or the last whose
            places reach the logits.
        arguments: Keyword arguments: of Captum's ``attribute``, of the call of pytorch-grad-cam's
            object, of a reference or function, of the constructor of an attribution of
            `explainguide.attr`. Where Captum's `Occlusion` is given no ``sliding_window_shapes``
            it hides windows of a seventh of each side, by half of it at a time; where a method
            that perturbs features is given no ``feature_mask`` they are 7 x 7 parts of the image,
            all channels together. Captum's passes of several samples or steps take up to 128 images.
        interpolate: Whether maps are brought to the image's size, bilinearly.
        name: What tables call it; by default as it is named above.
        output: Which of several things that the model returns are the logits.
        layout: As `explainguide.attr.InputXGradient` takes it.
        grid: Likewise.
        prefix_tokens: Likewise.
        image_size: Likewise.

    Raises:
        OptionError: For what is none of these, an argument that it does not have or that is missing, or
            an object of another model.
        LayerError: If there is no such layer, or none that can be explained.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> explain = as_explainer("captum:Saliency", model, arguments={"abs": False})
        >>> explain(torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0])).shape
        torch.Size([5, 8, 8])
        >>> explain.name, explain.layer
        ('captum:Saliency', 'input')
    """
    if isinstance(attribution, Explainer):
        return _again(attribution, model, layer, arguments)
    check_flag("interpolate", interpolate)
    if not (arguments is None or isinstance(arguments, Mapping)):
        raise OptionError(
            f"arguments is {arguments!r}. Write a dict, as {{'n_steps': 8}}. Keyword arguments of the "
            "attribution are allowed."
        )
    model = unwrap(model, compiled_parts=True)
    reading = check_reading(
        output=output,
        layout=layout,
        grid=grid,
        prefix_tokens=prefix_tokens,
        image_size=image_size,
    )
    source = _find(attribution, model, layer, dict(arguments or {}), reading)
    return Explainer(source, model, reading=reading, interpolate=interpolate, name=name)


def is_own(attribution: Any) -> bool:
    """Whether an attribution is the package's, or derived from one: its maps come of one forward pass.

    A name that is unknown is taken for one of them.

    Raises:
        OptionError: For ``package.module:name`` that cannot be imported.
    """
    if isinstance(attribution, str):
        if ":" not in attribution:
            return attribution not in REFERENCES
        attribution = _named(attribution)
        return isclass(attribution) and issubclass(attribution, LayerMap)
    kind = attribution if isclass(attribution) else type(attribution)
    return issubclass(kind, LayerMap)


def _again(
    explainer: Explainer, model: nn.Module, layer: Any, arguments: Mapping[str, Any] | None
) -> Explainer:
    if explainer.model is not unwrap(model, compiled_parts=True):
        raise OptionError(
            f"the explainer {explainer.name!r} was made for another model. Make it for this one. A "
            "name is allowed too."
        )
    if arguments:
        raise OptionError(
            f"arguments is {dict(arguments)!r}, but the explainer {explainer.name!r} has its own. "
            "Give them where it is made. None is allowed."
        )
    _check_layer(explainer, explainer.model, layer)
    return explainer


def _check_layer(found: Explainer | Source, model: nn.Module, layer: Any) -> None:
    if layer is None or "+".join(resolve_layers(model, layer)) == found.layer:
        return
    raise OptionError(
        f"layer is {layer!r}, but {found.name} is at {found.layer!r}. Leave layer= out, or build "
        "it there. They must agree."
    )


def _named(name: str) -> Any:
    """What ``package.module:name`` stands for; ``captum`` is ``captum.attr``."""
    module, _, rest = name.partition(":")
    allowed = "'captum:Class' and 'package.module:function' are allowed."
    if module == PACKAGE:
        allowed = f"`pip install 'explainguide[cam]'` brings {PACKAGE}. {allowed}"
    module = "captum.attr" if module == "captum" else module
    return find_named(f"{module}:{rest}", allowed=allowed)


def _find(
    attribution: Any, model: nn.Module, layer: Any, arguments: dict[str, Any], reading: Reading
) -> Source:
    if is_own(attribution):
        if isinstance(attribution, str) and ":" not in attribution:
            known = [*ATTRIBUTIONS, *REFERENCES]
            check_option("attribution", attribution, known, also=_FORMS)
        return OwnMaps(attribution, model, layer, arguments=arguments, reading=reading)
    if isinstance(attribution, str):
        named = REFERENCES[attribution] if attribution in REFERENCES else _named(attribution)
        if not isclass(named):
            return named_function(
                attribution, named, model, layer, arguments=arguments, reading=reading
            )
        if issubclass(named, Attribution):
            return _of_captum(named, model, layer, arguments, reading)
        if is_cam(named):
            layers = place_attribution(model, "ixg", layer, reading=reading).layers
            return NamedCamMaps(named, model, layers, reading=reading, arguments=arguments)
        kind: Any = named
        attribution = call_own(attribution, partial(kind, model))
    if isclass(attribution):
        kind, package = attribution.__name__, attribution.__module__.partition(".")[0]
        raise OptionError(
            f"attribution is the class {kind}. Build it, {kind}(model), or give its name, "
            f"'{package}:{kind}'. A name or an object is allowed."
        )
    found: Source
    if isinstance(attribution, Attribution):
        found = CaptumMaps(attribution, model, reading=reading, arguments=arguments, single=False)
    elif is_cam(type(attribution)):
        found = CamMaps(attribution, model, arguments=arguments)
    elif callable(attribution) and not isinstance(attribution, nn.Module):
        return FunctionMaps(attribution, model, layer, arguments=arguments)
    else:
        raise OptionError(
            f"attribution is a {type(attribution).__name__}, which makes no maps. Use 'ixg'. "
            f"{', '.join(map(repr, [*ATTRIBUTIONS, *REFERENCES]))}, {_FORMS} are allowed."
        )
    _check_layer(found, model, layer)
    return found


def _of_captum(
    kind: type[Attribution],
    model: nn.Module,
    layer: Any,
    arguments: dict[str, Any],
    reading: Reading,
) -> Source:
    name: str | None = None
    module = None
    if any(p.name == "layer" for p in parameters_of(kind, kind.__name__)):
        layers = place_attribution(model, "ixg", layer, reading=reading).layers
        ((name, module),) = layers.items()
        if module is None:
            raise OptionError(
                f"layer is 'input', but captum:{kind.__name__} explains a module's output. Name a "
                "layer, or leave layer= out. A dotted name is allowed."
            )
    method = build_captum(kind, model, module, reading)
    found = CaptumMaps(method, model, reading=reading, arguments=arguments, single=True)
    if name is None:
        _check_layer(found, model, layer)
    elif name != found.layer:
        found.read_member(name)
    return found
