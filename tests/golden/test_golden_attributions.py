"""Attributions, losses and parameter gradients equal the authors' program and Captum."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from explainguide import ExplanationGuidance
from explainguide.attr import GradCam, InputXGradient, IntegratedGradients, integrated
from explainguide.attr.gradients import layer_gradients

from .reader import fill, load, seeded

METHODS = {"IxG": "ixg", "GradCam": "gradcam"}
LOSSES = {"Energy": "energy", "L1": "l1", "RRR": "rrr", "PPCE": "ppce"}
LAYERS = {"Input": "input", **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}}


@cache
def golden_weights() -> dict[str, Tensor]:
    return fill(resnet18(weights=None, num_classes=5), 3).double().state_dict()


@cache
def probe(parameter: str, shape: tuple[int, ...]) -> Tensor:
    return seeded(f"probe:{parameter}", shape).double()


def golden_resnet(mode: str = "eval") -> torch.nn.Module:
    model = resnet18(weights=None, num_classes=5).double()
    model.load_state_dict(golden_weights())
    return model.train(mode == "train")


def annotations(case: dict, classes: Tensor) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).double(), "labels": torch.full((len(boxes),), int(k))}
        for boxes, k in zip(case["boxes"], classes, strict=True)
    ]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_golden_guidance_on_a_resnet18(mode: str, layer: str, method: str) -> None:
    tensors, case = load("03_attributions", "resnet18_ixg_gradcam")
    images, classes = tensors["input"].double(), tensors["classes"]
    for published, loss in LOSSES.items():
        model = golden_resnet(mode)
        guide = ExplanationGuidance(
            model, LAYERS[layer], attribution=METHODS[method], loss=loss, reduction="sum"
        )
        model(images)
        value = guide.loss_loc(annotations(case, classes))
        name = f"{mode}/{layer}/{method}"
        found = guide.attributions[LAYERS[layer]]
        stored = tensors.get(f"map/{name}")
        if stored is not None and stored.dtype == torch.float64:
            torch.testing.assert_close(found, stored[:, 0], rtol=1e-9, atol=1e-12)
        else:
            stored = tensors[f"map_f32/{name}"] if stored is None else stored
            torch.testing.assert_close(found.float(), stored[:, 0], rtol=1e-4, atol=1e-6)
        assert float(value.detach()) == pytest.approx(
            case["loss"][f"{name}/{published}"]["f64"], rel=1e-9
        )

        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        summary = case["grad_summary"][f"{name}/{published}"]
        scale = max(s[0] for s in summary.values() if s is not None)
        for (parameter, tensor), gradient in zip(parameters.items(), gradients, strict=True):
            expected = summary[parameter]
            gradient = torch.zeros_like(tensor) if gradient is None else gradient
            if expected is None:
                assert not gradient.any()
                continue
            dot = (gradient * probe(parameter, tuple(tensor.shape))).sum()
            got = torch.stack([gradient.norm(), gradient.sum(), dot])
            torch.testing.assert_close(
                got,
                torch.tensor(expected, dtype=torch.float64),
                rtol=1e-9,
                atol=1e-9 * max(scale, 1),
                msg=lambda m, at=f"{name}/{published} {parameter}": f"{at}: {m}",
            )
            full = tensors.get(f"grad/{name}/{published}/{parameter}")
            if full is not None and full.dtype == torch.float64:
                torch.testing.assert_close(gradient, full, rtol=1e-9, atol=1e-9 * max(scale, 1))
        guide.remove()


@pytest.fixture
def captum_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captum rounds the quadrature's weights to float32, which shows at 1e-8; ours are float64."""
    exact = integrated._quadrature

    def rounded(n_steps: int) -> list[tuple[float, float]]:
        return [(a, float(torch.tensor(w, dtype=torch.float32))) for a, w in exact(n_steps)]

    monkeypatch.setattr(integrated, "_quadrature", rounded)


@pytest.mark.usefixtures("captum_weights")
def test_golden_captum_input_methods() -> None:
    tensors, _ = load("08_captum", "resnet18")
    model, images = golden_resnet(), tensors["input"].double()
    classes = tensors["classes"]
    ixg = InputXGradient(model).attribute(images, classes)
    assert_near(ixg, tensors["InputXGradient"].sum(1, keepdim=True))
    path = IntegratedGradients(model, n_steps=64).attribute(images, classes)
    stored = tensors["IntegratedGradients_64_gausslegendre_zero"].sum(1, keepdim=True)
    assert_near(path, stored)
    leaf = images.clone().requires_grad_()
    scores = model(leaf).gather(1, classes[:, None]).T
    (gradient,) = layer_gradients(scores, [leaf], create_graph=False)
    assert gradient is not None
    assert_near(gradient[0], tensors["Saliency_signed"])


@pytest.mark.usefixtures("captum_weights")
@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4"])
def test_golden_captum_layer_methods(layer: str) -> None:
    tensors, _ = load("08_captum", "resnet18")
    model, images = golden_resnet(), tensors["input"].double()
    classes = tensors["classes"]
    gradcam = GradCam(model, layer).attribute(images, classes)
    assert_near(gradcam, torch.relu(tensors[f"LayerGradCam/{layer}/relu=False"]))
    product = tensors.get(f"LayerGradientXActivation_sumC/{layer}")
    if product is not None:
        assert_near(InputXGradient(model, layer).attribute(images, classes), product)
    if layer == "layer4":
        path = IntegratedGradients(model, layer, n_steps=64).attribute(images, classes)
        assert_near(path, tensors["LayerIntegratedGradients/layer4"].sum(1, keepdim=True))


def assert_near(found: Tensor, expected: Tensor) -> None:
    """1e-9 against float64 references, 1e-5 against those stored in float32."""
    exact = expected.dtype == torch.float64
    torch.testing.assert_close(
        found.to(expected.dtype),
        expected,
        rtol=1e-9 if exact else 1e-5,
        atol=1e-9 if exact else 1e-6,
    )
