"""The published B-cos networks, and their weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import ConvNeXt, ResNet

from explainguide.bcos.convert import bcosify
from explainguide.bcos.modules import LogitBias
from explainguide.bcos.norms import BatchNormUncentered2d
from explainguide.bcos.simple_vit import SimpleViT
from explainguide.bcos.transform import BcosUnit
from explainguide.bcos.units import BcosLinear
from explainguide.errors import DataError, OptionError, did_you_mean, operation
from explainguide.hooks.layers import unwrap
from explainguide.models.weights import name_some

__all__ = ["load_published", "published"]


def _vit(dim: int, heads: int, depth: int) -> Callable[..., nn.Module]:
    return partial(SimpleViT, dim=dim, heads=heads, depth=depth)


def _vitc(dim: int, heads: int, depth: int, *stem: int) -> Callable[..., nn.Module]:
    return partial(SimpleViT, dim=dim, heads=heads, depth=depth, patch_size=1, stem=stem)


# The norm of those that are converted: "detached" keeps the centring of ConvNeXt's.
_CONVERTED: dict[str, Any] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), "uncentered"),
    "resnext50_32x4d": "uncentered",
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), "uncentered"),
    **dict.fromkeys(("resnet50_long", "resnet152_long", "densenet121_long"), "uncentered"),
    **dict.fromkeys(("convnext_tiny", "convnext_base"), "detached"),
    **dict.fromkeys(("convnext_tiny_bnu", "convnext_base_bnu"), BatchNormUncentered2d),
}
_BUILT: dict[str, Callable[..., nn.Module]] = {
    "simple_vit_ti_patch16_224": _vit(192, 3, 12),
    "simple_vit_s_patch16_224": _vit(384, 6, 12),
    "simple_vit_b_patch16_224": _vit(768, 12, 12),
    "simple_vit_l_patch16_224": _vit(1024, 16, 14),
    "vitc_ti_patch1_14": _vitc(192, 3, 11, 24, 48, 96, 192),
    "vitc_s_patch1_14": _vitc(384, 6, 11, 48, 96, 192, 384),
    "vitc_b_patch1_14": _vitc(768, 12, 11, 64, 128, 128, 256, 256, 512),
    "vitc_l_patch1_14": _vitc(1024, 16, 13, 64, 128, 128, 256, 256, 512),
}


@operation("published")
def published(name: str, num_classes: int = 1000) -> nn.Module:
    """A published B-cos network, without its weights.

    The weights are files of the releases of ``B-cos/B-cos-v2`` on GitHub; `load_published` loads them.
    All have B = 2, no biases, no activations and the logit bias ``-log(K - 1)``. Their norms:

    ================================================  ===============================================
    name                                              norm
    ================================================  ===============================================
    resnet18, 34, 50, 101, 152, resnext50_32x4d       `BatchNormUncentered2d`
    densenet121, 161, 169, 201                        `BatchNormUncentered2d`
    resnet50_long, resnet152_long, densenet121_long   the same, trained for longer
    convnext_tiny, convnext_base                      over channels, centred: ``norm="detached"``
    convnext_tiny_bnu, convnext_base_bnu              `BatchNormUncentered2d`
    simple_vit_{ti,s,b,l}_patch16_224                 `DetachableLayerNorm`, in `SimpleViT`
    vitc_{ti,s,b,l}_patch1_14                         and `DetachableGroupNorm2d` in its stem
    ================================================  ===============================================

    Args:
        name: As the authors name it, in ``bcos.pretrained`` and torch.hub. Their vgg11_bnu is not among
            these: no network of torchvision has its shape.
        num_classes: K.

    Returns:
        ``(N, 6, H, W)`` to ``(N, K)``.

    Raises:
        OptionError: For another name.

    References:
        Boehle et al., 2024.
    """
    if name in _BUILT:
        return _BUILT[name](num_classes)
    if name not in _CONVERTED:
        allowed = [*_CONVERTED, *_BUILT]
        raise OptionError(
            f"unknown network {name!r}.{did_you_mean(name, allowed)} "
            f"{', '.join(allowed)} are allowed."
        )
    plain = name.removesuffix("_long").removesuffix("_bnu")
    model = torchvision.models.get_model(plain, num_classes=num_classes)
    # Small images: what is found out with them does not depend on their size.
    return bcosify(model, norm=_CONVERTED[name], keep_weights=False, image_size=(64, 64))


@operation("load_published")
def load_published(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Load the weights of a network of the authors' package (B-cos-v2), in place.

    Their logit bias is a number in the program and none of the weights; the model keeps its own. A
    1 x 1 convolution of theirs that is a linear layer here (in ConvNeXt) gives it the convolution's
    epsilon, an attribute that is in no state dict.

    Args:
        model: A network of `published`, or ``bcosify(model, norm=..., keep_weights=False)`` of
            torchvision's ResNet, ResNeXt, DenseNet or ConvNeXt. Networks of equal weights may
            have different norms: see `published`.
        state_dict: Tensors by their names, also with the prefixes of DistributedDataParallel, Lightning
            (``model.``) and of a network with its logit bias behind it (``0.``, Model Guidance).

    Returns:
        The model.

    Raises:
        OptionError: If the model was not made so.
        DataError: If weights are missing, left over, or of another shape; the model is then unchanged.

    Example:
        >>> network = published("vitc_ti_patch1_14")
        >>> weights = torch.load("bcos_vitc_ti_patch1_14-ddd6193a77.pth")  # doctest: +SKIP
        >>> network = load_published(network, weights)  # doctest: +SKIP
    """
    inner = unwrap(model)
    units = [module for module in inner.modules() if isinstance(module, BcosUnit)]
    if not units or any(unit.gain != "unit" for unit in units):
        raise OptionError(
            f"this {type(inner).__name__} is not of the published form. Build it with "
            "published(name), or bcosify(model, keep_weights=False). B-cos units that use no more than "
            "the direction of their weights (gain 'unit') are allowed."
        )
    own = _weights(inner)
    loaded, convolutions = _fit(inner, own, state_dict)
    inner.load_state_dict(loaded, strict=False)
    for unit in units:
        unit.scale = None  # what bcosify may have given a unit that no norm follows
    for key in convolutions:
        linear = inner.get_submodule(key.removesuffix(".weight"))
        assert isinstance(linear, BcosLinear)
        linear.square_eps, linear.norm_eps = 1e-6, 0.0
    return model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What a published state dict holds of a network of ours."""
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, BcosUnit):
            state.pop(f"{name}.scale", None)
        elif isinstance(module, LogitBias):
            state.pop(f"{name}.bias")
    return state


def _fit(
    model: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Their weights with our names and shapes, and the names of those that were convolutions."""
    others = [key for key, value in theirs.items() if not isinstance(value, Tensor)]
    if others:
        raise DataError(
            f"the weights hold entries that are {name_some({'no tensors': others})}. Pass what the "
            "checkpoint has under 'state_dict' or 'model'. A dict of tensors is allowed."
        )
    names = {_our_name(key, model, own): key for key in theirs}
    state = {name: theirs[key] for name, key in names.items()}
    linear = [k for k, v in state.items() if k in own and own[k].ndim == 2 and v.ndim == 4]
    state |= {key: state[key].flatten(1) for key in linear}
    if isinstance(model, SimpleViT) and "embed.weight" in state:
        state["embed.weight"] = _as_patches(state["embed.weight"], own["embed.weight"].shape)
    problems = name_some(
        {
            "missing": [k for k in own if k not in state and not k.endswith("_tracked")],
            "left over": [names[k] for k in state if k not in own],
            "of another shape": [
                f"{names[k]} is {tuple(v.shape)} instead of {tuple(own[k].shape)}"
                for k, v in state.items()
                if k in own and own[k].shape != v.shape
            ],
        }
    )
    if problems:
        raise DataError(
            f"these are the weights of another network than this "
            f"{type(model).__name__}. {problems}. Build it with published(name, num_classes). "
            "Weights of the same network are allowed."
        )
    return state, linear


def _as_patches(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A linear layer's weight for patches as vectors, channels last, as that of a convolution."""
    outputs, channels, height, width = shape
    if weight.shape != (outputs, channels * height * width):
        return weight
    return weight.reshape(outputs, height, width, channels).permute(0, 3, 1, 2)


def _our_name(key: str, model: nn.Module, own: Mapping[str, Tensor]) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    if key.endswith(".linear.weight"):  # theirs is a module around an ordinary layer
        key = key.removesuffix("linear.weight") + "weight"
    for kind, renamed in _RENAMED.items():
        if isinstance(model, kind):
            for pattern, ours in renamed:
                key = re.sub(pattern, ours, key)
    owner, _, last = key.rpartition(".")
    wrapped = f"{owner}.norm.{last}"  # in ChannelsLast
    return wrapped if key not in own and wrapped in own else key


_PREFIXES = ("module.", "_orig_mod.", "model.", "0.")
_BLOCK = {"0": "0", "1": "2", "2": "3", "3": "5"}  # torchvision's has permutations and GELU between
_Renamed = list[tuple[str, "str | Callable[[re.Match[str]], str]"]]
_RENAMED: dict[type[nn.Module], _Renamed] = {
    ResNet: [(r"^fc\.", "avgpool.classifier.")],
    ConvNeXt: [
        (r"\.block\.([0-3])\.", lambda m: f".block.{_BLOCK[m[1]]}."),
        # Their stem is two modules in a row, torchvision's one.
        (r"^features\.(\d+)\.(.*)", lambda m: _stage(int(m[1]), m[2])),
        (r"^classifier\.0\.", "avgpool.norm."),
        (r"^classifier\.1\.", "avgpool.classifier."),
    ],
    SimpleViT: [
        (r"^to_patch_embedding\.linear\.", "embed."),
        # Theirs has an activation, the identity, behind each norm.
        (
            r"^to_patch_embedding\.conv_stem\.(\d+)\.",
            lambda m: f"stem.{int(m[1]) - int(m[1]) // 3}.",
        ),
        (r"^transformer\.encoder_(\d+)\.", r"blocks.\1."),
        (r"\.attn\.norm\.", ".norm1."),
        (r"\.attn\.to_qkv\.", ".attn.qkv."),
        (r"\.attn\.to_out\.", ".attn.proj."),
        (r"\.ff\.net\.norm\.", ".norm2."),
        (r"\.ff\.net\.linear([12])\.", r".mlp.fc\1."),
        (r"^linear_head\.norm\.", "norm."),
        (r"^linear_head\.linear\.", "head."),
    ],
}


def _stage(index: int, rest: str) -> str:
    return f"features.0.{index}.{rest}" if index < 2 else f"features.{index - 1}.{rest}"
