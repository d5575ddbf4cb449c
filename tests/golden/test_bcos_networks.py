"""B-cos networks equal the authors' programs: logits, W(x), maps, losses on maps and their gradients."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.bcos import contribution_map, dynamic_weights, logit_bias

from .bcos_networks import annotations, golden_network, published_name
from .reader import ROOT, load, seeded

LOSSES = {"Energy": "energy", "L1": "l1", "RRR": "rrr", "PPCE": "ppce"}
METHODS = {"BCos": "bcos", "IxG": "ixg", "GradCam": "gradcam"}
WIDTHS = {"mg_resnet18_w16": 16, "mg_resnet18": 64}
CONTRAST = "v2_detached_gradient_contrast"
# For a hidden layer their program runs the network's parts in the order in which they were
# registered, pool before bn1: in training its logits differ from the network's own by 0.3.
OTHER_ORDER = "train/layer4/BCos/"


def rows(case: str) -> list[tuple[str, str]]:
    """``(case, "eval/layer1/BCos/Energy")`` of a case."""
    names = load("04_bcos", case)[1]["loss"] if ROOT.is_dir() else []
    return [(case, name) for name in names if not name.startswith(OTHER_ORDER)]


@cache
def network(case: str) -> nn.Module:
    return golden_network(case, WIDTHS.get(case, 64), "0." if case in WIDTHS else "")


def test_golden_bcos_network_logits_and_weights() -> None:
    tensors, case = load("04_bcos", "v2_resnet18_bnu")
    model, images = network("v2_resnet18_bnu"), tensors["x6"].double()
    with torch.no_grad():
        logits = model(images)
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-9)
    bare = torch.tensor(case["logits_minus_bias"], dtype=torch.float64)
    torch.testing.assert_close(logits - logit_bias(model), bare, rtol=1e-9, atol=1e-12)
    for k in range(5):
        weights = dynamic_weights(model, images, k)
        stored = tensors["W"][:, k]
        torch.testing.assert_close(weights.float(), stored, rtol=1e-5, atol=1e-6 * peak(stored))
        maps = (weights * images).sum(1)
        stored = tensors["contribution_map"][:, k]
        torch.testing.assert_close(maps, stored, rtol=1e-9, atol=1e-9 * peak(stored))
        torch.testing.assert_close(maps.sum((1, 2)), bare[:, k], rtol=0, atol=1e-9)
        if k == 0:
            assert contribution_map(model, images, k).equal(maps)
            exact = tensors["W_image0_class0_f64"]
            torch.testing.assert_close(weights[0], exact, rtol=1e-9, atol=1e-9 * peak(exact))
            api = tensors["explain_api_image0_contribution_map"][0]
            torch.testing.assert_close(maps[0], api, rtol=1e-9, atol=1e-9 * peak(api))


def test_golden_bcos_network_in_single_precision() -> None:
    tensors, _ = load("04_bcos", "v2_resnet18_bnu")
    model = golden_network("v2_resnet18_bnu", 64, "", double=False)
    with torch.no_grad():
        logits = model(tensors["x6"])
    torch.testing.assert_close(logits, tensors["logits_f32"], rtol=1e-4, atol=1e-5)
    stored = tensors["contribution_map_f32_class1"]
    maps = contribution_map(model, tensors["x6"], 1)
    torch.testing.assert_close(maps, stored, rtol=1e-4, atol=1e-4 * peak(stored))


def test_golden_bcos_network_outside_explanation_mode() -> None:
    """There the gradient is that of the logit, factors included."""
    tensors, _ = load("04_bcos", "v2_resnet18_bnu")
    images = tensors["x6"].double().requires_grad_()
    (gradient,) = torch.autograd.grad(network("v2_resnet18_bnu")(images)[:, 1].sum(), images)
    stored = tensors["grad_normal_mode_class1"]
    torch.testing.assert_close(gradient, stored, rtol=1e-7, atol=1e-9 * peak(stored))
    ixg = (gradient * images.detach()).sum(1)
    stored = tensors["ixg_normal_mode_class1"]
    torch.testing.assert_close(ixg, stored, rtol=1e-7, atol=1e-9 * peak(stored))


@pytest.mark.parametrize(("case", "row"), [row for case in WIDTHS for row in rows(case)])
def test_golden_bcos_guidance(case: str, row: str) -> None:
    tensors, description = load("04_bcos", case)
    mode, layer, method, _ = row.split("/")
    value, maps, logits, model = guided(case, row)
    expected = tensors[f"logits/{mode}/{layer}"] if method == "BCos" else logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    stored = tensors[f"map/{mode}/{layer}/{method}"][:, 0]
    torch.testing.assert_close(maps, stored, rtol=1e-9, atol=1e-9 * peak(stored))
    assert float(value.detach()) == pytest.approx(description["loss"][row], rel=1e-9)
    if method == "BCos" and layer == "Input":
        chosen = logits.gather(1, tensors["classes"][:, None])[:, 0]
        total = maps.sum((1, 2)) + description["logit_bias"]
        torch.testing.assert_close(total, chosen, rtol=0, atol=1e-9)

    summary, found = description["grad_summary"][row], gradients(value, model, case)
    assert set(summary) == set(found)
    # A map over its largest cell, where that cell alone is positive, is constant: rounding is stored.
    scale = max(1, *(numbers[0] for numbers in summary.values() if numbers))
    for name, gradient in found.items():
        numbers = torch.tensor(summary[name] or [0.0] * 3, dtype=torch.float64)
        dot = (gradient * seeded(f"probe:{name}", tuple(gradient.shape)).double()).sum()
        got = torch.stack([gradient.norm(), gradient.sum(), dot])
        torch.testing.assert_close(
            got, numbers, rtol=1e-7, atol=1e-9 * scale, msg=lambda m, at=name: f"{at}: {m}"
        )
        full = tensors.get(f"grad/{row}/{name}")
        if full is not None:
            loose = {"rtol": 1e-7, "atol": 1e-9 * scale}
            if full.dtype == torch.float32:
                loose = {"rtol": 1e-5, "atol": 1e-7 * scale}
            torch.testing.assert_close(gradient.to(full.dtype), full, **loose)


@pytest.mark.parametrize("loss", LOSSES)
def test_golden_bcos_guidance_in_the_other_order(loss: str) -> None:
    case, row = "mg_resnet18_w16", OTHER_ORDER + loss
    tensors, description = load("04_bcos", case)
    stored = tensors["logits/train/layer4"]
    value, _, logits, model = guided(case, row, fresh(case))
    assert float((logits - stored).abs().max()) > 0.1
    assert float(value.detach()) != pytest.approx(description["loss"][row], rel=0.1)
    model = fresh(case)
    model.bn1, model.maxpool = model.maxpool, model.bn1
    value, maps, logits, _ = guided(case, row, model)
    torch.testing.assert_close(logits, stored, rtol=0, atol=1e-9)
    stored = tensors["map/train/layer4/BCos"][:, 0]
    torch.testing.assert_close(maps, stored, rtol=1e-9, atol=1e-9 * peak(stored))
    assert float(value.detach()) == pytest.approx(description["loss"][row], rel=1e-9)


def test_golden_bcos_gradient_is_not_that_of_constant_factors() -> None:
    """Constants in the forward pass give the same map and loss, and another derivative."""
    case, row = "mg_resnet18_w16", "eval/Input/BCos/Energy"
    tensors, contrast = load("04_bcos", CONTRAST)
    value, _, _, model = guided(case, row)
    assert float(value.detach()) == pytest.approx(contrast["energy"], rel=1e-9)
    found = gradients(value, model, case)
    wrong = tensors["grad_detached/conv1.linear.weight"].double().flatten()
    first = found["0.conv1.linear.weight"].flatten()
    assert first.norm() > 100 * wrong.norm()
    cosine = torch.nn.functional.cosine_similarity(first, wrong, dim=0)
    assert float(cosine) == pytest.approx(contrast["cosine conv1.linear.weight"], rel=1e-5)
    differences = next(v for k, v in contrast.items() if k.startswith("finite_differences"))
    assert len(differences) == 4
    for name, stored in differences.items():
        gradient = found[f"0.{name}"]
        along = seeded(f"probe:0.{name}", tuple(gradient.shape)).double()
        slope = float((gradient * along).sum())
        # The map of a network with |cos| has kinks, and conv1 crosses some at larger steps.
        assert slope == pytest.approx(stored["central_fd"]["1e-08"], rel=1e-5)
        assert slope != pytest.approx(stored["v2_detached"], rel=0.1)


@pytest.mark.parametrize("name", ["layer2.0.downsample.1.weight", "fc.linear.weight"])
def test_golden_bcos_gradient_agrees_with_finite_differences(name: str) -> None:
    case, row, step = "mg_resnet18_w16", "eval/Input/BCos/Energy", 1e-6
    value, _, _, model = guided(case, row)
    slope = gradients(value, model, case)[f"0.{name}"]
    along = seeded(f"probe:0.{name}", tuple(slope.shape)).double()
    parameter = named(model, case)[f"0.{name}"]
    kept = parameter.detach().clone()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.copy_(kept + sign * step * along)
        values.append(float(guided(case, row, model)[0].detach()))
    with torch.no_grad():
        parameter.copy_(kept)
    central = (values[0] - values[1]) / (2 * step)
    assert central == pytest.approx(float((slope * along).sum()), rel=1e-6)


def guided(
    case: str, row: str, model: nn.Module | None = None
) -> tuple[Tensor, Tensor, Tensor, nn.Module]:
    """Loss, maps and logits of a row, and the network that they are of."""
    tensors, description = load("04_bcos", case)
    mode, layer, method, loss = row.split("/")
    if model is None:
        model = fresh(case) if mode == "train" else network(case)
    model.train(mode == "train")
    with ExplanationGuidance(
        model,
        layer.lower(),
        attribution=METHODS[method],
        loss=LOSSES[loss],
        reduction="sum",
    ) as guide:
        logits = model(tensors["x6"].double())
        value = guide.loss_loc(annotations(description, tensors["classes"]))
        maps = guide.attributions[layer.lower()]
    return value, maps, logits.detach(), model


def fresh(case: str) -> nn.Module:
    """A network of its own, for running statistics that change."""
    return golden_network(case, WIDTHS[case], "0.")


def named(model: nn.Module, case: str) -> dict[str, nn.Parameter]:
    """The parameters by the authors' names."""
    return {
        published_name(model, name, "0."): p
        for name, p in model.named_parameters()
        if name != "fc.bias"
    }


def gradients(value: Tensor, model: nn.Module, case: str) -> dict[str, Tensor]:
    parameters = named(model, case)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(parameters.items(), found, strict=True)
    }


def peak(values: Tensor) -> float:
    return float(values.abs().max())
