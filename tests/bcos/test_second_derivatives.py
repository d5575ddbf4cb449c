"""A loss on a B-cos explanation has the parameter gradient that finite differences have.

Every entry of the Jacobian of the map W(x), in the input and in all parameters, against central
differences in float64. The form that detaches the factors in the forward pass is there to fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from explainguide.bcos import BcosConv2d, BcosLinear, explanation_mode
from explainguide.bcos.modules import DynamicLinearUnit, Gated, GatedChannels, LogitBias
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

from ..reference.bcos import bcos_conv, bcos_linear, uncentered_norm

IMAGE = (2, 4, 3, 3)
CLOSE: dict[str, Any] = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-5}


def squeeze(channels: int) -> nn.Module:
    reduce, expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)
    return nn.Sequential(reduce, nn.SiLU(), expand, nn.Sigmoid())


def chain() -> nn.Module:
    """One of everything, in training: the batch's statistics are differentiated as well."""
    return nn.Sequential(
        BcosConv2d(2, 2, 2, max_out=2),
        BatchNormUncentered2d(2),
        Gated(nn.GELU()),
        GatedChannels(squeeze(2)),
        BcosConv2d(2, 4, 2, b=1.5, gain="norm", groups=2),
        DetachablePositionNorm2d(4),
        nn.Flatten(),
        LayerNormUncentered(4),
        BcosLinear(4, 3, b=2.5),
        DynamicLinearUnit(3, 2, rank=2),
        LogitBias(torch.tensor([-1.0, 2.0]), temperature=0.5, trainable=True),
    )


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: BcosConv2d(4, 2, 2), IMAGE),
    "conv-1": (lambda: BcosConv2d(4, 2, 2, b=1), IMAGE),
    "conv-1.25": (lambda: BcosConv2d(4, 2, 2, b=1.25, padding=1), IMAGE),
    "conv-3": (lambda: BcosConv2d(4, 2, 2, b=3, max_out=2, groups=2), IMAGE),
    "conv-norm": (lambda: BcosConv2d(4, 2, 2, gain="norm", bias=True, dilation=(1, 2)), IMAGE),
    "conv-power": (lambda: BcosConv2d(4, 2, 2, gain="power", padding_mode="circular"), IMAGE),
    "linear": (lambda: BcosLinear(4, 3), (3, 4)),
    "linear-1.25": (lambda: BcosLinear(4, 3, b=1.25, max_out=2), (3, 4)),
    "linear-3": (lambda: BcosLinear(4, 3, b=3, gain="norm", square_eps=1e-6), (3, 4)),
    "batch-norm": (lambda: BatchNormUncentered2d(4), IMAGE),
    "batch-norm-bias": (lambda: BatchNormUncentered2d(4, bias=True), IMAGE),
    "batch-norm-eval": (lambda: BatchNormUncentered2d(4).eval(), IMAGE),
    "batch-norm-no-weight": (lambda: BatchNormUncentered2d(4, affine=False), IMAGE),
    "all-norm": (lambda: AllNormUncentered2d(4), IMAGE),
    "group-norm": (lambda: GroupNormUncentered2d(2, 4), IMAGE),
    "group-norm-centred": (lambda: DetachableGroupNorm2d(2, 4, bias=True), IMAGE),
    "layer-norm": (lambda: LayerNormUncentered((4,)), (2, 3, 4)),
    "layer-norm-centred": (lambda: DetachableLayerNorm((3, 4), bias=True), (2, 3, 4)),
    "position-norm": (lambda: PositionNormUncentered2d(4), IMAGE),
    "position-norm-centred": (lambda: DetachablePositionNorm2d(4), IMAGE),
    "gelu": (lambda: Gated(nn.GELU()), (2, 5)),
    "gelu-tanh": (lambda: Gated(nn.GELU(approximate="tanh")), (2, 5)),
    "silu": (lambda: Gated(nn.SiLU()), (2, 5)),
    "hardswish": (lambda: Gated(nn.Hardswish()), (2, 5)),
    "relu6": (lambda: Gated(nn.ReLU6()), (2, 5)),
    "mish": (lambda: Gated(nn.Mish()), (2, 5)),
    "prelu": (lambda: Gated(nn.PReLU()), (2, 5)),
    "gated-channels": (lambda: GatedChannels(squeeze(4)), IMAGE),
    "dynamic": (lambda: DynamicLinearUnit(4, 3, rank=2), (2, 4)),
    "dynamic-l2": (lambda: DynamicLinearUnit(4, 3, rank=2, scaling="l2"), (2, 4)),
    "chain": (chain, (2, 2, 3, 3)),
    "chain-eval": (lambda: chain().eval(), (2, 2, 3, 3)),
}


def random_module(build: Callable[[], nn.Module]) -> nn.Module:
    """In float64, with no weight of a norm at one."""
    module = build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7 + 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module


def map_of(module: nn.Module, forward_inside: bool) -> Callable[..., Tensor]:
    """W(x) for a random combination of the outputs, as a function of x and all parameters."""
    names = [name for name, _ in module.named_parameters()]
    generator = torch.Generator().manual_seed(7)
    probes: dict[torch.Size, Tensor] = {}

    def explanation(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        if forward_inside:
            with explanation_mode(module):
                y = torch.func.functional_call(module, state, (x,))
        else:
            y = torch.func.functional_call(module, state, (x,))
        if y.shape not in probes:
            probes[y.shape] = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        with explanation_mode(module):
            (weights,) = torch.autograd.grad(y, x, probes[y.shape], create_graph=True)
        return weights

    return explanation


@pytest.mark.parametrize("forward_inside", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_jacobian_of_the_map(name: str, forward_inside: bool) -> None:
    build, shape = MODULES[name]
    module = random_module(build)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = (x, *module.parameters())
    function = map_of(module, forward_inside)
    assert torch.autograd.gradcheck(function, inputs, **CLOSE)


@pytest.mark.parametrize("name", MODULES)
def test_the_map_times_the_input_is_the_output_without_its_biases(name: str) -> None:
    build, shape = MODULES[name]
    module = random_module(build)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for part in [module, *module.children()]:
        if getattr(part, "bias", None) is not None:
            nn.init.zeros_(part.bias)
    y = module(x)
    probe = torch.randn_like(y)
    with explanation_mode(module):
        (weights,) = torch.autograd.grad(y, x, probe)
    torch.testing.assert_close((weights * x).sum(), (y * probe).sum(), rtol=1e-10, atol=1e-12)


def detached(name: str) -> Callable[..., Tensor]:
    """The map of a module whose forward pass has no graph through its factors."""

    def of(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def explanation(x: Tensor, weight: Tensor) -> Tensor:
            y = call(x, weight)
            return torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0]

        return explanation

    return of(
        {
            "conv": lambda x, w: bcos_conv(x, w, freeze=True),
            "linear": lambda x, w: bcos_linear(x, w, freeze=True),
            "position-norm": lambda x, w: (
                uncentered_norm(x, (1,), centered=False, freeze=True) * w[:, None, None]
            ),
        }[name]
    )


@pytest.mark.parametrize("name", ["conv", "linear", "position-norm"])
def test_the_detached_form_has_the_same_map_and_another_gradient(name: str) -> None:
    build, shape = MODULES[name]
    module = random_module(build)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = module(x)
    with explanation_mode(module):
        (weights,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    other = detached(name)(x, module.weight)
    torch.testing.assert_close(weights, other, rtol=1e-9, atol=1e-11)
    right, wrong = (
        torch.cat([g.flatten() for g in torch.autograd.grad(w.square().sum(), [x, module.weight])])
        for w in (weights, other)
    )
    assert (right - wrong).norm() > 0.1 * right.norm()
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(detached(name), (x, module.weight), **CLOSE)


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Mish(),
    ],
    ids=repr,
)
def test_the_gate_has_its_derivative_at_zero(activation: nn.Module) -> None:
    module = Gated(activation)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(map_of(module, False), (x,), eps=1e-4, atol=1e-3)
