"""What cannot be guided: models without anything to train, and weights that do not fit the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import GuidanceError, OptionError, warn
from explainguide.hooks.logits import overflowed

__all__ = [
    "OVERFLOW",
    "check_devices",
    "check_generator",
    "check_model",
    "check_weights",
    "tell_overflow",
]

OVERFLOW = (
    "the logits, in float16, are not finite: it holds no number above 65504. Use bfloat16, whose range "
    "is that of float32, or compute the last layers outside autocast."
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


def check_generator(generator: Any) -> None:
    """Refuse a seed, or anything else that draws no numbers."""
    if not isinstance(generator, torch.Generator | None):
        raise OptionError(
            f"generator is {generator!r}. Use torch.Generator().manual_seed(3). A torch.Generator, "
            "or None for torch's own numbers, is allowed."
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


def check_devices(logits: Tensor, features: Mapping[str, Any]) -> None:
    """Refuse a pass without values, and layers on another device than the logits."""
    if logits.device.type == "meta":
        raise GuidanceError(
            "the model's logits are on the meta device, where nothing is computed. Give the model "
            "its weights and move it, with the images, to the device that trains it. A model that "
            "computes values is needed."
        )
    for name, feature in features.items():
        if isinstance(feature, Tensor) and feature.device != logits.device:
            raise GuidanceError(
                f"layer {name!r} is on {feature.device}, but the logits are on {logits.device}. "
                "Guide a layer behind the move, or keep what follows the layer on its device. The "
                "layers and the logits must be on one device; annotations and targets are moved there."
            )


def tell_overflow(logits: Tensor) -> None:
    """Warn of logits outside float16's range, where that is read without waiting for a device."""
    if logits.device.type == "cpu" and overflowed(logits):
        warn(f"{OVERFLOW} The losses of this step are not finite.")
