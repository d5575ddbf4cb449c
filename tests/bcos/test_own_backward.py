"""Operations with a backward of their own: three derivatives equal those of what they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from explainguide.bcos.norms import variance_of
from explainguide.bcos.transform import rescaled


def plain(weight: Tensor, power: float) -> Tensor:
    dims = tuple(range(1, weight.ndim))
    return weight * torch.linalg.vector_norm(weight, dim=dims, keepdim=True).pow(power)


def three_derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    found, value = [], function(x)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sin().sum(), x, create_graph=True)
        found.append(value)
    return found


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.25])
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (3, 5)])
def test_rescaled(shape: tuple[int, ...], power: float) -> None:
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: rescaled(w, power), weight)
    assert torch.autograd.gradgradcheck(lambda w: rescaled(w, power), weight)
    ours = three_derivatives(lambda w: rescaled(w, power), weight)
    theirs = three_derivatives(lambda w: plain(w, power), weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_rescaled_with_a_transposed_gradient(form: torch.memory_format) -> None:
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64).to(memory_format=form).requires_grad_()
    probe = torch.randn(4, 3, 2, 2, dtype=torch.float64).transpose(0, 1)
    (ours,) = torch.autograd.grad(rescaled(weight, -1.0), weight, probe)
    (theirs,) = torch.autograd.grad(plain(weight, -1.0), weight, probe)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [(0, 2, 3), (1,), (-1,), (0, 1, 2, 3)])
def test_variance(dims: tuple[int, ...]) -> None:
    def theirs(x: Tensor) -> Tensor:
        return x.var(dims, correction=0, keepdim=True)

    x = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: variance_of(x, dims), x)
    assert torch.autograd.gradgradcheck(lambda x: variance_of(x, dims), x)
    torch.testing.assert_close(variance_of(x, dims), theirs(x), rtol=1e-12, atol=1e-12)
    ours = three_derivatives(lambda x: variance_of(x, dims), x)
    torch.testing.assert_close(ours, three_derivatives(theirs, x), rtol=1e-9, atol=1e-9)


def test_variance_far_from_zero() -> None:
    x = torch.randn(8, 4, 8, 8) + 1000
    expected = x.double().var((0, 2, 3), correction=0, keepdim=True).float()
    torch.testing.assert_close(variance_of(x, (0, 2, 3)), expected, rtol=1e-6, atol=0)
