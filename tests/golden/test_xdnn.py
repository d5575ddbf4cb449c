"""An X-DNN's maps, losses and parameter gradients equal those of Hesse et al.'s network."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.attr import InputXGradient, IntegratedGradients
from explainguide.xdnn import is_homogeneous

from .reader import fill, load, seeded
from .test_golden_attributions import annotations

CASE = ("05_xdnn", "xfixup_resnet18")
LAYERS = {"Input": "input", "layer1": "layer1", "layer4": "layer4"}


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()
        self.downsample = nn.Conv2d(width, out, 1, stride, bias=False) if width != out else None

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.relu(self.conv1(x))) + short)


class FixupLike(nn.Module):
    """A ResNet-18 without normalisation and biases, in plain torch."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = (64, 64, 128, 256, 512)
        for i, (width, out) in enumerate(pairwise(widths), start=1):
            blocks = Block(width, out, 1 + (i > 1)), Block(out, out, 1)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


@cache
def golden_weights(seed: int, gain: float) -> dict[str, Tensor]:
    return fill(FixupLike(), seed, gain).double().state_dict()


def golden_network(case: dict) -> nn.Module:
    network = FixupLike().double()
    network.load_state_dict(golden_weights(case["seed"], case["gain"]))
    return network


def counted(model: nn.Module) -> list[int]:
    """Grows by one with each forward pass."""
    passes: list[int] = []
    model.conv1.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_golden_xdnn_weights_and_logits() -> None:
    tensors, case = load(*CASE)
    network = golden_network(case)
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(name.encode() + weight.float().contiguous().numpy().tobytes())
    assert digest.hexdigest() == case["sha256"]
    assert is_homogeneous(network)
    with torch.no_grad():
        logits = network(tensors["input"].double())
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-9, atol=1e-12)


def test_golden_xdnn_maps_of_one_backward_pass() -> None:
    tensors, case = load(*CASE)
    network, images, classes = golden_network(case), tensors["input"].double(), tensors["classes"]
    passes = counted(network)
    for count, (name, layer) in enumerate(LAYERS.items(), start=1):
        found = IntegratedGradients(network, layer).attribute(images, classes)
        assert len(passes) == count
        assert_near(found, tensors[f"map/{name}/IxG"])
        scores = tensors["logits"].gather(1, classes[:, None])[:, 0]
        assert_near(found.sum((1, 2, 3)), scores)
    found = IntegratedGradients(network).attribute(images, classes)
    assert_near(found, tensors["xgradient"].sum(1, keepdim=True))
    assert_near(found, tensors["ig_gausslegendre"].sum(1, keepdim=True), 1e-9)


@pytest.mark.slow
def test_golden_xdnn_takes_the_steps_from_another_baseline() -> None:
    tensors, case = load(*CASE)
    network, images, classes = golden_network(case), tensors["input"].double(), tensors["classes"]
    passes = counted(network)
    path = IntegratedGradients(network, n_steps=64, baselines=0.5)
    found = path.attribute(images, classes)
    assert len(passes) == 65
    stored = tensors["ig_baseline0.5_64_gausslegendre"].sum(1, keepdim=True)
    torch.testing.assert_close(found.float(), stored, rtol=1e-4, atol=1e-6)
    product = InputXGradient(network).attribute(images, classes)
    assert (found - product).abs().max() > 1e-3


@pytest.mark.parametrize("attribution", ["intgrad", "ixg"])
@pytest.mark.parametrize(
    "key",
    ["Input/IxG/Energy", "Input/IxG/L1", "layer1/IxG/Energy", "layer4/IxG/Energy", "layer4/IxG/L1"],
)
def test_golden_xdnn_guidance(key: str, attribution: str) -> None:
    tensors, case = load(*CASE)
    network, images, classes = golden_network(case), tensors["input"].double(), tensors["classes"]
    name, _, loss = key.split("/")
    passes = counted(network)
    with ExplanationGuidance(
        network, LAYERS[name], attribution=attribution, loss=loss.lower(), reduction="sum"
    ) as guide:
        network(images)
        value = guide.loss_loc(annotations(case, classes))
        assert len(passes) == 1
        assert_near(guide.attributions[LAYERS[name]], tensors[f"map/{name}/IxG"][:, 0])
    assert float(value.detach()) == pytest.approx(case["loss"][key], rel=1e-9)

    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    summary = case["grad_summary"][key]
    assert set(summary) == set(parameters)
    largest = max(s[0] for s in summary.values() if s is not None)
    for (parameter, tensor), gradient in zip(parameters.items(), gradients, strict=True):
        expected = summary[parameter]
        if expected is None:
            assert gradient is None or not gradient.any()
            continue
        assert gradient is not None
        probe = seeded(f"probe:{parameter}", tuple(tensor.shape)).double()
        got = torch.stack([gradient.norm(), gradient.sum(), (gradient * probe).sum()])
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9 * max(largest, 1))
        full = tensors.get(f"grad/{key}/{parameter}")
        if full is not None:
            torch.testing.assert_close(gradient.float(), full, rtol=1e-5, atol=1e-7 * largest)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
