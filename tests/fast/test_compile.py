"""Forward, attribution and loss in one graph of torch.compile; the strides of the fast operations."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

from explainguide.attr import InputXGradient
from explainguide.hooks.fast import batch_norm, convolution, gelu, layer_norm, softmax
from explainguide.losses import energy_loss

D = torch.float64
OPERATIONS = torch.ops.explainguide
needs_tracing = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    reason="this version of torch takes no gradient inside a graph",
)
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU"
)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        yield
        return
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "permuted": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded": lambda x: x[..., :1, :1].expand_as(x),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D)


def arguments(
    turn: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Every operation's arguments, tensors of places in one layout and their gradients in another."""
    x, grad, weight = turn(draw(2, 8, 6, 7)), other(draw(2, 8, 6, 7)), draw(8)
    of_channels = batch_norm._forward(x, weight, None, 1e-5)[1:3]
    of_rows = layer_norm._forward(x, None, None, [7], 1e-5)[1:]
    window, each = [1, 1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 1, 1, 8]
    kernel, large = turn(draw(8, 8, 3, 3)), draw(8, 1, 5, 5)
    few, many = turn(draw(2, 3, 6, 7)), turn(draw(2, 256, 3, 2))
    heavy = other(draw(256, 256, 3, 3))
    return {
        "conv2d": (x, kernel, draw(8), window),
        "conv2d of each channel": (x, large, None, each),
        "conv2d_input": (grad, x, kernel, window),
        "conv2d_input of few channels": (grad, few, turn(draw(8, 3, 3, 3)), window),
        "conv2d_input of each channel": (grad, x, large, each),
        "conv2d_weight": (grad, x, kernel, window),
        "conv2d_weight of each channel": (grad, x, large, each),
        "conv2d_weight for few places": (other(draw(2, 256, 3, 2)), many, heavy, window),
        "batch_norm": (x, weight, weight, 1e-5),
        "batch_norm_input": (grad, x, weight, *of_channels, 1e-5),
        "batch_norm_constant": (x, weight, None, draw(8), draw(8).exp(), 1e-5),
        "gelu": (x,),
        "gelu_input": (grad, x),
        "layer_norm": (x, draw(7), draw(7), [7], 1e-5),
        "layer_norm_input": (grad, x, draw(7), *of_rows, [7], 1e-5),
        "softmax": (x,),
        "softmax_input": (grad, x, softmax.softmax(x)),
    }


CASES = list(arguments(LAYOUTS["plain"], LAYOUTS["plain"]))


def test_every_operation_is_among_the_cases() -> None:
    own = {
        f"{name}"
        for module in (batch_norm, convolution, gelu, layer_norm, softmax)
        for value in vars(module).values()
        if isinstance(value, torch.library.CustomOpDef)
        for name in [value._name]
    }
    assert own == {case.partition(" ")[0] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_fake_operations_return_the_real_ones_strides(case: str) -> None:
    """Inductor reads what an operation returns by the strides that the fake one told."""
    operation = getattr(OPERATIONS, case.partition(" ")[0]).default
    for turn in LAYOUTS.values():
        for other in LAYOUTS.values():
            args = arguments(turn, other)[case]
            real = operation(*args)
            with FakeTensorMode() as mode:
                fake = operation(
                    *(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)
                )
            for a, b in zip(
                *((r,) if isinstance(r, Tensor) else r for r in (real, fake)), strict=True
            ):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("case", CASES)
def test_operations_are_registered_as_pytorch_asks_for(case: str) -> None:
    operation = getattr(OPERATIONS, case.partition(" ")[0]).default
    tests = "test_schema", "test_autograd_registration", "test_faketensor"
    args = arguments(LAYOUTS["transposed"], LAYOUTS["channels last"])[case]
    opcheck(operation, args, test_utils=tests)


class Network(nn.Module):
    """Every operation that has a fast form, above a convolution; in that form, or PyTorch's own."""

    def __init__(self, *, fast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fast = fast
        shapes = ((6, 3, 3, 3), (6, 6, 3, 3), (6, 1, 5, 5), (6,), (6,), (18, 6), (5, 6))
        self.weights = nn.ParameterList([0.4 * draw(*shape) for shape in shapes])
        self.mean, self.variance = 0.2 * draw(6), draw(6).exp()
        self.running_mean, self.running_variance = torch.zeros(6, dtype=D), torch.ones(6, dtype=D)

    def body(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weights[0], padding=1)

    def head(self, x: Tensor) -> Tensor:
        convolve, normalize, rows, act = F.conv2d, F.batch_norm, F.layer_norm, F.gelu
        if self.fast:
            convolve, normalize = convolution.conv2d, batch_norm.batch_norm
            rows, act = layer_norm.layer_norm, gelu.gelu
        _, full, each, scale, shift, mix, last = self.weights
        x = convolve(x, full, None, 1, 1)
        x = act(normalize(x, self.running_mean, self.running_variance, scale, shift, True))
        x = normalize(convolve(x, each, None, 1, 2, 1, 6), self.mean, self.variance, scale, shift)
        tokens = rows(x.permute(0, 2, 3, 1), (6,), scale, shift).flatten(1, 2)
        query, key, value = (tokens @ mix.T).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        similarity = query @ key.mT
        weights = softmax.softmax(similarity) if self.fast else similarity.softmax(-1)
        tokens = tokens + (weights @ value).transpose(1, 2).flatten(2)
        return tokens.mean(1) @ last.T


def guided(network: Network, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """The whole loss, as in the documentation."""
    return whole_loss(network, images, labels, masks, detach=False)


def whole_loss(
    network: Network, images: Tensor, labels: Tensor, masks: Tensor, *, detach: bool
) -> Tensor:
    feature = network.body(images)
    logits = network.head(feature)
    score = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, feature, create_graph=True)
    maps = InputXGradient.combine(feature, gradient.detach() if detach else gradient)
    return energy_loss(maps, masks).mean()


def results(loss: Callable[..., Tensor], *, fast: bool, **options: bool) -> list[Tensor]:
    torch.manual_seed(1)
    images, labels, masks = (
        torch.rand(2, 3, 6, 6, dtype=D),
        torch.tensor([1, 3]),
        torch.zeros(2, 6, 6),
    )
    masks[:, 1:4, 2:5] = 1
    network = Network(fast=fast)
    value = loss(network, images, labels, masks.to(D), **options)
    value.backward()
    found = [value.detach(), network.running_mean, network.running_variance]
    return found + [p.grad for p in network.parameters() if p.grad is not None]


def farthest(found: list[Tensor], expected: list[Tensor]) -> float:
    assert len(found) == len(expected) == 10
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)


@needs_tracing
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])],
)
@pytest.mark.parametrize("fast", [False, True])
def test_the_whole_loss_in_one_graph(backend: str, fast: bool) -> None:
    expected = results(guided, fast=False)
    found = results(torch.compile(guided, fullgraph=True, backend=backend), fast=fast)
    assert farthest(found, expected) <= 1e-10
    assert farthest(results(guided, fast=fast), expected) <= 1e-10


def test_a_constant_gradient_would_be_seen() -> None:
    constant = results(whole_loss, fast=True, detach=True)
    # Where the map's gradient is a constant, nothing above the layer learns at all.
    assert len(constant) < 10
    largest = float(constant[3].abs().max())
    assert float((results(guided, fast=True)[3] - constant[3]).abs().max()) > 0.01 * largest
