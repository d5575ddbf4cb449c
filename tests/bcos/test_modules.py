"""The small parts: the encoding in networks and in lists of transforms, gates, the bias of the logits."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from explainguide.bcos import BcosConv2d, BcosLinear, explanation_mode
from explainguide.bcos.modules import (
    AddInverse,
    DynamicLinearUnit,
    Gated,
    GatedChannels,
    LogitBias,
)
from explainguide.errors import OptionError, ShapeError


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5), (0, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_add_inverse(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.rand(shape).to(dtype)
    y = AddInverse()(x)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-3], 6, *shape[-2:])
    assert y.narrow(-3, 0, 3).equal(x) and y.narrow(-3, 3, 3).equal(1 - x)


def test_add_inverse_at_the_start_of_a_network() -> None:
    network = nn.Sequential(AddInverse(), BcosConv2d(6, 4, 3), nn.Flatten(), BcosLinear(144, 2))
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    network(x).sum().backward()
    assert bool(x.grad.isfinite().all()) and bool(x.grad.any())
    assert set(network.state_dict()) == {"1.weight", "3.weight"}
    assert copy.deepcopy(network)(x).equal(network(x))
    black = torch.zeros(1, 3, 8, 8)
    assert bool(network(black).any())


def sample() -> tuple[tv_tensors.Image, dict[str, Any]]:
    box = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(6, 8))
    mask = tv_tensors.Mask(torch.zeros(1, 6, 8).bool())
    labels = torch.tensor([3])
    target = {"boxes": box, "masks": mask, "labels": labels, "area": torch.rand(1, 3, 2, 2)}
    return tv_tensors.Image(torch.rand(3, 6, 8)), target


def test_add_inverse_at_the_end_of_a_list_of_transforms() -> None:
    image, target = sample()
    encoded, same = v2.Compose([v2.RandomHorizontalFlip(1.0), AddInverse()])(image, target)
    flipped = image.flip(-1).as_subclass(Tensor)
    assert type(encoded) is Tensor
    assert encoded.equal(torch.cat([flipped, 1 - flipped]))
    assert isinstance(same["boxes"], tv_tensors.BoundingBoxes)
    assert same["boxes"].tolist() == [[5, 2, 7, 4]]
    assert isinstance(same["masks"], tv_tensors.Mask)
    assert same["masks"].shape == (1, 6, 8)
    assert same["labels"].equal(target["labels"])
    assert same["area"].equal(target["area"])
    assert set(same) == set(target)


def test_add_inverse_takes_the_image_of_other_samples() -> None:
    _, target = sample()
    image = torch.rand(3, 6, 8)
    encoded, same = AddInverse()(image, target)  # the first plain tensor is the image
    assert encoded.shape == (6, 6, 8) and same["labels"].equal(target["labels"])
    encoded, label = AddInverse()(tv_tensors.Image(image), 5)
    assert encoded.shape == (6, 6, 8) and label == 5
    video = AddInverse()(tv_tensors.Video(torch.rand(2, 3, 4, 4)))
    assert type(video) is Tensor and video.shape == (2, 6, 4, 4)


def test_add_inverse_after_the_usual_transforms() -> None:
    usual = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), AddInverse()])
    white = usual(Image.new("RGB", (5, 4), (255, 255, 255)))
    assert white.shape == (6, 4, 5)
    assert white[:3].equal(torch.ones(3, 4, 5)) and not white[3:].any()


@pytest.mark.parametrize(
    ("image", "kind", "text"),
    [
        (
            torch.rand(2, 6, 4, 4),
            ShapeError,
            r"shape \(2, 6, 4, 4\)\. It holds the inverse already",
        ),
        (torch.rand(2, 1, 4, 4), ShapeError, r"shape \(2, 1, 4, 4\)\. Give RGB"),
        (torch.rand(4, 4), ShapeError, r"shape \(4, 4\)\. Give RGB"),
        (torch.zeros(3, 4, 4).byte(), ShapeError, r"torch\.uint8.*scale=True"),
        (tv_tensors.Image(torch.zeros(3, 4, 4).byte()), ShapeError, r"torch\.uint8.*scale=True"),
        (Image.new("RGB", (4, 4)), ShapeError, r"the image is a Image\. Put v2\.ToImage"),
        (torch.full((3, 4, 4), 2.0), OptionError, r"from 2 to 2.*Leave out Normalize"),
        (torch.full((3, 4, 4), -0.5), OptionError, r"from -0\.5 to -0\.5.*\[0, 1\] is allowed"),
    ],
)
def test_add_inverse_refuses(image: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=f"^AddInverse: .*{text}"):
        AddInverse()(image)


def test_add_inverse_refuses_nan() -> None:
    with pytest.raises(OptionError, match=r"^AddInverse: "):
        AddInverse()(torch.full((3, 4, 4), math.nan))


def test_add_inverse_allows_what_resizing_overshoots() -> None:
    assert AddInverse()(torch.tensor([-0.05, 0.5, 1.05]).reshape(3, 1, 1)).shape == (6, 1, 1)


def test_logit_bias() -> None:
    logits = torch.randn(2, 3)
    assert LogitBias()(logits).equal(logits)
    torch.testing.assert_close(LogitBias(-2.0, temperature=0.5)(logits), logits / 0.5 - 2)
    classes = LogitBias(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(classes(logits), logits + torch.tensor([1.0, 2, 3]))
    assert repr(classes) == "LogitBias(3 biases)"
    assert repr(LogitBias(-2, temperature=4)) == "LogitBias(bias=-2, temperature=4)"


@pytest.mark.parametrize("trainable", [False, True])
def test_logit_bias_is_in_the_state_and_only_trained_on_request(trainable: bool) -> None:
    start = torch.tensor([1.0, 2.0])
    layer = LogitBias(start, trainable=trainable)
    assert list(layer.state_dict()) == ["bias"]
    assert layer.bias.requires_grad == trainable
    start.add_(1)
    assert layer.bias.tolist() == [1, 2]
    other = LogitBias(torch.zeros(2))
    other.load_state_dict(layer.state_dict())
    assert other.bias.equal(layer.bias)
    with pytest.raises(RuntimeError, match="bias was saved with 2 numbers but is built with 1"):
        LogitBias(0.0).load_state_dict(layer.state_dict())


def test_a_map_sums_to_the_logit_less_its_bias() -> None:
    classes = 5
    bias = LogitBias(-math.log(classes - 1), temperature=3.0)
    network = nn.Sequential(BcosLinear(4, classes), bias).double()
    x = torch.rand(1, 4, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    with explanation_mode(network):
        (weights,) = torch.autograd.grad(logits[0, 2], x)
    torch.testing.assert_close((weights * x).sum(), logits[0, 2] - bias.bias)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_logit_bias_refuses(temperature: float) -> None:
    with pytest.raises(OptionError, match=r"^LogitBias: temperature is"):
        LogitBias(temperature=temperature)


ACTIVATIONS = [
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Hardswish(),
    nn.ReLU6(),
    nn.Mish(),
    nn.ELU(),
    nn.PReLU(),
    nn.Tanh(),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_gated_has_the_values_of_the_activation(activation: nn.Module, dtype: torch.dtype) -> None:
    activation = copy.deepcopy(activation).to(dtype)
    module = Gated(activation)
    x = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([0.0, -0.0, 1e-9, -1e-9])])
    x = x.to(dtype).requires_grad_()
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(module(x), activation(x), **close)
    corners = ((x.abs() - 3).abs() < 1e-3) | ((x.abs() - 6).abs() < 1e-3) | (x.abs() < 1e-4)
    ours, theirs = (torch.autograd.grad(f(x).sum(), x)[0] for f in (module, activation))
    torch.testing.assert_close(ours[~corners], theirs[~corners], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_a_gate_is_a_constant_of_the_explanation(activation: nn.Module) -> None:
    module = Gated(copy.deepcopy(activation)).double()
    x = (3 * torch.randn(50)).double().requires_grad_()
    y = module(x)
    with explanation_mode(module):
        (weights,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(weights, (module.activation(x) / x).detach())
    torch.testing.assert_close(weights * x, y)


@pytest.mark.parametrize(
    "activation",
    [
        nn.SiLU(inplace=True),
        nn.Hardswish(inplace=True),
        nn.ReLU6(inplace=True),
        nn.Mish(inplace=True),
        nn.ReLU(inplace=True),
    ],
    ids=repr,
)
def test_gated_works_with_activations_in_place(activation: nn.Module) -> None:
    x = torch.linspace(-8, 8, 33)
    expected = activation(x.clone())
    before = x.clone()
    torch.testing.assert_close(Gated(activation)(x), expected)
    assert x.equal(before)


def test_gated_keeps_dtype_and_shape() -> None:
    for activation in ACTIVATIONS[:6]:
        x = torch.randn(2, 3, 4).bfloat16()
        y = Gated(activation)(x)
        assert y.dtype == x.dtype and y.shape == x.shape
        torch.testing.assert_close(y.float(), activation(x.float()), rtol=0.02, atol=0.02)


def test_gated_channels() -> None:
    squeeze = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid())
    module = GatedChannels(squeeze).double()
    x = torch.randn(2, 4, 5, 6).double().requires_grad_()
    y = module(x)
    gate = squeeze(x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(y, x * gate)
    with explanation_mode(module):
        (weights,) = torch.autograd.grad(y.sum(), x, retain_graph=True, create_graph=True)
    torch.testing.assert_close(weights, gate.expand_as(x))
    (second,) = torch.autograd.grad(weights.square().sum(), squeeze[0].weight, retain_graph=True)
    assert bool(second.any())
    (ordinary,) = torch.autograd.grad(y.sum(), x)
    assert not ordinary.allclose(weights)


def dynamic_reference(module: DynamicLinearUnit, vector: Tensor) -> Tensor:
    hidden = module.reduce.weight @ vector
    outputs = []
    for unit in range(module.out_features):
        rows = slice(unit * module.in_features, (unit + 1) * module.in_features)
        weight = module.expand.weight[rows] @ hidden + module.expand.bias[rows]
        length = weight.norm()
        scale = length / (1 + length**2) if module.scaling == "squash" else 1 / length
        outputs.append(scale * weight @ vector)
    return torch.stack(outputs)


@pytest.mark.parametrize("scaling", ["squash", "l2"])
def test_dynamic_linear_unit(scaling: str) -> None:
    module = DynamicLinearUnit(5, 3, rank=2, scaling=scaling).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    y = module(x)
    assert y.shape == (2, 4, 3)
    expected = torch.stack([dynamic_reference(module, v) for v in x.reshape(-1, 5)])
    torch.testing.assert_close(y.reshape(-1, 3), expected)
    probe = torch.randn_like(y)
    with explanation_mode(module):
        (weights,) = torch.autograd.grad(y, x, probe, retain_graph=True)
    torch.testing.assert_close((weights * x).sum(), (y * probe).sum())
    with explanation_mode(module):
        (row,) = torch.autograd.grad(y[0, 0, 0], x)
    length = row[0, 0].norm()
    if scaling == "squash":
        assert 0 < length < 1
    else:
        torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-6, atol=0)


def test_dynamic_linear_unit_of_zeros() -> None:
    for scaling in ("squash", "l2"):
        module = DynamicLinearUnit(5, 3, scaling=scaling)
        nn.init.zeros_(module.expand.bias)
        x = torch.zeros(2, 5, requires_grad=True)
        y = module(x)
        assert not y.any()
        with explanation_mode(module):
            (weights,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found = torch.autograd.grad(
            weights.square().sum() + y.sum(), [x, *module.parameters()], allow_unused=True
        )
        assert all(g is None or bool(g.isfinite().all()) for g in found)


def test_bcos_modules_say_nothing_and_move_with_to() -> None:
    """No warning, and float64 is kept by every part."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = nn.Sequential(
            AddInverse(),
            BcosConv2d(6, 4, 3),
            GatedChannels(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid())),
            Gated(nn.GELU()),
            nn.Flatten(),
            DynamicLinearUnit(144, 4, rank=2),
            LogitBias(-1.0),
        ).to(torch.float64)
        y = network(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    assert y.dtype == torch.float64
    assert bool(F.softmax(y, 1).isfinite().all())
