"""The norms equal their formula, keep the running statistics of the published networks, and explain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide.bcos import explanation_mode, norms
from explainguide.bcos.norms import (
    AllNormUncentered2d,
    BatchNormUncentered2d,
    DetachableGroupNorm2d,
    DetachableLayerNorm,
    DetachablePositionNorm2d,
    GroupNormUncentered2d,
    LayerNormUncentered,
    PositionNormUncentered2d,
)

from ..reference.bcos import uncentered_norm

IMAGE = (3, 4, 5, 6)
Build = Callable[..., nn.Module]
# How to build it, the dimensions of a statistic, whether it is centred, the shape of the weight beside x.
NORMS: dict[str, tuple[Build, tuple[int, ...], bool, tuple[int, ...]]] = {
    "BatchNormUncentered2d": (lambda **o: BatchNormUncentered2d(4, **o), (0, 2, 3), False, (4, 1, 1)),
    "AllNormUncentered2d": (lambda **o: AllNormUncentered2d(4, **o), (0, 1, 2, 3), False, (1,)),
    "GroupNormUncentered2d": (
        lambda **o: GroupNormUncentered2d(2, 4, **o), (2, 3, 4), False, (4, 1, 1)
    ),
    "DetachableGroupNorm2d": (
        lambda **o: DetachableGroupNorm2d(2, 4, **o), (2, 3, 4), True, (4, 1, 1)
    ),
    "LayerNormUncentered": (lambda **o: LayerNormUncentered((5, 6), **o), (2, 3), False, (5, 6)),
    "DetachableLayerNorm": (lambda **o: DetachableLayerNorm(6, **o), (3,), True, (6,)),
    "PositionNormUncentered2d": (
        lambda **o: PositionNormUncentered2d(4, **o), (1,), False, (4, 1, 1)
    ),
    "DetachablePositionNorm2d": (
        lambda **o: DetachablePositionNorm2d(4, **o), (1,), True, (4, 1, 1)
    ),
}  # fmt: skip


def draw(shape: tuple[int, ...] = IMAGE) -> Tensor:
    """Not centred."""
    return torch.randn(shape, dtype=torch.float64) * 2 + 1.5


def reference(name: str, module: nn.Module, x: Tensor, freeze: bool = False) -> Tensor:
    _, dims, centered, shape = NORMS[name]
    grouped = x.unflatten(1, (2, 2)) if "Group" in name else x
    y = uncentered_norm(grouped, dims, centered=centered, freeze=freeze).reshape(x.shape)
    if module.weight is not None:
        y = y * module.weight.reshape(shape)
    return y if module.bias is None else y + module.bias.reshape(shape)


def test_every_norm_is_tested() -> None:
    assert set(NORMS) == set(norms.__all__) - {"ChannelsLast"}  # a wrapper


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_values_gradients_and_explanations(name: str, bias: bool) -> None:
    module = NORMS[name][0](bias=bias).double()
    assert (module.bias is not None) == bias
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = draw().requires_grad_()
    y, expected = module(x), reference(name, module, x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(y)
    inputs = [x, *module.parameters()]
    ours = torch.autograd.grad(y, inputs, probe, retain_graph=True)
    theirs = torch.autograd.grad(expected, inputs, probe)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    with explanation_mode(module):
        (found,) = torch.autograd.grad(y, x, probe)
    frozen = reference(name, module, x, freeze=True)
    (expected_map,) = torch.autograd.grad(frozen, x, probe)
    torch.testing.assert_close(found, expected_map, rtol=1e-12, atol=1e-12)
    if not bias:
        torch.testing.assert_close((found * x).sum(), (y * probe).sum())


@pytest.mark.parametrize("name", NORMS)
def test_the_epsilon_is_added_to_the_variance(name: str) -> None:
    module = NORMS[name][0](eps=0.5).double()
    dims, centered = NORMS[name][1:3]
    x = draw()
    grouped = x.unflatten(1, (2, 2)) if "Group" in name else x
    expected = uncentered_norm(grouped, dims, eps=0.5, centered=centered).reshape(x.shape)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_without_a_weight(name: str) -> None:
    off = {"elementwise_affine" if "Layer" in name or "Position" in name else "affine": False}
    module = NORMS[name][0](**off, bias=True)
    assert module.weight is None and module.bias is None and not list(module.parameters())
    assert module(draw()).shape == IMAGE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_constant_input_has_finite_derivatives(name: str, dtype: torch.dtype) -> None:
    for value in (0.0, 3.0):
        module = NORMS[name][0]().to(dtype)
        x = torch.full(IMAGE, value, dtype=dtype, requires_grad=True)
        y = module(x)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with explanation_mode(module):
            (weights,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        for tensor in (y, first, weights):
            second = torch.autograd.grad(
                tensor.square().sum(), [x, module.weight], retain_graph=True, allow_unused=True
            )
            for found in (tensor, *second):
                assert found is None or bool(found.isfinite().all())


@pytest.mark.parametrize("name", NORMS)
def test_bfloat16(name: str) -> None:
    """The statistics are computed in float32."""
    module = NORMS[name][0]()
    x = draw().float() + 30
    half = copy.deepcopy(module).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    expected = module(x.bfloat16().float())
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(x.bfloat16())
    torch.testing.assert_close(rough.float(), expected, rtol=0.02, atol=0.3)


@pytest.mark.parametrize("name", [name for name in NORMS if name.endswith("2d")])
def test_channels_last(name: str) -> None:
    module = NORMS[name][0]().double()
    x = draw()
    y = module(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, module(x))
    assert y.is_contiguous(memory_format=torch.channels_last)


CLASSES = [(BatchNormUncentered2d, (0, 2, 3)), (AllNormUncentered2d, (0, 1, 2, 3))]


@pytest.mark.parametrize(("kind", "dims"), CLASSES)
def test_running_variance_follows_the_biased_variance(kind: Any, dims: tuple[int, ...]) -> None:
    module = kind(4, momentum=0.25).double()
    expected = torch.ones_like(module.running_var)
    for step in range(3):
        x = draw()
        with explanation_mode(module):  # in both modes
            module(x)
        expected = 0.75 * expected + 0.25 * x.var(dims, correction=0)
        torch.testing.assert_close(module.running_var, expected)
        assert module.num_batches_tracked == step + 1
    assert not module.running_mean.any()
    plain = nn.BatchNorm2d(4, momentum=0.25).double()
    plain(x)
    unbiased = 0.75 + 0.25 * x.var((0, 2, 3))
    torch.testing.assert_close(plain.running_var, unbiased)


@pytest.mark.parametrize(("kind", "dims"), CLASSES)
def test_without_momentum_it_is_the_mean_of_all_batches(kind: Any, dims: tuple[int, ...]) -> None:
    module = kind(4, momentum=None).double()
    batches = [draw() for _ in range(4)]
    for x in batches:
        module(x)
    expected = torch.stack([x.var(dims, correction=0) for x in batches]).mean(0)
    torch.testing.assert_close(module.running_var, expected.reshape(module.running_var.shape))


@pytest.mark.parametrize("kind", [BatchNormUncentered2d, AllNormUncentered2d])
def test_evaluation_uses_and_keeps_the_running_variance(kind: Any) -> None:
    module = kind(4).double().eval()
    x = draw()
    torch.testing.assert_close(module(x), x / (1 + 1e-5) ** 0.5)  # before any training
    module.running_var.fill_(4)
    before = copy.deepcopy(module.state_dict())
    torch.testing.assert_close(module(x), x / (4 + 1e-5) ** 0.5)
    torch.testing.assert_close(module(x[:1]), module(x)[:1])
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(("kind", "dims"), CLASSES)
def test_without_running_statistics_evaluation_uses_the_batch(
    kind: Any, dims: tuple[int, ...]
) -> None:
    module = kind(4, track_running_stats=False).double()
    assert module.running_var is None
    x = draw().requires_grad_()
    expected = x / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(module(x), expected)
    y = module.eval()(x)
    torch.testing.assert_close(y, expected)
    with explanation_mode(module):
        (weights,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close((weights * x).sum(), y.sum())


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (BatchNormUncentered2d(4, bias=True), nn.BatchNorm2d(4)),
        (GroupNormUncentered2d(2, 4, bias=True), nn.GroupNorm(2, 4)),
        (DetachableGroupNorm2d(2, 4, bias=True), nn.GroupNorm(2, 4)),
        (LayerNormUncentered(4, bias=True), nn.LayerNorm(4)),
        (DetachableLayerNorm(4, bias=True), nn.LayerNorm(4)),
        (DetachableLayerNorm(4), nn.LayerNorm(4, bias=False)),
    ],
)
def test_state_dicts_are_those_of_the_ordinary_norms(ours: nn.Module, plain: nn.Module) -> None:
    ours.load_state_dict(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
    assert isinstance(ours, type(plain))
    for name, tensor in plain.state_dict().items():
        assert ours.state_dict()[name].equal(tensor)


def test_a_batch_norm_without_bias_lacks_that_key_only() -> None:
    keys = set(nn.BatchNorm2d(4).state_dict())
    assert set(BatchNormUncentered2d(4).state_dict()) == keys - {"bias"}


def test_centred_norms_equal_the_ordinary_ones() -> None:
    x = draw()
    for ours, plain in (
        (DetachableGroupNorm2d(2, 4, bias=True), nn.GroupNorm(2, 4)),
        (DetachableLayerNorm((5, 6), bias=True), nn.LayerNorm((5, 6))),
    ):
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        plain.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours.double()(x), plain.double()(x), rtol=1e-12, atol=1e-12)


def test_one_group_is_a_layer_norm_and_one_a_channel_an_instance_norm() -> None:
    x = draw()
    whole = LayerNormUncentered((4, 5, 6), elementwise_affine=False)
    torch.testing.assert_close(GroupNormUncentered2d(1, 4).double()(x), whole(x))
    instance = LayerNormUncentered((5, 6), elementwise_affine=False)
    torch.testing.assert_close(GroupNormUncentered2d(4, 4).double()(x), instance(x))


def test_images_of_three_dimensions_are_refused_by_the_batch_norm() -> None:
    with pytest.raises(ValueError, match="4D"):
        BatchNormUncentered2d(4)(torch.rand(4, 5, 6))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: BatchNormUncentered2d(4), (2, 1, 3, 3)),
        (lambda: BatchNormUncentered2d(4).eval(), (2, 1, 3, 3)),
        (lambda: PositionNormUncentered2d(4), (2, 1, 3, 3)),
        (lambda: LayerNormUncentered(4), (2, 1)),
        (lambda: LayerNormUncentered(4, elementwise_affine=False), (2, 5)),
        (lambda: GroupNormUncentered2d(2, 4, affine=False), (2, 6, 3, 3)),
    ],
)
def test_another_number_of_channels_is_refused(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """As the ordinary norms refuse it."""
    module = build()
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.rand(shape))
