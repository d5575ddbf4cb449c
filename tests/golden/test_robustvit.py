"""Relevance, its losses and parameter gradients equal the authors' program (RobustViT)."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from explainguide import ExplanationGuidance
from explainguide.attr import AttentionRelevance
from explainguide.losses import scale_to_unit

from .reader import fill, load, seeded

CASES = {
    "vit_tiny_64": {"img_size": 64, "depth": 4, "embed_dim": 192, "num_heads": 3},
    "vit_224_unmodified": {"img_size": 224, "depth": 2, "embed_dim": 32, "num_heads": 2},
}


def golden_vit(name: str, case: dict) -> torch.nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **CASES[name])
    return fill(model, case["seed"], case["gain"]).double().eval()


@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_relevance(name: str) -> None:
    tensors, case = load("06_robustvit", name)
    model, images = golden_vit(name, case), tensors["input"].double()
    relevance = AttentionRelevance(model)
    for classes, stored in (
        (tensors["classes"], tensors["relevance"]),
        (torch.tensor(case["pred"]), tensors["relevance_index_none"]),
    ):
        coarse = relevance.attribute(images, classes)
        if stored.dtype == torch.float64:
            tokens = tensors["relevance_tokens_R[0,1:]"]
            torch.testing.assert_close(coarse.flatten(1), tokens, rtol=1e-9, atol=1e-12)
        fine = F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)
        unit = scale_to_unit(fine[:, 0])[:, None].to(stored.dtype)
        tolerance = 1e-9 if stored.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(unit, stored, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", ["exact", "code"])
@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_parameter_gradients(name: str, variant: str) -> None:
    tensors, case = load("06_robustvit", name)
    model, images = golden_vit(name, case), tensors["input"].double()
    relevance = AttentionRelevance(model, detach_gradient=variant == "code")
    guide = ExplanationGuidance(model, attribution=relevance, loss="relevance")
    torch.testing.assert_close(model(images).detach(), tensors["logits"], rtol=1e-9, atol=1e-9)
    loss = guide.loss_loc(tensors["seg_map"][:, 0].double(), target=tensors["classes"])
    assert float(loss.detach()) == pytest.approx(case["segmentation_loss"], rel=1e-9)

    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    gradients = dict(zip(parameters, found, strict=True))
    summary = next(
        v for k, v in case["grad_summary"].items() if k.startswith(f"segmentation_loss ({variant}")
    )
    assert set(summary) == set(parameters)
    scale = max(entry[0] for entry in summary.values() if entry is not None)
    for parameter, expected in summary.items():
        gradient = gradients[parameter]
        if expected is None:
            assert gradient is None or not gradient.any()
            continue
        if gradient is None:
            gradient = torch.zeros_like(parameters[parameter])
        dot = (gradient * seeded(f"probe:{parameter}", tuple(gradient.shape)).double()).sum()
        torch.testing.assert_close(
            torch.stack([gradient.norm(), gradient.sum(), dot]),
            torch.tensor(expected, dtype=torch.float64),
            rtol=1e-7,
            atol=1e-9 * max(scale, 1),
            msg=lambda m, at=parameter: f"{variant} {at}: {m}",
        )
        full = tensors.get(f"grad_{variant}/{parameter}")
        if full is not None:
            torch.testing.assert_close(gradient, full, rtol=1e-7, atol=1e-9 * max(scale, 1))
