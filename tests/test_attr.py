"""Attributions equal Captum's, one forward each, and can be trained through."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from explainguide.attr import (
    ATTRIBUTIONS,
    GradCam,
    Gradient,
    InputXGradient,
    IntegratedGradients,
    LayerCam,
    LayerMap,
)
from explainguide.losses import energy_loss

from .networks import FOR_ANY_NETWORK, InPlaceCnn, SmallCnn, batch

CLASSES = torch.tensor([0, 2, 3])


@pytest.fixture
def model() -> nn.Module:
    return SmallCnn().double().eval()


def images() -> Tensor:
    return batch(dtype=torch.float64)


def test_input_methods_equal_captum(model: nn.Module) -> None:
    x = images()
    theirs = captum.attr.InputXGradient(model).attribute(x.clone().requires_grad_(), CLASSES)
    assert_near(InputXGradient(model).attribute(x, CLASSES), theirs.sum(1, keepdim=True))
    theirs = captum.attr.Saliency(model).attribute(x.clone().requires_grad_(), CLASSES, abs=False)
    assert_near(Gradient(model).attribute(x, CLASSES), theirs.norm(dim=1, keepdim=True))
    for baseline in (0.0, 0.3):
        theirs = captum.attr.IntegratedGradients(model).attribute(
            x.clone().requires_grad_(), baseline, CLASSES, n_steps=20
        )
        ours = IntegratedGradients(model, n_steps=20, baselines=baseline).attribute(x, CLASSES)
        assert_near(ours, theirs.sum(1, keepdim=True), 1e-6)  # their weights are float32


@pytest.mark.parametrize("layer", ["stem", "body", "mix"])
def test_layer_methods_equal_captum(model: nn.Module, layer: str) -> None:
    x, module = images(), dict(model.named_modules())[layer]
    theirs = captum.attr.LayerGradCam(model, module).attribute(
        x.clone().requires_grad_(), CLASSES, relu_attributions=True
    )
    assert_near(GradCam(model, layer).attribute(x, CLASSES), theirs)
    theirs = captum.attr.LayerGradientXActivation(model, module).attribute(
        x.clone().requires_grad_(), CLASSES
    )
    assert_near(InputXGradient(model, layer).attribute(x, CLASSES), theirs.sum(1, keepdim=True))
    theirs = captum.attr.LayerIntegratedGradients(model, module).attribute(
        x.clone().requires_grad_(), 0.1, CLASSES, n_steps=20
    )
    ours = IntegratedGradients(model, layer, n_steps=20, baselines=0.1).attribute(x, CLASSES)
    assert_near(ours, theirs.sum(1, keepdim=True), 1e-6)


def test_layercam_by_hand(model: nn.Module) -> None:
    feature = model.stem(images()).detach().requires_grad_()
    rest = nn.functional.silu(model.mix(nn.functional.gelu(model.body(feature)))).mean((2, 3))
    score = model.head(rest)[torch.arange(3), CLASSES].sum()
    (gradient,) = torch.autograd.grad(score, feature)
    expected = (gradient.clamp(min=0) * feature).sum(1, keepdim=True).clamp(min=0).detach()
    assert_near(LayerCam(model, "stem").attribute(images(), CLASSES), expected)


def test_gradcam_is_ixg_above_a_global_pool(model: nn.Module) -> None:
    """At the last map of a ResNet the gradient is constant over places."""
    network = InPlaceCnn().double().eval()
    ixg = InputXGradient(network, "features").attribute(images(), CLASSES)
    gradcam = GradCam(network, "features").attribute(images(), CLASSES)
    assert_near(torch.relu(ixg), gradcam)


def test_integrated_gradients_are_complete(model: nn.Module) -> None:
    found = IntegratedGradients(model).attribute(images(), CLASSES)
    logits = model(images()) - model(torch.zeros_like(images()))
    assert_near(found.sum((1, 2, 3)), logits.gather(1, CLASSES[:, None])[:, 0].detach(), 1e-6)


@pytest.mark.parametrize("name", FOR_ANY_NETWORK)
@pytest.mark.parametrize("layer", ["input", "stem"])
def test_the_map_can_be_trained_through(model: nn.Module, name: str, layer: str) -> None:
    """The no-op that users met: a loss on the map must reach the parameters."""
    attribution = ATTRIBUTIONS[name](model, layer)
    found = attribution.attribute(images(), CLASSES, create_graph=True)
    assert found.shape == (3, 1, *((12, 12) if layer == "input" else (6, 6)))
    mask = torch.zeros_like(found[:, 0])
    mask[:, :3] = 1
    energy_loss(found[:, 0], mask).sum().backward()
    for parameter in (model.stem[0].weight, model.mix.weight, model.head.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", FOR_ANY_NETWORK)
def test_without_create_graph_nothing_is_kept(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        found = ATTRIBUTIONS[name](model).attribute(images(), 1)
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("name", ["gradient", "ixg", "gradcam", "layercam"])
def test_exactly_one_forward(model: nn.Module, name: str) -> None:
    calls = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    ATTRIBUTIONS[name](model, "mix").attribute(images(), 0)
    handle.remove()
    assert len(calls) == 1


def test_more_arguments_reach_the_model() -> None:
    class Scaled(SmallCnn):
        def forward(self, images: Tensor, scale: float, shift: float = 0.0) -> Tensor:
            return super().forward(images * scale + shift)

    model = Scaled().double().eval()
    attribution = InputXGradient(model)
    plain = attribution.attribute(images(), 0, additional_forward_args=(1.0, 0.0))
    assert torch.equal(attribution.attribute(images(), 0, additional_forward_args=1.0), plain)
    assert not torch.equal(attribution.attribute(images(), 0, additional_forward_args=2.0), plain)


def test_a_single_logit_needs_no_target() -> None:
    model = SmallCnn(num_classes=1).double().eval()
    assert_near(
        InputXGradient(model).attribute(images()), InputXGradient(model).attribute(images(), 1)
    )


def test_the_same_settings_at_another_layer(model: nn.Module) -> None:
    one = IntegratedGradients(model, n_steps=5)
    other = one.at("mix")
    assert isinstance(other, LayerMap)
    assert (one.layer, other.layer, other.n_steps) == (None, "mix", 5)


@pytest.mark.parametrize("name", FOR_ANY_NETWORK)
def test_silent_autocast_does_not_round_what_the_model_keeps_in_float32(name: str) -> None:
    """The backward pass runs in the types of the forward pass, not in those of the caller."""

    class Exact(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(images)

    attribution = ATTRIBUTIONS[name](Exact().eval(), "stem")
    expected = attribution.attribute(batch(), CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        found = attribution.attribute(batch(), CLASSES)
    assert_near(found, expected, 1e-6)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance)
