"""The parameter gradient of loss_loc equals central differences, for every setting there is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.attr import IntegratedGradients
from explainguide.losses import LOSSES

from .networks import FOR_ANY_NETWORK, TARGETS, SmallCnn, batch

STEP = 1e-5
DIRECTIONS = 3


def small_model(mode: str) -> nn.Module:
    torch.manual_seed(3)
    return SmallCnn().double().train(mode == "train")


def assert_gradients_are_right(model: nn.Module, guide: ExplanationGuidance, images: Tensor, **how):
    """Derivatives of loss_loc in random directions of the whole parameter space."""
    annotations = how.pop("annotations", TARGETS)
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]

    def loss(direction: list[Tensor] | None = None, length: float = 0.0) -> Tensor:
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                shift = 0 if direction is None else length * direction[index]
                parameter.copy_(start[index] + shift)
        model(images)
        return guide.loss_loc(annotations, **how)

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    assert any(g is not None and g.any() for g in gradients), "no gradient at all"
    generator = torch.Generator().manual_seed(11)
    for _ in range(DIRECTIONS):
        direction = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        norm = torch.stack([d.norm() for d in direction]).norm()
        direction = [d / norm for d in direction]
        found = sum(
            (g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None
        )
        # The central stencil of fourth order: its error is far below the tolerance.
        ends = {k: loss(direction, k * STEP).detach() for k in (-2, -1, 1, 2)}
        expected = (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * STEP)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("layer", ["input", "stem", "mix"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("attribution", FOR_ANY_NETWORK)
def test_finite_difference(attribution: str, loss: str, layer: str, mode: str) -> None:
    model = small_model(mode)
    # (A black image has no variance, which is more curvature than finite differences can follow.)
    grey = IntegratedGradients(model, n_steps=3, baselines=0.5)
    chosen = grey if attribution == "intgrad" else attribution
    guide = ExplanationGuidance(
        model,
        layer,
        attribution=chosen,
        loss=loss,
        generator=torch.Generator().manual_seed(0),
    )
    state = guide._settings.generator.get_state()

    class SameDraw:  # every evaluation must explain the same classes
        def loss_loc(self, annotations, **how):
            guide._settings.generator.set_state(state)
            return guide.loss_loc(annotations, **how)

    assert_gradients_are_right(model, SameDraw(), batch(dtype=torch.float64))


@pytest.mark.parametrize("score", ["logit", "log_prob", "sum_log_probs"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_finite_difference_of_scores_and_all_classes(score: str, reduction: str, mode: str) -> None:
    model = small_model(mode)
    guide = ExplanationGuidance(
        model,
        ["input", "mix"],
        target="all",
        score=score,
        reduction=reduction,
        layer_weights=[0.3, 2.0],
    )
    assert_gradients_are_right(model, guide, batch(dtype=torch.float64))


def test_finite_difference_of_a_masked_predicted_class() -> None:
    model = small_model("eval")
    guide = ExplanationGuidance(model, "stem", target="predicted", loss="l1")
    masks = torch.zeros(3, 12, 12).bool()
    masks[:, 2:8, 3:7] = True
    assert_gradients_are_right(model, guide, batch(dtype=torch.float64), annotations=masks)


def test_finite_difference_through_frozen_layers_below() -> None:
    model = small_model("eval")
    model.stem.requires_grad_(False)
    guide = ExplanationGuidance(model, "stem", target="all")
    images = batch(dtype=torch.float64)
    model(images)
    loss = guide.loss_loc(TARGETS)
    gradient = torch.autograd.grad(loss, model.mix.weight)[0]
    assert gradient.abs().max() > 0
