r"""Networks without biases, for which integrated gradients cost one backward pass.

Convolutions, ReLU and pooling without biases and normalisation are positively homogeneous:
:math:`f(a x) = a f(x)` for a > 0, and f(0) = 0. The gradient is then the same all along the way from
0 to x, so input times gradient equals integrated gradients from a zero baseline, and the map sums to
the logit. Hesse et al. (Fast Axiomatic Attribution for Neural Networks, NeurIPS 2021) call such a
network an X-DNN.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, Literal, cast

import torch
import torchvision.ops
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from explainguide.errors import (
    ExplainGuideError,
    GuidanceError,
    check_option,
    first_line,
    operation,
)
from explainguide.hooks.layers import INPUT, resolve_layers, unwrap
from explainguide.hooks.probe import input_size, probe
from explainguide.hooks.tap import ForwardPass, Tap
from explainguide.models.plain_weights import check_plain_weights, copied
from explainguide.models.same_logits import alive, difference

__all__ = ["ChannelScale", "changes", "is_homogeneous", "remove_bias", "scaling_fault"]

_CHANGES = "xdnn_changes"


class ChannelScale(nn.Module):
    """What is left of a BatchNorm without shift: one factor a channel.

    Args:
        weight: The factors, ``(C,)``; kept as a parameter.
        trainable: Whether it requires a gradient.
    """

    def __init__(self, weight: Tensor, *, trainable: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=trainable)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, C, ...)`` times the factors, in the features' own dtype, as BatchNorm does."""
        return features * self.weight.to(features.dtype).view(-1, *(1,) * (features.ndim - 2))


# The only ones that may have parameters; none may have a bias.
_WEIGHTED = (conv._ConvNd, nn.Linear, nn.PReLU, ChannelScale)
_ALLOWED = (
    *_WEIGHTED,
    *(nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample),
    *(pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd),
    *(pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),  # AlphaDropout adds a constant
    *(nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(torchvision.ops.StochasticDepth, torchvision.ops.DropBlock2d, torchvision.ops.Permute),
)
# By name, because importing timm takes seconds. LayerScale multiplies and adds nothing.
_ALLOWED_OF_TIMM = {
    *("DropPath", "DropBlock2d", "LayerScale", "LayerScale2d", "BlurPool2d"),
    *("FastAdaptiveAvgPool", "AdaptiveAvgMaxPool2d", "AdaptiveCatAvgMaxPool2d"),
    *("DepthToSpace", "SpaceToDepth", "SelectSeq"),
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A factor a channel is left of them, because their running statistics are constants.
_FOLDED = (batchnorm._BatchNorm,)
# They divide by a size of their own input, which is twice as large for 2x.
_SCALE_INVARIANT = (nn.LayerNorm, nn.GroupNorm, instancenorm._InstanceNorm, nn.LocalResponseNorm)


@operation("remove_bias")
def remove_bias(
    model: nn.Module,
    *,
    normalization: Literal["fold", "remove"] = "fold",
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """A copy of a classifier without biases and normalisation: an X-DNN.

    Its logits are others than the model's: what the biases did is gone, so train it, or finetune it
    where the model was trained. `changes` says what was exchanged. The model itself is untouched.

    Costs a copy of the model and four forward passes of one random image, in evaluation mode. Where no
    norm is dropped it ends with a comparison: the model itself, at biases and running means of 0, must
    have the same logits. That is up to three more copies, which are let go of, and four passes.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, K)``.
        normalization: ``"fold"`` turns every BatchNorm into a trainable factor a channel, its weight
            over the running standard deviation; ``"remove"`` drops normalisations of any kind. The
            activation inside of timm's BatchNormAct2d stays.
        image_size: ``(H, W)`` of the random image; by default what the model says, else 224 x 224.

    Returns:
        The new model, in the same modes, on the same device.

    Raises:
        OptionError: For another normalization.
        GuidanceError: For adapters, and weights that are normalised, pruned or parametrized, with the
            call that makes them plain. If modules stay that are not positively homogeneous, each named,
            or if the result is not, because of an operation that is no module; if it does not run; or
            if it loses more than biases, such as what a hook does.

    Example:
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> homogeneous = remove_bias(model, image_size=(4, 4)).eval()
        >>> images = torch.rand(1, 3, 4, 4)
        >>> torch.allclose(homogeneous(3 * images), 3 * homogeneous(images), atol=1e-5)
        True
        >>> for line in changes(homogeneous):
        ...     print(line)
        0: bias removed
        1: BatchNorm2d is now ChannelScale
        4: bias removed
    """
    check_option("normalization", normalization, ("fold", "remove"))
    fold = normalization == "fold"
    model = unwrap(model)
    check_plain_weights(model)
    converted, told = _exchange(model, fold=fold)
    _refuse_modules(converted, fold=fold)
    _refuse_operations(converted, image_size)
    if fold or not any(isinstance(m, (*_SCALE_INVARIANT, *_FOLDED)) for m in model.modules()):
        _refuse_what_is_lost(model, image_size)
    setattr(converted, _CHANGES, changes(model) + told)
    return converted


def _exchange(model: nn.Module, *, fold: bool) -> tuple[nn.Module, list[str]]:
    """The copy, and what is other in it."""
    converted = copied(model)
    told: list[str] = []
    instead: dict[nn.Module, nn.Module] = {}
    for name, module in converted.named_modules():
        changed = _without_norm(module, fold=fold)
        if changed is not module:
            instead[module] = changed
            kinds = [type(part).__name__ for part in changed.children()] or [type(changed).__name__]
            told.append(f"{name}: {type(module).__name__} is now {', '.join(kinds)}")
        elif isinstance(module, _WEIGHTED) and getattr(module, "bias", None) is not None:
            module.bias = None
            told.append(f"{name}: bias removed")
    for module in list(converted.modules()):
        for key, child in module._modules.items():
            if child is not None:
                module._modules[key] = instead.get(child, child)  # under each of its names
    return instead.get(converted, converted), told


@operation("changes")
def changes(model: nn.Module) -> list[str]:
    """What `remove_bias` changed, a line a module; nothing for any other model."""
    return list(getattr(unwrap(model), _CHANGES, []))


def is_homogeneous(model: nn.Module) -> bool:
    """Whether a model is an X-DNN, as far as its modules tell.

    Runs nothing: every module must be one that `remove_bias` allows, without bias, and no parameter
    may be held outside of them. What a forward method does itself, `scaling_fault` finds.

    Example:
        >>> is_homogeneous(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.ReLU()))
        True
        >>> is_homogeneous(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()))
        False
    """
    return next(_offenders(model), None) is None


def scaling_fault(model: nn.Module, layer: str, size: tuple[int, int, int]) -> str | None:
    """What shows that the logits do not scale with a layer, or None if they do.

    None at the input means that the model is positively homogeneous; at a hidden layer, that the part
    above is, that the layer is 0 for a black image, and that nothing reaches the logits past it.

    Runs a random image of ``size`` (C, H, W) with the layer times 0, 1/1024 and 1024: powers of two,
    which are exact in floating point, and so far apart that clamps and small constants show. It runs
    a twin without hooks that shares the parameters, so the model's modes and hooks see nothing.
    Weights that are all zero are random meanwhile, as in `probe`: behind the zeros with which heads
    and residual branches often start, anything would scale.
    """
    twin = _twin(model)
    modules = resolve_layers(twin, layer)
    (name,) = modules
    tap = Tap(twin, modules, replace=False)
    score = partial(probe, twin, size, lambda s: s.detach().item())
    try:
        with tap.alone():
            whole = score()
        passed = cast(ForwardPass, tap.last)
        assert passed.images is not None
        feature, image = passed.features[name].detach(), passed.images.detach()
        limits = torch.finfo(feature.dtype)
        if whole == 0 or not math.isfinite(whole):
            return f"f(x) is {whole:g} for a random x"
        large = 1024 if limits.max > 1e30 else 8  # float16 ends at 65504
        for factor in (0, 1 / large, large):
            with tap.substitute({name: factor * feature}, passed):
                scaled = score()
            error = abs(scaled - factor * whole)
            if not error <= limits.eps**0.5 * abs((factor or 1) * whole):  # NaN is an error too
                return f"f({factor:.4g} x) is not {factor:.4g} f(x)" if factor else "f(0) is not 0"
        if name != INPUT:
            with tap.substitute({INPUT: torch.zeros_like(image)}, passed) as others:
                score()
            if others[name].any():
                return f"layer {name!r} is not 0 for a black image"
    finally:
        tap.remove()
    return None


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers, without hooks, whose owners may be large."""
    memo: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    for m in model.modules():
        memo |= {id(v): OrderedDict() for name, v in vars(m).items() if name.endswith("_hooks")}
    return copy.deepcopy(model, memo)


def _is_frozen_norm(module: nn.Module) -> bool:
    """Of torchvision or timm, which share no class."""
    return type(module).__name__.startswith("FrozenBatchNorm")


def _without_norm(module: nn.Module, *, fold: bool) -> nn.Module:
    """What takes the place of a normalisation; any other module itself."""
    if not (_is_frozen_norm(module) or isinstance(module, _FOLDED)):
        if fold or not isinstance(module, _SCALE_INVARIANT):
            return module
    elif fold and module.running_var is None:
        return module  # without evaluation statistics it is as scale invariant as the others
    # What timm's norms hold besides: dropout and activation.
    parts = {n: m for n, m in module.named_children() if n in ("drop", "act")}
    if fold:
        # A module of its own, not multiplied into the convolution before: that one may be shared,
        # followed by something else as well, or not there (DenseNet), which names do not tell; and
        # finetuning finds the parameters, and their sizes, that the learning rate was made for.
        scale = torch.rsqrt(cast(Tensor, module.running_var) + cast(float, module.eps))
        weight = cast("Tensor | None", module.weight)
        scale = scale if weight is None else weight.detach() * scale.to(weight.dtype)
        trainable = weight is not None and weight.requires_grad
        parts = {"scale": ChannelScale(scale, trainable=trainable).train(module.training), **parts}
    several = nn.Sequential(OrderedDict(parts))
    replacement = several if len(several) > 1 else next(iter(several), nn.Identity())
    replacement.training = module.training
    return replacement


def _offenders(module: nn.Module, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and kinds of the modules that are not positively homogeneous."""
    kind, of_timm = type(module).__name__, type(module).__module__.startswith("timm.")
    own = [parameter for parameter, value in module._parameters.items() if value is not None]
    children = [(key, child) for key, child in module._modules.items() if child is not None]
    if isinstance(module, _ALLOWED) or (of_timm and kind in _ALLOWED_OF_TIMM):
        if getattr(module, "bias", None) is not None or getattr(module, "value", None):
            yield name, f"{kind} with an added constant"
    elif isinstance(module, (*_SCALE_INVARIANT, *_FOLDED)):
        yield name, f"{kind}, which gives the same for 2x as for x"
    elif of_timm and ("attention" in kind.lower() or "attn" in kind.lower()):
        yield name, f"{kind}, whose weights depend on x"
    elif not children and not isinstance(module, _CONTAINERS):
        yield name, kind
    else:
        if own:
            yield name, f"{kind} with parameters of its own, such as {own[0]!r}"
        for key, child in children:
            yield from _offenders(child, f"{name}.{key}" if name else key)


def _refuse_modules(model: nn.Module, *, fold: bool) -> None:
    by_kind: dict[str, list[str]] = {}
    for name, kind in _offenders(model):
        by_kind.setdefault(kind, []).append(repr(name) if name else "the model itself")
    told = [
        f"{names[0]} {f'and {len(names) - 1} more ' if len(names) > 1 else ''}({kind})"
        for kind, names in by_kind.items()
    ]
    more = [f"{len(told) - 5} more kinds"] if len(told) > 5 else []
    drop = "normalization='remove' drops normalisations. "
    norms = fold and any(isinstance(m, _SCALE_INVARIANT) for m in model.modules())
    if told:
        raise GuidanceError(
            f"{type(model).__name__} has modules that do not give a * f(x) for a * x: "
            f"{'; '.join(told[:5] + more)}. Exchange them, activations for ReLU. "
            f"{drop if norms else ''}Convolutions, linear layers, BatchNorm, ReLU, LeakyReLU, PReLU, "
            "pooling, dropout, upsampling and containers of these are allowed."
        )


@torch.no_grad()
def _refuse_what_is_lost(model: nn.Module, image_size: tuple[int, int] | None) -> None:
    """Hold the conversion against the model itself where its biases and running means are 0."""
    model = copied(alive(model))
    for module in model.modules():
        if isinstance(module, (*_WEIGHTED, *_FOLDED)) or _is_frozen_norm(module):
            for key in ("bias", "running_mean"):
                if isinstance(getattr(module, key, None), Tensor):
                    getattr(module, key).zero_()
    converted, _ = _exchange(model, fold=True)
    image = _random_image(model, image_size)
    for network in (converted, _twin(converted)):  # a twin has no hooks
        gap = difference(model, network, image)
        if gap is not None:
            raise GuidanceError(
                f"without biases the logits of {type(model).__name__} are not those of what "
                f"it becomes: they differ {gap}. Look for hooks, and for norms with a forward of "
                "their own. Layers of torch, timm and torchvision are allowed."
            )


def _random_image(model: nn.Module, image_size: tuple[int, int] | None) -> Tensor:
    channels, height, width = input_size(model)
    size = image_size or (height, width)
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    return image.to(next(model.parameters(), image))


def _refuse_operations(model: nn.Module, image_size: tuple[int, int] | None) -> None:
    channels, height, width = input_size(model)
    height, width = image_size or (height, width)
    try:
        fault = scaling_fault(model, INPUT, (channels, height, width))
    except ExplainGuideError:
        raise
    except (
        AssertionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # not made for such an image
        raise GuidanceError(
            f"the result did not run on a random image of {channels} x {height} x {width} "
            f"({first_line(error)}). Give the size that the model was made for with "
            "image_size=(height, width). One image must be enough input."
        ) from error
    if fault is not None:
        raise GuidanceError(
            f"without biases {type(model).__name__} is still not positively homogeneous: "
            f"{fault}. Look in its forward methods for operations such as F.gelu, torch.sigmoid, a "
            "clamp or an added constant. Those with f(a * x) = a * f(x) are allowed."
        )
