"""Fast second derivatives against PyTorch's own and against finite differences, element by element."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from explainguide.hooks.fast import FAST
from explainguide.hooks.second_order import TwiceDifferentiable

D = torch.float64


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, requires_grad=True)


def run(operation: Callable[..., Tensor], tensors: tuple[Tensor, ...], *, fast: bool) -> Tensor:
    """The operation as it stands above a guided layer."""
    with TwiceDifferentiable(fast=True) if fast else nullcontext() as mode:
        if mode is not None:
            mode.activate()
        output = operation(*tensors)
    if mode is not None:
        assert mode.fast and not mode.slow, mode.slow
    return output


def derivatives(
    operation: Callable[..., Tensor], tensors: tuple[Tensor, ...], *, fast: bool
) -> dict[str, Tensor]:
    """The value, and every derivative that a training takes."""
    torch.manual_seed(1)
    y = run(operation, tensors, fast=fast)
    (g,) = torch.autograd.grad(
        (y * torch.randn(y.shape, dtype=D)).sin().sum(), tensors[0], create_graph=True
    )
    local = (g * torch.randn(g.shape, dtype=D)).tanh().sum()
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    alone = torch.autograd.grad(local, tensors, retain_graph=True, **options)
    total = torch.autograd.grad(local + y.square().sum(), tensors, retain_graph=True, **options)
    graph = torch.autograd.grad(local + y.square().sum(), tensors, create_graph=True, **options)
    found = {"value": y, "first": g}
    for kind, gradients in (("alone", alone), ("total", total), ("with graph", graph)):
        found |= {f"{kind} {i}": gradient for i, gradient in enumerate(gradients)}
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, value in a.items():
        largest = float(value.detach().abs().max())
        error = float((value - b[name]).detach().abs().max())
        assert error <= 1e-12 * max(largest, 1e-3), (name, error, largest)


CONVOLUTIONS = {
    "3x3": ((2, 4, 9, 8), (6, 4, 3, 3), {"padding": 1}),
    "1x1": ((2, 4, 5, 6), (6, 4, 1, 1), {}),
    "1x1 strided": ((2, 4, 5, 6), (6, 4, 1, 1), {"stride": 2}),
    "7x7 of an image": ((2, 3, 15, 14), (6, 3, 7, 7), {"stride": 2, "padding": 3}),
    "of one channel": ((2, 1, 8, 8), (6, 1, 3, 3), {}),
    "grouped": ((2, 4, 9, 8), (6, 2, 3, 3), {"groups": 2, "padding": 1, "stride": (2, 1)}),
    "depthwise": ((2, 6, 9, 8), (6, 1, 7, 7), {"groups": 6, "padding": 3}),
    "depthwise, strided": ((2, 6, 12, 9), (6, 1, 7, 5), {"groups": 6, "padding": 3, "stride": 2}),
    "depthwise, strided unevenly": (
        (2, 6, 13, 14),
        (6, 1, 5, 5),
        {"groups": 6, "padding": (1, 2), "stride": (3, 2), "dilation": (2, 1)},
    ),
    "depthwise, twice as many": ((2, 3, 9, 8), (6, 1, 3, 3), {"groups": 3, "padding": 1}),
    "dilated": ((2, 4, 9, 8), (6, 4, 3, 2), {"dilation": (2, 3), "padding": (2, 1)}),
    "same": ((2, 4, 9, 8), (6, 4, 3, 3), {"padding": "same"}),
    "same, of even size": ((2, 5, 9, 8), (6, 5, 2, 4), {"padding": "same", "dilation": (3, 1)}),
    "valid": ((2, 4, 9, 8), (6, 4, 3, 3), {"padding": "valid", "stride": 2}),
    "patches": ((2, 3, 8, 12), (6, 3, 4, 4), {"stride": 4}),
    "patches and a rest": ((2, 5, 9, 11), (6, 5, 2, 3), {"stride": (2, 3)}),
    "more windows than image": ((2, 5, 3, 3), (6, 5, 5, 5), {"padding": 2}),
    "many weights, few places": ((2, 256, 3, 2), (256, 256, 3, 3), {"padding": 1}),
    "many weights, strided": ((2, 512, 4, 4), (1024, 512, 1, 1), {"stride": 2}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_convolutions(case: str, biased: bool) -> None:
    image, kernel, options = CONVOLUTIONS[case]
    tensors = (draw(*image), draw(*kernel), *([draw(kernel[0])] if biased else []))

    def operation(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, **options)

    own = derivatives(operation, tensors, fast=True)
    equal(derivatives(operation, tensors, fast=False), own)


def test_a_convolution_in_channels_last() -> None:
    x = draw(2, 8, 6, 7).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = draw(16, 8, 3, 3).detach().contiguous(memory_format=torch.channels_last)
    tensors = (x, weight.requires_grad_(), draw(16))
    equal(derivatives(F.conv2d, tensors, fast=False), derivatives(F.conv2d, tensors, fast=True))


NORMS: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "batch": ((4, 3, 5, 6), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch of vectors": ((8, 3), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch of rows": ((4, 3, 5), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch, no weight": ((4, 3, 5, 6), lambda x: F.batch_norm(x, None, None, training=True)),
    "batch, weight alone": ((4, 3, 2, 2), lambda x, w: F.batch_norm(x, None, None, w, None, True)),
    "batch, large eps": (
        (4, 3, 5, 6),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=0.7),
    ),
    "batch, evaluation": (
        (4, 3, 5, 6),
        lambda x, w, b: F.batch_norm(x, torch.arange(3.0).to(D), torch.ones(3).to(D) * 2, w, b),
    ),
    "batch of vectors, evaluation, no weight": (
        (4, 3),
        lambda x: F.batch_norm(x, torch.arange(3.0).to(D), torch.ones(3).to(D) * 2),
    ),
    "layer": ((2, 5, 3), lambda x, w, b: F.layer_norm(x, (3,), w, b)),
    "layer, no weight": ((2, 5, 7), lambda x: F.layer_norm(x, (7,))),
    "layer, weight alone": ((2, 5, 3), lambda x, w: F.layer_norm(x, (3,), w, None, 1e-2)),
    "layer of a vector": ((3,), lambda x, w, b: F.layer_norm(x, (3,), w, b)),
    "layer over channels": (
        (2, 3, 4, 5),
        lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (3,), w, b).permute(0, 3, 1, 2),
    ),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms(case: str) -> None:
    shape, operation = NORMS[case]
    count = operation.__code__.co_argcount - 1
    tensors = (draw(*shape), *(draw(3) for _ in range(count)))
    equal(derivatives(operation, tensors, fast=False), derivatives(operation, tensors, fast=True))


def test_layer_norm_over_several_dimensions() -> None:
    tensors = draw(3, 2, 4, 5), draw(4, 5), draw(4, 5)

    def operation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (4, 5), weight, bias)

    equal(derivatives(operation, tensors, fast=False), derivatives(operation, tensors, fast=True))


POINTWISE: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "gelu": ((3, 4, 5), F.gelu),
    "softmax": ((3, 4, 5), lambda x: F.softmax(x, -1)),
    "softmax, by its dimension": ((3, 4, 5), lambda x: x.softmax(dim=2)),
    "torch.softmax": ((3, 4, 5), lambda x: torch.softmax(x, dim=-1)),
}


@pytest.mark.parametrize("case", POINTWISE)
def test_pointwise(case: str) -> None:
    shape, operation = POINTWISE[case]
    tensors = (draw(*shape),)
    equal(derivatives(operation, tensors, fast=False), derivatives(operation, tensors, fast=True))


def test_gelu_far_out() -> None:
    """Where the density vanishes nothing becomes infinite or NaN."""
    x = torch.tensor([-1e30, -40.0, -9.0, -1e-30, 0.0, 1e-30, 9.0, 40.0, 1e30], dtype=D)
    tensors = (x.requires_grad_(),)
    own = derivatives(F.gelu, tensors, fast=True)
    assert all(value.isfinite().all() for value in own.values())
    equal(derivatives(F.gelu, tensors, fast=False), own)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(scale: float | None) -> None:
    tensors = draw(2, 3, 5, 4), draw(2, 3, 6, 4), draw(2, 3, 6, 2)

    def operation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.mT) * (4**-0.5 if scale is None else scale)).softmax(-1) @ v

    equal(derivatives(explicit, tensors, fast=False), derivatives(operation, tensors, fast=True))


def _checked() -> Iterator[Any]:
    """Operations and small inputs for finite differences."""
    for case in ("3x3", "grouped", "same, of even size", "patches and a rest", "7x7 of an image"):
        image, kernel, options = CONVOLUTIONS[case]
        image, kernel = (1, *image[1:2], 7, 7), (*kernel[:2], *kernel[2:])
        yield pytest.param(lambda x, w, o=options: F.conv2d(x, w, **o), (image, kernel), id=case)
    for case in ("batch", "layer", "layer over channels"):
        yield pytest.param(NORMS[case][1], ((2, 3, 2, 3)[:4], (3,), (3,)), id=case)
    yield pytest.param(F.gelu, ((7,),), id="gelu")
    yield pytest.param(lambda x: x.softmax(-1), ((2, 5),), id="softmax")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("operation", "shapes"), list(_checked()))
def test_finite_differences(
    operation: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...]
) -> None:
    tensors = tuple(draw(*shape) * 0.5 for shape in shapes)

    def fast(*inputs: Tensor) -> Tensor:
        return run(operation, inputs, fast=True)

    assert gradcheck(fast, tensors, fast_mode=True)
    assert gradgradcheck(fast, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_running_statistics(dtype: torch.dtype, momentum: float) -> None:
    x = torch.randn(4, 3, 5, 5).to(dtype).requires_grad_()
    kind = torch.promote_types(dtype, torch.float32)

    def statistics(fast: bool) -> list[Tensor]:
        running = [torch.full((3,), 0.3, dtype=kind), torch.full((3,), 2.0, dtype=kind)]
        run(lambda x: F.batch_norm(x, *running, None, None, True, momentum), (x,), fast=fast)
        return running

    for own, torchs in zip(statistics(True), statistics(False), strict=True):
        torch.testing.assert_close(
            own, torchs, rtol=1e-6 if kind == torch.float32 else 1e-14, atol=0
        )


def test_only_the_gradients_that_are_used_are_computed() -> None:
    """The first gradient is with respect to the layer alone: no weight's is computed on the way."""
    seen: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x, weight = draw(2, 5, 8, 8), draw(6, 5, 3, 3)
    y = run(F.conv2d, (x * 1, weight), fast=True)
    with Spy():
        torch.autograd.grad(y.sum(), x, create_graph=True)
    assert "conv2d_input.default" in seen
    assert not {"conv2d_weight.default", "convolution_backward.default"} & set(seen)


def test_every_form_is_tested_here() -> None:
    names = {form.name for form in FAST.values()}
    assert names == {
        "batch_norm", "conv2d", "gelu", "layer_norm", "scaled_dot_product_attention", "softmax",
    }  # fmt: skip
