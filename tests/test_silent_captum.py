"""An attribution of ours stands wherever Captum takes one."""

from __future__ import annotations

from typing import Any

import captum.attr
import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from explainguide.attr import ATTRIBUTIONS, InputXGradient, IntegratedGradients

from .networks import FOR_ANY_NETWORK, SmallCnn, batch

DOUBLE = torch.float64


@pytest.fixture
def model() -> nn.Module:
    return SmallCnn().double().eval()


@pytest.mark.parametrize("layer", [None, "stem", "mix"])
@pytest.mark.parametrize("name", FOR_ANY_NETWORK)
@pytest.mark.parametrize("target", [1, torch.tensor([0, 1, 2]), torch.tensor([2])], ids=str)
def test_captums_metrics_and_noise_tunnel(
    model: nn.Module, name: str, layer: str | None, target: Any
) -> None:
    attribution = ATTRIBUTIONS[name](model, layer)
    x = batch(dtype=DOUBLE)
    plain = attribution.attribute(x, target)
    for inputs in (x, (x,)):
        found = sensitivity_max(
            attribution.attribute, inputs, perturb_radius=1e-3, n_perturb_samples=2, target=target
        )
        assert found.shape == (3,) and found.isfinite().all()
        assert (found < 1).all()
        # No noise: every sample is the plain map.
        tunnel = NoiseTunnel(attribution)
        smooth = tunnel.attribute(inputs, nt_samples=3, stdevs=1e-12, target=target)
        smooth = smooth[0] if isinstance(inputs, tuple) else smooth
        torch.testing.assert_close(smooth, plain, atol=1e-7, rtol=1e-5)
    assert isinstance(attribution.attribute((x,), target), tuple)
    assert tunnel.multiplies_by_inputs == (name in ("ixg", "intgrad"))
    if layer is None:

        def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
            noise = 1e-3 * torch.randn_like(inputs)
            return noise, inputs - noise

        values = infidelity(model, perturb, x, plain.expand_as(x), target=target)
        assert values.shape == (3,) and values.isfinite().all()


def test_noise_tunnel_averages_what_noisy_images_give(model: nn.Module) -> None:
    x = batch(dtype=DOUBLE)
    torch.manual_seed(3)
    ours = NoiseTunnel(InputXGradient(model)).attribute(x, nt_samples=5, stdevs=0.3, target=1)
    torch.manual_seed(3)
    theirs = NoiseTunnel(captum.attr.InputXGradient(model)).attribute(
        x, nt_samples=5, stdevs=0.3, target=1
    )
    torch.testing.assert_close(ours, theirs.sum(1, keepdim=True))


BASELINES = [
    0.0,
    0.3,
    torch.full((1, 3, 12, 12), -0.2, dtype=DOUBLE),
    torch.randn(3, 3, 12, 12, dtype=DOUBLE),
]


@pytest.mark.parametrize("baseline", BASELINES, ids=["0", "0.3", "one", "each"])
def test_baselines_and_delta_of_integrated_gradients(model: nn.Module, baseline: Any) -> None:
    x, target = batch(dtype=DOUBLE), torch.tensor([0, 1, 2])
    theirs = captum.attr.IntegratedGradients(model)
    expected, missing = theirs.attribute(
        x, baseline, target, n_steps=20, return_convergence_delta=True
    )
    ours = IntegratedGradients(model, n_steps=20)
    found, delta = ours.attribute(x, target, baselines=baseline, return_convergence_delta=True)
    torch.testing.assert_close(found, expected.sum(1, keepdim=True))
    torch.testing.assert_close(delta, missing, atol=1e-9, rtol=1e-6)
    (in_tuple,), again = ours.attribute(
        (x,), target, baselines=(baseline,), return_convergence_delta=True
    )
    assert torch.equal(in_tuple, found) and torch.equal(again, delta)
    assert ours.baselines == 0.0  # the object is as it was
    assert ours.has_convergence_delta() and not InputXGradient(model).has_convergence_delta()
    hidden = captum.attr.LayerIntegratedGradients(model, model.mix)
    expected, missing = hidden.attribute(
        x, baseline, target, n_steps=20, return_convergence_delta=True
    )
    found, delta = IntegratedGradients(model, "mix", n_steps=20).attribute(
        x, target, baselines=baseline, return_convergence_delta=True
    )
    torch.testing.assert_close(found, expected.sum(1, keepdim=True))
    torch.testing.assert_close(delta, missing, atol=1e-9, rtol=1e-6)


def test_noise_tunnel_with_delta(model: nn.Module) -> None:
    x = batch(dtype=DOUBLE)
    _, delta = NoiseTunnel(IntegratedGradients(model, n_steps=20)).attribute(
        x, nt_samples=2, stdevs=0.1, target=1, return_convergence_delta=True
    )
    assert delta.shape == (6,) and (delta.abs() < 1e-3).all()


def test_a_tuple_with_a_table() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.head = SmallCnn(num_classes=6), nn.Linear(8, 4)

        def forward(self, table: Tensor, image: Tensor) -> Tensor:
            return self.head(torch.cat([self.image(image), table], 1).tanh())

    model, x, table = Two().double().eval(), batch(dtype=DOUBLE), torch.rand(3, 2).double()
    expected = captum.attr.InputXGradient(model).attribute(
        (table.requires_grad_(), x.clone().requires_grad_()), target=1
    )[1]
    (found,) = InputXGradient(model).attribute((table, x), 1)
    torch.testing.assert_close(found, expected.sum(1, keepdim=True))
