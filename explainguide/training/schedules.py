"""The optimizer and the learning rate that a configuration names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
)

from explainguide.errors import GuidanceError
from explainguide.training.config import TrainConfig

__all__ = ["build_optimizer", "build_scheduler"]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """An optimizer over the parameters that require a gradient.

    Raises:
        GuidanceError: If none does.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise GuidanceError(
            f"every parameter of {type(model).__name__} is frozen. Unfreeze some with "
            "requires_grad_(True). At least one must require a gradient."
        )
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **settings)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


def _constant(step: int) -> float:
    return 1.0


def build_scheduler(optimizer: Optimizer, config: TrainConfig, *, steps: int) -> LRScheduler:
    """A learning rate that changes with every step of the optimizer.

    Args:
        optimizer: As `build_optimizer` made it.
        config: Names the schedule and the highest rate.
        steps: Of the whole training.
    """
    if config.schedule == "one-cycle":
        return OneCycleLR(optimizer, max_lr=config.lr, total_steps=max(steps, 2))
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return LambdaLR(optimizer, _constant)
