"""B-cos units, norms and small parts equal the authors' programs, in values and in explanations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide.bcos import BcosConv2d, BcosLinear, explanation_mode, norms
from explainguide.bcos.modules import AddInverse, LogitBias

from .reader import ROOT, load, seeded

UNITS = {"BcosConv2d": BcosConv2d, "BcosConv2dWithScale": BcosConv2d, "BcosLinear": BcosLinear}
CASES = list(load("04_bcos", "modules_v2")[1]["cases"]) if ROOT.is_dir() else []


def build(case: dict[str, Any]) -> nn.Module:
    """Our module for the authors' class and arguments."""
    name, options = case["class"], dict(case["kwargs"])
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    if name in UNITS:
        return UNITS[name](**options)
    if name == "GNInstanceNormUncentered2d":
        name, options["num_groups"] = "GroupNormUncentered2d", options["num_channels"]
    elif "GNLayerNorm" in name:
        name, options["num_groups"] = name.replace("GNLayerNorm", "GroupNorm"), 1
    elif "PositionNorm" in name:
        options["normalized_shape"] = options.pop("features")
    return getattr(norms, name)(**options, bias=not case["NoBias"])


def golden_module(name: str, tensors: dict[str, Tensor], case: dict[str, Any]) -> nn.Module:
    prefix = f"{name}/param/"
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    module = build(case).train(case["training"])
    module.load_state_dict({k.removeprefix("linear."): v for k, v in state.items()})
    return module


@pytest.mark.parametrize("name", CASES)
def test_golden_bcos_values(name: str) -> None:
    tensors, description = load("04_bcos", "modules_v2")
    case = description["cases"][name]
    module, x = golden_module(name, tensors, case), tensors[f"{name}/x"]
    scale = case.get("scale", 1)
    single = module(x) / scale
    torch.testing.assert_close(single, tensors[f"{name}/out_f32"], rtol=1e-5, atol=1e-5)
    double = golden_module(name, tensors, case).double()
    out = double(x.double()) / scale
    torch.testing.assert_close(out, tensors[f"{name}/out_normal"], rtol=1e-9, atol=1e-9)
    assert float(out.detach().abs().max()) == pytest.approx(case["max_abs_out"], rel=1e-9)
    with explanation_mode(double):
        again = double(x.double()) / scale
    assert again.equal(out)


@pytest.mark.parametrize("name", CASES)
def test_golden_bcos_gradients(name: str) -> None:
    tensors, description = load("04_bcos", "modules_v2")
    case = description["cases"][name]
    module = golden_module(name, tensors, case).double()
    x = tensors[f"{name}/x"].double().requires_grad_()
    probe = seeded(f"probe:{name}", tuple(tensors[f"{name}/out_normal"].shape)).double()

    def score() -> Tensor:
        return (module(x) / case.get("scale", 1) * probe).sum()

    before = score()
    assert float(before.detach()) == pytest.approx(case["sum_y_probe"], rel=1e-9)
    (normal,) = torch.autograd.grad(before, x, retain_graph=True)
    torch.testing.assert_close(normal, tensors[f"{name}/gradx_normal"], rtol=1e-7, atol=1e-9)
    with explanation_mode(module):
        (outside,) = torch.autograd.grad(before, x, retain_graph=True)
        (inside,) = torch.autograd.grad(score(), x, create_graph=True)
    for explained in (outside, inside):
        torch.testing.assert_close(explained, tensors[f"{name}/gradx_expl"], rtol=1e-9, atol=1e-9)
    total = float((x * outside).detach().sum())
    assert total == pytest.approx(case["sum_x_gradx_expl"], rel=1e-9)
    (after,) = torch.autograd.grad(before, x)
    assert after.equal(normal)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("_train")])
def test_golden_bcos_running_statistics(name: str) -> None:
    tensors, description = load("04_bcos", "modules_v2")
    module = golden_module(name, tensors, description["cases"][name]).double()
    module(tensors[f"{name}/x"].double())
    state = module.state_dict()
    for buffer in ("running_var", "running_mean"):
        expected = tensors[f"{name}/{buffer}_after_1_step"]
        torch.testing.assert_close(state[buffer], expected, rtol=1e-9, atol=1e-9)
    assert state["running_mean"].equal(tensors[f"{name}/param/running_mean"].double())
    assert state["num_batches_tracked"] == 1


def test_golden_bcos_small_parts() -> None:
    tensors, description = load("04_bcos", "modules_v2")
    assert "T=2, b=-3" in description["logitlayer"]
    layer = LogitBias(-3.0, temperature=2.0)
    expected = tensors["logitlayer/out"]
    torch.testing.assert_close(layer(tensors["logitlayer/x"]), expected, rtol=1e-9, atol=1e-9)
    encoded = AddInverse()(tensors["addinverse/x"])
    torch.testing.assert_close(encoded, tensors["addinverse/out"], rtol=0, atol=0)


@pytest.mark.parametrize("b", ["1", "1.5", "2"])
def test_golden_bcos_first_version(b: str) -> None:
    """It divides by a scale, and has two filters an output."""
    tensors, description = load("04_bcos", "v1_bcosconv2d")
    module = BcosConv2d(4, 5, 3, padding=1, b=float(b), max_out=2).double()
    module.load_state_dict({"weight": tensors[f"b{b}/weight"]})
    x = tensors["x"].clone().requires_grad_()
    out = module(x) / description[f"scale_b{b}"]
    torch.testing.assert_close(out, tensors[f"b{b}/out"], rtol=1e-9, atol=1e-9)
    probe = seeded("v1:probe", tuple(out.shape)).double()
    (normal,) = torch.autograd.grad(out, x, probe, retain_graph=True)
    torch.testing.assert_close(normal, tensors[f"b{b}/gradx_normal"], rtol=1e-7, atol=1e-9)
    with explanation_mode(module):
        (explained,) = torch.autograd.grad(out, x, probe)
    torch.testing.assert_close(explained, tensors[f"b{b}/gradx_expl"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("b", ["1.25", "2", "2.5"])
def test_golden_bcos_linear_of_model_guidance(b: str) -> None:
    """Its epsilon lies under the root only."""
    tensors, _ = load("04_bcos", "mg_bcoslinear")
    eps = {"square_eps": 1e-6, "norm_eps": 0.0, "cos_eps": 0.0}
    module = BcosLinear(7, 5, b=float(b), max_out=2, **eps).double()
    module.load_state_dict({"weight": tensors[f"b{b}/weight"]})
    out = module(tensors[f"b{b}/x"])
    torch.testing.assert_close(out, tensors[f"b{b}/out"], rtol=1e-9, atol=1e-9)
