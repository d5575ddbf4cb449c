"""The classifier: which layer it is, and how it comes before the pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2

from explainguide.hooks.logits import find_logits

__all__ = ["Head", "classifier_first", "find_head", "pool_after_classifier", "replace"]


# Name, module, input and output of one call.
_Call = tuple[str, nn.Module, Tensor, Tensor]


class Head(NamedTuple):
    """Where a network turns features into logits.

    Attributes:
        classifiers: Names of the linear layers that return logits; two in a distilled DeiT.
        pool: Name of the module that takes the mean over places; None where there is none before a
            single classifier, or where something that is not known lies between.
        flat: Whether the pool returns ``(N, C)`` rather than ``(N, C, 1, 1)``.
        norms: Names of the norms between pool and classifier.
        dropouts: Names of the dropouts there.
        stems: Names of the convolutions that see the image, where it has three channels.
    """

    classifiers: tuple[str, ...]
    pool: str | None = None
    flat: bool = False
    norms: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()


@torch.no_grad()
def find_head(model: nn.Module, size: tuple[int, int, int]) -> Head:
    """Run a network once on random images, and look what its classifier gets.

    Args:
        model: In evaluation mode, so that dropout is not in the way.
        size: (C, H, W) of the images.
    """
    calls: list[_Call] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            calls.append((names[module], module, inputs[0], output))

    hooks = [module.register_forward_hook(note) for module in names if module is not model]
    parameter = next(model.parameters())
    noise = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    images = noise.to(parameter)
    try:
        logits = find_logits(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    return _read(model, calls, logits)._replace(stems=_find_stems(calls, images))


def _find_stems(calls: Sequence[_Call], images: Tensor) -> tuple[str, ...]:
    """Those that get the image itself; if it was changed before, the first with three channels."""
    takes_three = [c for c in calls if isinstance(c[1], nn.Conv2d) and c[1].in_channels == 3]
    sees_images = [name for name, _, given, _ in takes_three if given is images]
    return tuple(sees_images or [name for name, *_ in takes_three[:1]])


def _read(model: nn.Module, calls: Sequence[_Call], logits: Any) -> Head:
    last = [call for call in calls if isinstance(call[1], nn.Linear) and call[3] is logits]
    if not last:  # two heads whose outputs are averaged, or something after the last layer
        config = getattr(model, "pretrained_cfg", None) or {}
        heads = config.get("classifier")
        heads = [heads] if isinstance(heads, str) else list(heads or [])
        return Head(tuple(n for n in heads if isinstance(model.get_submodule(n), nn.Linear)))
    name, _, features, _ = last[-1]
    pool = _find_pool(calls)
    if pool is None or getattr(model, "drop_rate", None):  # dropout that is a call, not a module
        return Head((name,))
    order = [call[0] for call in calls]
    between = {n: m for n, m, _, _ in calls[order.index(pool[0]) + 1 : order.index(name)]}
    norms = {n: m for n, m in between.items() if isinstance(m, nn.LayerNorm | nn.GroupNorm)}
    others = [m for n, m in between.items() if n not in norms]
    passed_on = norms or torch.equal(pool[3].flatten(1), features)
    if not passed_on or any(not _does_nothing(module) for module in others):
        return Head((name,))
    dropouts = tuple(n for n, m in between.items() if isinstance(m, nn.Dropout) and m.p)
    return Head((name,), pool[0], pool[3].ndim == 2, tuple(norms), dropouts)


def _find_pool(calls: Sequence[_Call]) -> _Call | None:
    """The last module that returns the mean over places, with all that it is wrapped in."""
    means = [
        call
        for call in calls
        if call[2].ndim == 4
        and call[2].shape[2] * call[2].shape[3] > 1
        and call[3].flatten(1).shape == call[2].shape[:2]
        and torch.allclose(call[2].mean((2, 3)), call[3].flatten(1), rtol=1e-4, atol=1e-6)
    ]
    if not means:
        return None
    inner = means[-1][3].flatten(1)
    wrapped = [call for call in means if torch.equal(call[3].flatten(1), inner)]
    return min(wrapped, key=lambda call: call[0].count("."))


def _does_nothing(module: nn.Module) -> bool:
    """Whether a module passes its input on in evaluation, but for its shape."""
    if list(module.children()):
        return all(
            _does_nothing(child) or isinstance(child, nn.Linear) for child in module.children()
        )
    return isinstance(module, nn.Identity | nn.Flatten | nn.Dropout | nn.AdaptiveAvgPool2d)


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, nn.Sequential | nn.ModuleList) and last.isdecimal():
        owner[int(last)] = new
    else:
        setattr(owner, last, new)


def classifier_first(model: nn.Module, head: Head, conv: nn.Module, bias: nn.Module) -> None:
    """Put the classifier in front of the pooling: logits of every place, then their mean.

    The model's forward stays: the pool's module now classifies and pools, and the classifier's
    module adds the bias.
    """
    assert head.pool is not None
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, name in enumerate(head.norms):
        parts[f"norm{i or ''}"] = model.get_submodule(name)
        replace(model, name, nn.Identity())
    for name in head.dropouts:
        parts["drop"] = model.get_submodule(name)
        replace(model, name, nn.Identity())
    parts |= {"classifier": conv, "pool": nn.AdaptiveAvgPool2d(1)}
    if head.flat:
        parts["flatten"] = nn.Flatten(1)
    replace(model, head.pool, nn.Sequential(parts).train(model.training))
    replace(model, head.classifiers[0], bias)


class _PoolsItself:
    """A model of torchvision whose forward pools by a function: the classifier comes first here."""

    features: nn.Module
    last_activation: nn.Module
    classifier: nn.Module
    logit_bias: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 6, H, W)`` to ``(N, K)``."""
        places = self.classifier(self.last_activation(self.features(x)))
        output: Tensor = self.logit_bias(places.mean((2, 3)))
        return output


class BcosDenseNet(_PoolsItself, DenseNet):
    """torchvision's DenseNet after `bcosify`."""


class BcosMobileNetV2(_PoolsItself, MobileNetV2):
    """torchvision's MobileNetV2 after `bcosify`."""


def pool_after_classifier(model: Any, conv: nn.Module, bias: nn.Module) -> bool:
    """`classifier_first` for models that pool by a function, in place; False for others."""
    if type(model) is DenseNet:
        model.__class__ = BcosDenseNet
        model.last_activation = nn.ReLU().train(model.training)
        model.classifier = conv
    elif type(model) is MobileNetV2:
        model.__class__ = BcosMobileNetV2
        model.last_activation = nn.Identity()
        model.classifier = nn.Sequential(model.classifier[0], conv)
    else:
        return False
    model.logit_bias = bias
    return True
