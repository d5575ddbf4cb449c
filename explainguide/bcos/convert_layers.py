"""One walk over a model that puts the B-cos form in the place of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import nn

from explainguide.bcos.layer_forms import (
    LINEAR,
    bcos_activation,
    bcos_norm,
    bcos_unit,
    squeeze_excite,
)
from explainguide.bcos.modules import GatedChannels, LogitBias
from explainguide.bcos.record import Conversion
from explainguide.bcos.settings import ConversionSettings
from explainguide.bcos.tokens import (
    BcosAttention,
    BcosMultiheadAttention,
    Positions,
    separate_positions,
    to_bcos,
)
from explainguide.bcos.transform import BcosUnit
from explainguide.errors import OptionError
from explainguide.hooks.dynamic import DynamicLinear

__all__ = ["convert_layers"]

# What an attention computes its weights from; they are constants, whatever they are made of.
_OF_THE_WEIGHTS = ("qkv", "q_norm", "k_norm", "gate")
# Layers without parameters that are linear, or select among values.
_HARMLESS = (
    "pool",
    "drop",
    "path",
    "identity",
    "flatten",
    "permute",
    "upsampl",
    "pad",
    "shuffle",
    "depth",
)


def convert_layers(
    model: nn.Module, settings: ConversionSettings, stems: Sequence[str], report: Conversion
) -> None:
    """Convert every layer below `model`, in place, and write down what was done.

    Args:
        model: The network.
        settings: How.
        stems: Names of the convolutions that see the image, and from now on its inverse as well.
        report: Where it is written down.

    Raises:
        OptionError: If layers have no B-cos form; all of them are named.
    """
    kind = type(model).__name__
    positions = None if settings.bias else separate_positions(model)
    if positions is not None:
        report.changes[""] = f"{type(model).__name__}: positions for queries and keys only"
    walk = _Walk(settings, frozenset(stems), report, positions)
    walk.visit(model, "")
    if walk.refused:
        shown = ", ".join(walk.refused[:4])
        more = f" and {len(walk.refused) - 4} more" if len(walk.refused) > 4 else ""
        raise OptionError(
            f"{kind} has layers without a B-cos form: {shown}{more}. "
            "Replace them, or take another architecture. Convolutions, linear layers, softmax "
            "attention (timm's Attention, nn.MultiheadAttention), batch, layer and group norms, "
            "squeeze and excitation, elementwise activations and pooling are allowed."
        )
    if not settings.keep_weights:
        _draw_the_rest(model)
    _name_constants(model, positions, report)


@dataclass
class _Walk:
    settings: ConversionSettings
    stems: frozenset[str]
    report: Conversion
    positions: Positions | None

    def __post_init__(self) -> None:
        self.refused: list[str] = []
        self.made: dict[nn.Module, nn.Module] = {}
        self.tied: dict[tuple[nn.Parameter, torch.Size], nn.Parameter] = {}

    def visit(self, parent: nn.Module, prefix: str) -> None:
        self.check_own(parent, prefix)
        for name, child in list(parent._modules.items()):  # named_children leaves out second names
            if child is None:
                continue
            full = f"{prefix}{name}"
            if isinstance(child, DynamicLinear | LogitBias):  # the classifier, converted before
                continue
            if child in self.made:  # one module under two names
                new, inside = self.made[child], False
            else:
                new, inside = self.part(child, full)
                self.made[child] = new.train(child.training) if new is not child else new
                self.tie(child, new)
            if new is not child:
                if isinstance(parent, nn.Sequential | nn.ModuleList) and name.isdecimal():
                    parent[int(name)] = new
                else:
                    setattr(parent, name, new)
                if full not in self.report.changes:
                    self.report.changes[full] = f"{_kind(child)} -> {_kind(new)}"
            if inside:
                self.visit(new, f"{full}.")

    def part(self, child: nn.Module, name: str) -> tuple[nn.Module, bool]:
        """What comes in the place of a module, and whether its own parts are to be visited."""
        before = type(child).__name__
        qkv = getattr(child, "qkv", None)
        if type(child) is Attention and type(qkv) not in LINEAR:  # it is read, and not called
            self.refused.append(f"{name}.qkv ({type(qkv).__name__})")
            return child, False
        if to_bcos(child, self.positions):
            self.report.changes[name] = f"{before} -> {type(child).__name__}"
            self.attention(child, name)
            return child, False
        if "attention" in before.lower() or "attn" in before.lower():
            self.refused.append(f"{name} ({before})")
            return child, False
        new = squeeze_excite(child)
        if new is not None:
            return new, False
        new = bcos_norm(child, self.settings)
        if new is not None:
            return new, isinstance(new, nn.Sequential)
        stem = name in self.stems
        new = bcos_unit(child, self.settings, stem=stem)
        if new is not None:
            return new, False
        new = bcos_activation(child, self.settings)
        if new is not None:
            return new, False
        if isinstance(child, nn.MaxPool2d) and not self.settings.keep_weights:
            return _average(child), False
        if list(child.children()):
            return child, True
        self.check_leaf(child, name)
        return child, False

    def attention(self, module: Any, name: str) -> None:
        """The layers of an attention: values and output are of the map, the rest is of its weights."""
        if not self.settings.bias:
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_bias = None  # type: ignore[assignment]
            else:
                module.qkv.bias = None
        for part, child in list(module.named_children()):
            if part in _OF_THE_WEIGHTS:
                continue
            new, _ = self.part(child, f"{name}.{part}")
            if new is not child:
                setattr(module, part, new)
                self.report.changes[f"{name}.{part}"] = f"{_kind(child)} -> {_kind(new)}"

    def tie(self, old: nn.Module, new: nn.Module) -> None:
        """One parameter of several modules stays one, where it keeps its shape."""
        if not isinstance(new, BcosUnit):
            return
        for key in ("weight", "bias"):
            before, after = getattr(old, key), getattr(new, key)
            if before is not None and after is not None:
                setattr(new, key, self.tied.setdefault((before, after.shape), after))

    def check_own(self, module: nn.Module, prefix: str) -> None:
        """Matrices that a module's own forward multiplies with: no layer could take their place."""
        if isinstance(module, DynamicLinear):
            return
        for key, parameter in module._parameters.items():
            constant = any(word in key for word in ("embed", "token", "pos"))
            if parameter is None or constant or parameter.ndim < 2 or len(parameter) == 1:
                continue
            if parameter.squeeze().ndim > 1:
                self.refused.append(f"{prefix}{key} (a matrix of {type(module).__name__} itself)")

    def check_leaf(self, leaf: nn.Module, name: str) -> None:
        """A layer of a kind that is not known: refused, unless it can do no harm."""
        kind = type(leaf).__name__
        multiplies = [n for n, _ in leaf.named_parameters(recurse=False)] in ([], ["gamma"])
        harmless = any(word in kind.lower() for word in _HARMLESS) or kind == "LayerScale"
        adds = bool(getattr(leaf, "value", 0))  # what a constant padding adds
        if adds or not ((multiplies and harmless) or _is_container(leaf)):
            self.refused.append(f"{name} ({kind})")


def _is_container(leaf: nn.Module) -> bool:
    """A module without layers in it: an empty Sequential, say."""
    return isinstance(leaf, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _average(pool: nn.MaxPool2d) -> nn.Module:
    """Average pooling of the same geometry, as B-cos networks have it."""
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Sequential):
        return ", ".join(type(part).__name__ for part in module)
    if isinstance(module, nn.Conv2d) and module.in_channels in (3, 6):
        return f"{type(module).__name__}({module.in_channels})"
    return type(module).__name__


@torch.no_grad()
def _draw_the_rest(model: nn.Module) -> None:
    """New weights for what stays an ordinary layer, and for tokens and positions."""
    for module in model.modules():
        if isinstance(module, BcosMultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
        elif isinstance(module, BcosAttention):
            module.qkv.reset_parameters()
        elif isinstance(module, GatedChannels):
            for part in module.squeeze.modules():
                if callable(getattr(part, "reset_parameters", None)):
                    part.reset_parameters()  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        if _is_constant(name):
            nn.init.trunc_normal_(parameter, std=0.02)


def _name_constants(model: nn.Module, positions: Positions | None, report: Conversion) -> None:
    """Parameters that are added to features, and so are part of a logit and of no map."""
    names = [n for n, _ in model.named_parameters() if _is_constant(n)]
    if names and positions is None:
        report.left.append(
            f"{', '.join(names)}: added to the tokens, so what they add to a logit is in no map"
        )


def _is_constant(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.endswith(("_token", "pos_embed", "pos_embedding"))
