"""From a name to a model: timm's, torchvision's, or what a function of the user's returns."""

from __future__ import annotations

import inspect
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torchvision
from torch import nn

from explainguide.errors import DataError, OptionError, did_you_mean, operation
from explainguide.models.weights import fit_weights, load_weights, short_reason
from explainguide.named import call_own, find_named

__all__ = ["build_model", "load_weights", "needs_num_classes", "set_image_size", "small_cnn"]

_FORMS = "'resnet18', 'timm:resnet18', 'torchvision:resnet18' or 'package.module:function'"


@operation("build_model")
def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Build a classifier, images ``(N, 3, H, W)`` to logits ``(N, num_classes)``.

    Args:
        name: ``"resnet18"`` or ``"timm:resnet18"`` is timm's, ``"torchvision:resnet18"``, or a name
            that only torchvision has (``"swin_t"``), torchvision's. ``"package.module:function"``
            calls a function with ``num_classes=...`` (without it where `num_classes` is None, or
            where the function does not take it), which returns the model.
        num_classes: Number of logits; None leaves the model's own.
        pretrained: Download the library's weights for this name.
        weights: A file to load instead; see `load_weights`. A head for another number of classes
            is left as it was initialised.
        image_size: Side of the square images, for timm's models that are built for one size.

    Raises:
        OptionError: For a name that is not known, or options that exclude one another.
        DataError: If the weights cannot be downloaded, read, or are those of another model.

    Example:
        >>> model = build_model("resnet18", num_classes=3)
        >>> model.fc.out_features
        3
    """
    if pretrained and weights is not None:
        raise OptionError(
            f"pretrained=True and weights={os.fspath(weights)!r} exclude one another. "
            "Leave one out."
        )
    if num_classes is not None and num_classes < 1:
        raise OptionError(
            f"num_classes is {num_classes}. Count the classes of the data set. "
            "A positive number is allowed."
        )
    model = _builder(name)(num_classes, pretrained)
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"{name!r} returned a {type(model).__name__}. Return the model itself. "
            "An nn.Module is allowed."
        )
    if weights is not None:
        load_weights(model, weights)
    if image_size is not None:
        set_image_size(model, image_size)
    return model


@operation("set_image_size")
def set_image_size(model: nn.Module, size: int) -> None:
    """Make a model of timm that is built for one size take square images of another.

    Models that take images of any size are left as they are.

    Raises:
        OptionError: If the model cannot take this size.
    """
    if not hasattr(model, "set_input_size"):
        return
    try:
        model.set_input_size(img_size=(size, size))  # type: ignore[operator]
    except (AssertionError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"{type(model).__name__} cannot take images of {size} x {size} "
            f"({short_reason(error)}). Use a multiple of its patch size."
        ) from error


def _builder(name: str) -> Callable[[int | None, bool], Any]:
    kind, colon, rest = name.partition(":")
    theirs = torchvision.models.list_models(module=torchvision.models)
    if not colon:
        only_theirs = name in theirs and name not in timm.list_models()
        kind, rest = "torchvision" if only_theirs else "timm", name
    if kind == "timm":
        _check_name(rest, name, timm.list_models(), "timm")
        return lambda classes, pretrained: _from_timm(rest, classes, pretrained)
    if kind == "torchvision":
        _check_name(rest, name, theirs, "torchvision")
        return lambda classes, pretrained: _from_torchvision(rest, classes, pretrained)
    factory = find_named(name, allowed=f"{_FORMS} are allowed.")
    return lambda classes, pretrained: _from_function(factory, name, classes, pretrained)


def _check_name(name: str, given: str, known: Sequence[str], library: str) -> None:
    # A timm name may name its weights too: resnet18.a1_in1k.
    if name.split(".")[0] not in known:
        raise OptionError(
            f"unknown model {given!r}.{did_you_mean(name, known)} {library} has "
            f"{len(known)} models. {_FORMS} are allowed."
        )


def _from_timm(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    return _download(
        name, pretrained, lambda: timm.create_model(name, pretrained=pretrained, **options)
    )


def _from_torchvision(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    model = torchvision.models.get_model(name, weights=None, **options)
    if pretrained:
        chosen = torchvision.models.get_model_weights(name)["DEFAULT"]
        state = _download(name, True, lambda: chosen.get_state_dict(progress=False))
        if name in ("googlenet", "inception_v3"):
            state = {k: v for k, v in state.items() if not k.lower().startswith("aux")}
        fit_weights(model, state, source=f"torchvision:{name}")
    return model


def _from_function(
    factory: Callable[..., Any], name: str, num_classes: int | None, pretrained: bool
) -> Any:
    if pretrained:
        raise OptionError(
            f"pretrained=True, but {name!r} is a function. Load the weights in it, or "
            "give a file. Names of timm and torchvision can be pretrained."
        )
    if num_classes is not None:
        takes = {"num_classes": num_classes} if _takes_classes(factory) else {}
        return call_own(name, factory, options=takes)
    if _must_know_classes(factory):
        raise OptionError(
            f"{name!r} needs to know the number of classes, and num_classes is None. "
            "Name it (--num-classes on the command line). A positive integer is allowed."
        )
    return call_own(name, factory)


def needs_num_classes(name: str) -> bool:
    """Whether a name stands for a user's function that must be told the number of classes."""
    kind, _, rest = name.partition(":")
    if not rest or kind in ("timm", "torchvision"):
        return False
    return _must_know_classes(find_named(name, allowed=f"{_FORMS} are allowed."))


def _must_know_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(factory).parameters.get("num_classes")
    except ValueError:  # written in C
        return False
    return parameter is not None and parameter.default is parameter.empty


def _takes_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # written in C
        return True
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _download(name: str, pretrained: bool, build: Callable[[], Any]) -> Any:
    if not pretrained:
        return build()
    try:
        return build()
    except Exception as error:  # whatever a library raises without network, cache or weights
        raise DataError(
            f"no pretrained weights for {name!r} ({short_reason(error)}). "
            "Check the network, or give a file with weights=. Random weights need pretrained=False."
        ) from error


def convolution(channels: int, width: int, *, stride: int = 1) -> list[nn.Module]:
    """A 3 x 3 convolution with BatchNorm and GELU, as modules in order.

    GELU rather than ReLU, because the localization loss trains through the second derivative, of
    which ReLU has none.
    """
    kernel = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return [kernel, nn.BatchNorm2d(width), nn.GELU()]


@operation("small_cnn")
def small_cnn(
    num_classes: int, *, widths: Sequence[int] = (16, 16, 32, 32, 64, 64), in_channels: int = 3
) -> nn.Sequential:
    """Six 3 x 3 convolutions with BatchNorm and GELU, for images of about 50 pixels.

    Three stages of two convolutions; the resolution halves between stages.

    Args:
        num_classes: Number of logits.
        widths: Channels of the six convolutions.
        in_channels: Channels of the image.

    Returns:
        A network whose layers ``stage1``, ``stage2``, ``stage3`` can be guided, as can "input".

    Raises:
        OptionError: If there are not six widths.

    Example:
        >>> [name for name, _ in small_cnn(10).named_children()]
        ['stage1', 'stage2', 'stage3', 'pool', 'flatten', 'head']
    """
    if len(widths) != 6:
        raise OptionError(
            f"widths has {len(widths)} values, {tuple(widths)}. Give one a convolution. "
            "Six numbers are allowed."
        )
    channels = [in_channels, *widths]
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in range(3):
        layers: list[nn.Module] = [] if stage == 0 else [nn.MaxPool2d(2)]
        for i in (2 * stage, 2 * stage + 1):
            layers += convolution(channels[i], channels[i + 1])
        stages[f"stage{stage + 1}"] = nn.Sequential(*layers)
    stages["pool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["head"] = nn.Linear(channels[-1], num_classes)
    return nn.Sequential(stages)
