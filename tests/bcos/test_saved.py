"""A network that is rebuilt from its options takes its weights back, and gives the same logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from explainguide.bcos import AddInverse, bcosify, set_b
from explainguide.bcos.saved import rebuild
from explainguide.bcos.transform import BcosUnit
from explainguide.checkpoints import load_model, save_checkpoint
from explainguide.models import small_cnn
from explainguide.xdnn import is_homogeneous, remove_bias

from .families import SmallVgg

SIZE = 64
MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision:resnet18": lambda: torchvision.models.resnet18(num_classes=3),
    "resnet18": lambda: timm.create_model("resnet18", num_classes=3),
    "torchvision:mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=3),
    "models_of_a_user:small_vgg": lambda: small_vgg(3),
    "vit_tiny_patch16_224": lambda: timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=SIZE
    ),
}


def small_vgg(num_classes: int) -> nn.Module:
    """As torchvision's vgg11_bn, of which a file would take half a gigabyte."""
    assert num_classes == 3
    model = SmallVgg(batch_norm=True)
    model.classifier[-1] = nn.Linear(16, num_classes)
    return model


def save(path: Path, name: str, model: nn.Module, **info: Any) -> None:
    info = {"name": name, "num_classes": 3, "image_size": SIZE, **info}
    payload = {"info": info, "model": model.state_dict(), "config": {}, "epoch": 0, "metrics": {}}
    save_checkpoint(path, payload)


@pytest.mark.slow
@pytest.mark.parametrize("b", [1.0, 2.0])
@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_bcos_logits_are_equal_after_a_file(
    name: str, keep_weights: bool, b: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "models_of_a_user", sys.modules[__name__])
    options = {"b": b, "keep_weights": keep_weights, "image_size": [SIZE, SIZE], "mean": [0.4] * 3}
    network = bcosify(MODELS[name](), **options).eval()
    images = AddInverse()(torch.rand(2, 3, SIZE, SIZE))
    save(tmp_path / "a.pt", name, network, bcos=options)
    torch.manual_seed(99)
    loaded, info = load_model(tmp_path / "a.pt")
    assert info["bcos"] == options
    assert not loaded.training
    assert loaded(images).equal(network(images))


@pytest.mark.parametrize("options", [{}, {"keep_weights": False, "max_out": 2}, {"b": 1.5}])
def test_bcos_options_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    options = {**options, "image_size": [32, 32]}
    network = bcosify(small_cnn(3), **options).eval()
    save(tmp_path / "a.pt", "explainguide.models:small_cnn", network, bcos=options)
    loaded, _ = load_model(tmp_path / "a.pt")
    images = AddInverse()(torch.rand(2, 3, 32, 32))
    assert loaded(images).equal(network(images))


def test_scales_are_those_that_were_saved() -> None:
    """With other weights other units may need one."""
    deep = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *deep, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    options = {"image_size": [16, 16]}
    for keep_weights in (True, False):
        network = bcosify(model, keep_weights=keep_weights, **options)
        state = network.state_dict()
        scaled = [name for name in state if name.endswith(".scale")]
        without = {name: value for name, value in state.items() if name not in scaled}
        again = rebuild(model, {"keep_weights": keep_weights, **options}, state)
        again.load_state_dict(state)
        plain = rebuild(model, {"keep_weights": keep_weights, **options}, without)
        plain.load_state_dict(without)
        units = [module for module in plain.modules() if isinstance(module, BcosUnit)]
        assert all(unit.scale is None for unit in units)
        assert scaled


def test_an_exponent_that_was_raised_is_in_the_options(tmp_path: Path) -> None:
    options = {"b": 1.0, "image_size": [32, 32]}
    network = bcosify(small_cnn(3), **options).eval()
    set_b(network, 1.5)
    save(
        tmp_path / "a.pt",
        "explainguide.models:small_cnn",
        network,
        bcos={**options, "b": 1.5, "bias": True},
    )
    loaded, _ = load_model(tmp_path / "a.pt")
    images = AddInverse()(torch.rand(2, 3, 32, 32))
    assert loaded(images).equal(network(images))


def test_a_network_without_biases_comes_back(tmp_path: Path) -> None:
    options = {"normalization": "fold", "image_size": [SIZE, SIZE]}
    network = remove_bias(torchvision.models.resnet18(num_classes=3), **options).eval()
    save(tmp_path / "a.pt", "torchvision:resnet18", network, xdnn=options)
    loaded, info = load_model(tmp_path / "a.pt")
    assert info["xdnn"] == options
    assert is_homogeneous(loaded)
    images = torch.randn(2, 3, SIZE, SIZE)
    assert loaded(images).equal(network(images))
