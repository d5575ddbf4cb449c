"""RobustViT's losses, and those of its two baselines, equal the authors' program."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide import recipe
from explainguide.losses import confidence_boosting, relevance_loss
from explainguide.losses.table import resolve_loss

from .reader import fill, load, seeded

CASES = ["vit_tiny_64", "vit_224_unmodified"]
SHAPES = {
    "vit_tiny_64": {"img_size": 64, "depth": 4, "embed_dim": 192, "num_heads": 3},
    "vit_224_unmodified": {"img_size": 224, "depth": 2, "embed_dim": 32, "num_heads": 2},
}


def maps_and_masks(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The roll-out on its grid of tokens, and the masks at the image's size."""
    tokens = tensors["relevance_tokens_R[0,1:]"]
    side = round(tokens.shape[1] ** 0.5)
    return tokens.unflatten(1, (side, side)), tensors["seg_map"][:, 0].double()


def upsampled(maps: Tensor, masks: Tensor) -> Tensor:
    return F.interpolate(maps[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)[
        :, 0
    ]


@cache
def golden_weights(name: str) -> dict[str, Tensor]:
    _, case = load("06_robustvit", name)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **SHAPES[name])
    return fill(model, case["seed"], case["gain"]).double().state_dict()


def golden_vit(name: str) -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **SHAPES[name]).double()
    model.load_state_dict(golden_weights(name))
    return model.eval()


def assert_gradients(value: Tensor, model: nn.Module, summary: dict, rtol: float) -> None:
    """Norm, sum, and product with a fixed probe, of each parameter's gradient."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    scale = max(row[0] for row in summary.values() if row is not None)
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        expected = torch.tensor(summary[name] or [0.0, 0.0, 0.0], dtype=torch.float64)
        probe = seeded(f"probe:{name}", tuple(parameter.shape)).double()
        got = torch.stack([gradient.norm(), gradient.sum(), (gradient * probe).sum()])
        torch.testing.assert_close(
            got, expected, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_relevance_loss(name: str) -> None:
    tensors, case = load("06_robustvit", name)
    maps, masks = maps_and_masks(tensors)
    staged = resolve_loss("relevance")
    fine = upsampled(staged.prepare(maps), masks)  # as the guide does
    assert float(staged.compare(fine, masks).mean()) == pytest.approx(
        case["segmentation_loss"], rel=1e-9
    )
    for weights, key in (((1.0, 0.0), "bg_loss"), ((0.0, 1.0), "fg_loss")):
        part = relevance_loss(fine, masks, background=weights[0], foreground=weights[1])
        assert float(part.mean()) == pytest.approx(case[key], rel=1e-9)
    torch.testing.assert_close(relevance_loss(fine, masks.bool()), relevance_loss(fine, masks))


@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_order_of_upsampling_and_normalisation(name: str) -> None:
    """Normalised on the grid of tokens first, the loss would be another."""
    tensors, case = load("06_robustvit", name)
    maps, masks = maps_and_masks(tensors)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    fine = upsampled((maps - low) / (high - low), masks)
    outside, missing = (fine * (1 - masks)).square(), (fine * masks - masks).square()
    other = float((2 * outside + 0.3 * missing).mean())
    assert other != pytest.approx(case["segmentation_loss"], rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_confidence_boosting(name: str) -> None:
    tensors, case = load("06_robustvit", name)
    logits = tensors["logits"]
    assert logits.argmax(1).tolist() == case["pred"]
    assert float(confidence_boosting(logits)) == pytest.approx(
        case["classification_loss_confidence_boosting(pred)"], rel=1e-9
    )
    assert float(confidence_boosting(logits, temperature=0.65)) == pytest.approx(
        case["with_temperature_0.65"], rel=1e-9
    )


@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_recipe_weighs_both_losses(name: str) -> None:
    tensors, case = load("06_robustvit", name)
    found = recipe("robustvit")
    published = case["lambdas"]
    assert (found.lam, found.class_weight) == (published["lambda_seg"], published["lambda_acc"])
    assert found.loss_options == {
        "background": published["lambda_background"],
        "foreground": published["lambda_foreground"],
    }
    loss_loc = torch.tensor(case["segmentation_loss"], dtype=torch.float64)
    total = found.total_loss(tensors["logits"], tensors["classes"], loss_loc)
    assert float(total) == pytest.approx(case["total_loss"], rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_golden_robustvit_recipe_on_a_vit(name: str) -> None:
    tensors, case = load("06_robustvit", name)
    model, (_, masks) = golden_vit(name), maps_and_masks(tensors)
    with recipe("robustvit").guide(model) as guide:
        logits = model(tensors["input"].double())
        value = guide.loss_loc(masks, tensors["classes"])
    total = recipe("robustvit").total_loss(logits, tensors["classes"], value)
    assert float(value.detach()) == pytest.approx(case["segmentation_loss"], rel=1e-9)
    assert float(total.detach()) == pytest.approx(case["total_loss"], rel=1e-9)
    summary = case["grad_summary"]["segmentation_loss (exact: create_graph=True)"]
    assert_gradients(value, model, summary, rtol=1e-7)


def test_golden_robustvit_baseline_rrr() -> None:
    """The recipe is Ross's loss; the program adds 1e-11 inside the logarithm."""
    tensors, case = load("06_robustvit", "vit_tiny_64")
    model, (_, masks) = golden_vit("vit_tiny_64"), maps_and_masks(tensors)
    with recipe("rrr").guide(model, reduction="sum") as guide:
        model(tensors["input"].double())
        value = guide.loss_loc(masks, tensors["classes"])
    length = tensors["rrr_relevance"].square().sum(1).sqrt()
    torch.testing.assert_close(guide.attributions["input"].float(), length, rtol=1e-4, atol=1e-6)
    assert float(value.detach()) == pytest.approx(case["rrr_loss"], rel=1e-7)
    summary = case["grad_summary"]["rrr (exact double backward)"]
    assert_gradients(value, model, summary, rtol=1e-7)


def test_golden_robustvit_baseline_gradmask() -> None:
    """The program's GradMask is a mean of squares over channels and pixels."""
    tensors, case = load("06_robustvit", "vit_tiny_64")
    model, (_, masks) = golden_vit("vit_tiny_64"), maps_and_masks(tensors)

    def mean_of_squares(attribution: Tensor, mask: Tensor) -> Tensor:
        return ((1 - mask) * attribution.square()).mean((1, 2)) / 3

    with recipe("gradmask").guide(model, loss=mean_of_squares) as guide:
        model(tensors["input"].double())
        value = guide.loss_loc(masks, tensors["classes"])
    assert float(value.detach()) == pytest.approx(case["gradmask_loss"], rel=1e-9)
    summary = case["grad_summary"]["gradmask (exact double backward; the code has NONE)"]
    assert_gradients(value, model, summary, rtol=1e-9)

    with recipe("gradmask").guide(model, reduction="none") as guide:
        model(tensors["input"].double())
        norms = guide.loss_loc(masks, tensors["classes"]).detach()
    pixels = masks[0].numel()
    assert float((norms**2 / (3 * pixels)).mean()) == pytest.approx(case["gradmask_loss"], rel=1e-9)
