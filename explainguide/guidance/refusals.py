"""What cannot be guided: models without anything to train, and weights that do not fit the layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from explainguide.errors import GuidanceError, OptionError

__all__ = ["check_model", "check_weights"]


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
