"""The networks of the B-cos cases, with their weights loaded as published ones are."""

from __future__ import annotations

import hashlib
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from explainguide.bcos import BcosConv2d, LogitBias, bcosify
from explainguide.bcos.release import load_published

from .reader import fill, load


class Narrow(ResNet):
    """torchvision's ResNet-18 of any width; small images, so that it is converted quickly."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
        self.image_size, self.inplanes = 64, width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i in range(4):
            stage = self._make_layer(BasicBlock, width << i, 2, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", stage)
        self.fc = nn.Linear(8 * width, num_classes)


def published_name(model: nn.Module, name: str, prefix: str) -> str:
    """What the authors' programs call a parameter or buffer."""
    owner, _, last = name.rpartition(".")
    if isinstance(model.get_submodule(owner), BcosConv2d):
        last = "linear.weight"
    return f"{prefix}{owner}.{last}".replace("avgpool.classifier", "fc")


@cache
def golden_weights(case: str, width: int, prefix: str) -> dict[str, Tensor]:
    """The published state dict of a case, in float32, checked by its digest."""
    tensors, description = load("04_bcos", case)
    model = bcosify(Narrow(width, 5), keep_weights=False)
    own = {k: v for k, v in model.state_dict().items() if k != "fc.bias"}
    state = {published_name(model, k, prefix): torch.empty_like(v) for k, v in own.items()}
    fill(SimpleNamespace(state_dict=lambda: state), description["seed"])  # type: ignore[arg-type]
    for name, value in tensors.items():
        if name.startswith("buffer/"):
            assert name.removeprefix("buffer/") in state
            state[name.removeprefix("buffer/")] = value
    assert digest(state) == description["sha256"]
    return state


def golden_network(case: str, width: int, prefix: str, *, double: bool = True) -> nn.Module:
    """The network of a case, in evaluation mode."""
    _, description = load("04_bcos", case)
    model = bcosify(Narrow(width, 5), keep_weights=False).eval()
    model = model.double() if double else model
    load_published(model, golden_weights(case, width, prefix))
    bias = torch.tensor(description["logit_bias"], dtype=torch.float64 if double else torch.float32)
    assert isinstance(model.fc, LogitBias)
    model.fc.bias = nn.Parameter(bias, requires_grad=False)
    return model


def digest(state: dict[str, Tensor]) -> str:
    """As the cases' descriptions say how it is made."""
    found = hashlib.sha256()
    for name, value in state.items():
        if value.is_floating_point():
            found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def annotations(case: dict[str, Any], classes: Tensor) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).double(), "labels": torch.full((len(boxes),), int(k))}
        for boxes, k in zip(case["boxes"], classes, strict=True)
    ]
