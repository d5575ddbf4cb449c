"""From a classifier of timm or torchvision to a B-cos network."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from explainguide.bcos.calibration import calibrate, match_scales, random_images
from explainguide.bcos.classifier import (
    Head,
    classifier_first,
    find_head,
    pool_after_classifier,
    replace,
)
from explainguide.bcos.convert_layers import convert_layers
from explainguide.bcos.explanations import curvature, missing_share
from explainguide.bcos.explanations import logit_bias as logit_bias_of
from explainguide.bcos.layer_forms import as_conv, bcos_unit
from explainguide.bcos.modules import LogitBias
from explainguide.bcos.record import Conversion, conversion
from explainguide.bcos.settings import ConversionSettings, Numbers, resolve_settings
from explainguide.bcos.transform import Gain
from explainguide.bcos.units import BcosLinear
from explainguide.errors import ExplainGuideError, GuidanceError, OptionError, first_line, operation
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.layers import unwrap
from explainguide.hooks.logits import check_logits
from explainguide.models.plain_weights import copied
from explainguide.models.same_logits import alive, difference

__all__ = ["bcosify", "convert"]


@operation("bcosify")
def bcosify(
    model: nn.Module,
    b: float = 2.0,
    *,
    norm: str | Callable[[int], nn.Module] | None = None,
    max_out: int = 1,
    logit_bias: float | None = None,
    keep_weights: bool = True,
    bias: bool | None = None,
    activations: str | None = None,
    gain: Gain | None = None,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    r"""A B-cos version of a classifier: its logits, less biases, are :math:`W(x)\,x`.

    Convolutions and linear layers become B-cos units; norms lose what is no multiple of their
    input; the stem takes the image and its inverse (`AddInverse`), in [0, 1]; the classifier comes
    before the global pooling where nothing nonlinear lies between; attention keeps its softmax,
    whose weights are constants of explanations.

    With `keep_weights` this is B-cosification: activations and max pooling stay, and at b = 1 the
    network returns the logits of `model`, to rounding. Raise b with `set_b` while fine-tuning, or
    start at 2, as published. Without, it is a network of the first papers to train from scratch:
    new weights of length 1, no activations, average pooling.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``, of timm or torchvision, or built of
            their layers. It is copied, and stays as it is.
        b: The exponent B, 1 or more.
        norm: ``"uncentered"``; ``"detached"`` keeps the centring of layer and group norms, which is
            linear (batch norm has an uncentred form only); or a function from the number of
            channels to a module. Default: detached with `keep_weights`, else uncentred.
        max_out: Number of filters of which each output is the largest; above 1 only without
            `keep_weights`.
        logit_bias: Added to every logit. Default: the classifier's own bias with `keep_weights`,
            else ``-log(K - 1)``.
        keep_weights: Whether the network starts from the weights of `model`.
        bias: Whether biases are kept; no map shows what they add. Default: at b = 1 with
            `keep_weights`, where the logits would change without them, and not otherwise. Without
            biases, position embedding and class token of a ViT act on queries and keys only.
        activations: ``"keep"`` or ``"drop"``. Default: kept with `keep_weights`.
        gain: What is left of the weights' length, see `BcosConv2d`. Default: ``"norm"`` with
            `keep_weights`, else ``"unit"``; ``"power"`` is the published B-cosification.
        mean: What the training script of `model` subtracted from its images, by channel. The new
            stem does so itself, without a bias: ``((1 - m) x - m (1 - x)) / s``.
        std: What it divided by.
        image_size: ``(H, W)`` of the random images that are run while converting; by default what the
            model says, else 224 x 224.

    Returns:
        A new network: ``(N, 6, H, W)`` to ``(N, K)``. ``conversion(network)`` says what was
        changed, layer by layer, and what could not be.

    With `keep_weights` a conversion ends with a comparison of logits at b = 1, on four random images.
    It costs two forward passes; for another b than 1 a second conversion, and a copy of the model where
    parameters are all zero or in half precision, which would hide a difference. They are let go of.

    Raises:
        GuidanceError: For adapters, and weights that are normalised, pruned or parametrized, with the
            call that makes them plain; if a forward does not run with B-cos layers; or if that
            comparison fails, with the difference and the module where it begins.
        OptionError: For options that are not allowed, a model that is a B-cos network already,
            without a convolution or linear layer, or with layers that have no B-cos form, which are
            named.

    References:
        Boehle et al., 2022 and 2024 (B-cos networks); Arya et al., 2024 (B-cosification).

    Example:
        >>> import torchvision
        >>> from explainguide.bcos import AddInverse
        >>> network = bcosify(torchvision.models.resnet18(num_classes=10))
        >>> network(AddInverse()(torch.rand(1, 3, 64, 64))).shape
        torch.Size([1, 10])
    """
    settings = resolve_settings(
        model,
        b=b,
        norm=norm,
        max_out=max_out,
        logit_bias=logit_bias,
        keep_weights=keep_weights,
        bias=bias,
        activations=activations,
        gain=gain,
        mean=mean,
        std=std,
        image_size=image_size,
    )
    network = convert(model, settings)
    try:
        if settings.keep_weights:
            _compare(model, network, settings)
        _start(network, settings)
    except ExplainGuideError:
        raise
    except Exception as error:  # whatever a forward does with layers that are others now
        raise GuidanceError(
            f"the forward of {type(model).__name__} does not run with layers that are B-cos "
            f"layers, on images with their inverse ({first_line(error)}). Leave what it does "
            "to the image to mean and std, and let it call its layers. A forward that gives the image "
            "to a convolution is allowed."
        ) from error
    return network


def convert(model: nn.Module, settings: ConversionSettings) -> nn.Module:
    """`bcosify` without its last step, which gives norms and scales something to start with."""
    with torch.random.fork_rng(devices=[], enabled=settings.keep_weights):  # layers draw in vain
        network = copied(unwrap(model))
        tied = _tied(network)
        modes = {module.training for module in network.modules()}
        report = Conversion()
        head = _head(network, settings.size)
        if not head.stems:
            report.left.append(
                "no convolution takes three channels, so images come as they did, without their inverse"
            )
        _convert_head(network, settings, head, report)
        convert_layers(network, settings, head.stems, report)
        _name_parted(network, tied, report)
        if len(modes) == 1:
            network.train(modes.pop())
    network.conversion = report  # type: ignore[assignment]
    return network


def _head(model: nn.Module, size: tuple[int, int, int]) -> Head:
    try:
        with evaluating(model):
            return find_head(model, size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(
            f"{type(model).__name__} did not run on random images of {size[0]} x {size[1]} x "
            f"{size[2]} ({first_line(error)}). Give the size that it was made for with "
            "image_size=(height, width). It must map a batch of images to logits."
        ) from error


def _convert_head(
    model: nn.Module,
    settings: ConversionSettings,
    head: Head,
    report: Conversion,
) -> None:
    for name in head.classifiers:
        old = cast(nn.Linear, model.get_submodule(name))
        unit = bcos_unit(old, _without_bias(settings))
        if not isinstance(unit, BcosLinear):
            report.left.append(
                f"{name} is a {type(old).__name__}: no B-cos classifier is known for it"
            )
            continue
        bias = _logit_bias(old, settings).to(old.weight).train(old.training)
        # A norm between is not linear, so the order matters to a network that exists already.
        movable = head.pool is not None and not (head.norms and settings.keep_weights)
        if movable:
            classifier_first(model, head, as_conv(unit), bias)
            report.changes[cast(str, head.pool)] = "pooling -> BcosConv2d, pooling"
            report.changes[name] = "Linear -> LogitBias"
        elif pool_after_classifier(model, as_conv(unit), bias):
            report.changes[name] = "pooling, Linear -> BcosConv2d, pooling, LogitBias"
        else:
            both = nn.Sequential(OrderedDict(classifier=unit, logit_bias=bias))
            replace(model, name, both.train(old.training))
            report.changes[name] = "Linear -> BcosLinear, LogitBias"
    if not head.classifiers:
        report.left.append("no linear layer returns the logits, so there is no logit bias")


def _without_bias(settings: ConversionSettings) -> ConversionSettings:
    """A classifier's bias is that of the logits, whatever becomes of the others."""
    return dataclasses.replace(settings, bias=False)


def _logit_bias(old: nn.Linear, settings: ConversionSettings) -> LogitBias:
    asked = settings.logit_bias
    if not settings.keep_weights and asked is None:
        asked = -math.log(max(old.out_features - 1, 1))
    if asked is not None or old.bias is None:
        return LogitBias(torch.tensor(asked or 0.0, dtype=torch.float64))
    return LogitBias(old.bias, trainable=old.bias.requires_grad)


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of the same parameter in several modules."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():  # each once, so that a module of two names is no tie
        for key, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(f"{name}.{key}".lstrip("."))
    return [together for together in names.values() if len(together) > 1]


def _name_parted(model: nn.Module, tied: list[list[str]], report: Conversion) -> None:
    """Say which parameters were one and are several now."""
    now = dict(model.named_parameters(remove_duplicate=False))
    for names in tied:
        parameters = [now[name] for name in names if name in now]
        if parameters and (len(parameters) < len(names) or len(set(parameters)) > 1):
            report.left.append(
                f"{', '.join(names)}: one parameter before, and now trained apart from each other"
            )


def _compare(model: nn.Module, network: nn.Module, settings: ConversionSettings) -> None:
    """Hold the network against the model at b = 1, where the logits are promised to be the same.

    Another b, or no biases, promise nothing; then a second conversion at b = 1 stands for the first.
    """
    as_promised = dataclasses.replace(
        settings,
        b=1.0,
        gain="norm",
        norm="detached",
        bias=True,
        logit_bias=None,
        keep_activations=True,
    )
    model = unwrap(model)
    original = alive(model)
    if original is not model or settings != as_promised:
        network = convert(original, as_promised)
    encoded = plain = random_images(network, settings.size[1:])
    if encoded.shape[1] == 2 * settings.size[0]:  # with the inverse, which the stem normalises
        mean, std = (plain.new_tensor(v)[:, None, None] for v in (settings.mean, settings.std))
        plain = (encoded[:, : settings.size[0]] - mean) / std
    where = difference(original, network, plain, encoded)
    if where is not None:
        raise GuidanceError(
            f"at b = 1 the network's logits differ from those of {type(model).__name__} "
            f"{where}, so a part of it computes what no conversion sees. Look for hooks, layers with "
            "a forward of their own, and weights outside of modules. Layers of torch, timm and "
            "torchvision are allowed."
        )


def _start(model: nn.Module, settings: ConversionSettings) -> None:
    """Start norms and scales with an example, and find with it what no list of layers can show."""
    images = random_images(model, settings.size[1:])
    with evaluating(model):
        if settings.b != 1:
            calibrate(model, images)
        if settings.b != 1 and (settings.keep_weights or _vanishes(model, images)):
            match_scales(model, images)
        missing = 0.0 if settings.bias else missing_share(model, images)
        bent = curvature(model, images[:1])
    tolerance = 1e-4 if images.dtype in (torch.float32, torch.float64) else 0.1
    if not missing < tolerance:
        conversion(model).left.append(
            f"maps miss {missing:.2%} of a logit: a function in the forward adds a constant or is "
            "no multiple of its input"
        )
    if not bent < 1e-8:  # nothing is left of it where every factor is held
        conversion(model).left.append(
            "maps are not exact: a function in the forward is no linear map with constant factors"
        )


@torch.no_grad()
def _vanishes(model: nn.Module, images: Tensor) -> bool:
    """Whether too many units in a row without a norm leave nothing of the logits."""
    logits = check_logits(model(images)) - logit_bias_of(model)
    return not logits.abs().max() > 1e-4
