"""Mixed precision: what runs in which type, and what is said of numbers and devices that do not fit."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from explainguide import Annotations, ExplanationGuidance
from explainguide.attr import IntegratedGradients
from explainguide.errors import AnnotationError, ExplainGuideWarning, GuidanceError, OptionError
from explainguide.guidance.refusals import check_devices
from explainguide.hooks.fast import table
from explainguide.host import send
from explainguide.training.epoch_means import EpochMeans
from tests.networks import TARGETS, SmallCnn, batch

HALF = torch.bfloat16
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return SmallCnn().train()


def amp_gradient(
    model: nn.Module, dtype: torch.dtype = HALF, scale: float = 1.0, **options: Any
) -> Tensor:
    """The gradient of `loss_loc` under autocast, of all parameters in a row."""
    model.zero_grad()
    with ExplanationGuidance(model, target="all", **options) as guide:
        images = batch().to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=dtype):
            model(images)
        (scale * guide.loss_loc(TARGETS)).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in found]) / scale


def exact_gradient(model: nn.Module, **options: Any) -> Tensor:
    """The same in float64, without autocast."""
    double = SmallCnn().double().train()
    double.load_state_dict(model.state_dict())
    with ExplanationGuidance(double, target="all", **options) as guide:
        double(batch(dtype=torch.float64))
        guide.loss_loc(TARGETS).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in double.parameters()]
    return torch.cat([g.flatten() for g in found])


def cosine(left: Tensor, right: Tensor) -> float:
    return float(nn.functional.cosine_similarity(left.double(), right.double(), dim=0))


@pytest.mark.parametrize("layer", ["input", "stem", "mix"])
@pytest.mark.parametrize("dtype", [HALF, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_smooth_network_survives(
    model: nn.Module, layer: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    exact = exact_gradient(model, layer=layer)
    found = amp_gradient(model.to(memory_format=layout), dtype, layer=layer)
    assert cosine(found, exact) > (0.95 if dtype is HALF else 0.998)


def test_autocast_is_as_it_was_also_after_an_error(model: nn.Module) -> None:
    def state() -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    guide = ExplanationGuidance(model, layer="stem")
    before = state()
    with torch.autocast("cpu", dtype=torch.float16):
        model(batch())
        guide.loss_loc(TARGETS)
        assert state() == (True, torch.float16)
        model(batch())
        with pytest.raises(AnnotationError, match="annotations"):
            guide.loss_loc(3)
        assert state() == (True, torch.float16)
        with pytest.raises(RuntimeError):
            model(batch()[:, :2])
        assert state() == (True, torch.float16)
    assert state() == before


def test_a_scaler_leaves_the_gradient_as_it_is(model: nn.Module) -> None:
    plain = amp_gradient(model, torch.float16, layer="mix")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    model.zero_grad()
    guide = ExplanationGuidance(model, layer="mix", target="all")
    with torch.autocast("cpu", dtype=torch.float16):
        model(batch())
    scaler.scale(guide.loss_loc(TARGETS)).backward()
    scaler.unscale_(optimizer)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    assert cosine(torch.cat([g.flatten() for g in grads]), plain) > 0.999


def test_a_scaler_skips_a_step_that_overflows_and_goes_on(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, layer="input", target="all")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    first = model.stem[0].weight.detach().clone()
    scales, moved = [], []
    for _ in range(45):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            model(batch())
        loss = guide.loss_loc(TARGETS)
        assert loss.isfinite()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        moved.append(not torch.equal(model.stem[0].weight, first))
        if moved[-1]:
            break
    assert not moved[0] and moved[-1]
    assert scales[0] == 2.0**39 and scales[-1] == scales[-2]
    assert all(p.isfinite().all() for p in model.parameters())


def test_halves_of_a_batch_accumulate_to_the_whole(model: nn.Module) -> None:
    model.eval()  # BatchNorm would see other statistics
    found = []
    for parts in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        model.zero_grad()
        guide = ExplanationGuidance(model, layer="stem", target="all", reduction="sum")
        for part in parts:
            with torch.autocast("cpu", dtype=HALF):
                model(batch()[part])
            guide.loss_loc(TARGETS[part]).backward()
        guide.remove()
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert cosine(*found) > 0.999


@pytest.mark.parametrize("layer", ["input", "stem"])
def test_passes_of_integrated_gradients_run_under_the_same_autocast(
    model: nn.Module, layer: str
) -> None:
    seen: list[torch.dtype] = []
    model.mix.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    attribution = IntegratedGradients(model, layer, n_steps=2)
    guide = ExplanationGuidance(model, attribution=attribution, target="all")
    with torch.autocast("cpu", dtype=HALF):
        model(batch())
    guide.loss_loc(TARGETS).backward()
    assert len(seen) >= 3 and set(seen) == {HALF}


class Scaled(SmallCnn):
    """Logits of a type, as large as they are told."""

    def __init__(self, factor: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.factor, self.dtype = factor, dtype

    def forward(self, images: Tensor) -> Tensor:
        return (super().forward(images) * self.factor).to(self.dtype)


def test_logits_outside_float16_are_named() -> None:
    model = Scaled(1e7, torch.float16)
    guide = ExplanationGuidance(model, layer="mix")
    model(batch())
    with pytest.warns(ExplainGuideWarning) as caught:
        guide.loss_loc(TARGETS)
    (text,) = {str(w.message) for w in caught}
    assert text == (
        "ExplanationGuidance.loss_loc: the logits, in float16, are not finite: it holds no number "
        "above 65504. Use bfloat16, whose range is that of float32, or compute the last layers "
        "outside autocast. The losses of this step are not finite."
    )
    with pytest.warns(ExplainGuideWarning, match="it holds no number above 65504"):
        report = guide.check(batch(), TARGETS)
    assert not report.ok
    assert "the logits, in float16, are not finite: it holds no number above 65504" in str(report)


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1e7, HALF), (1e7, torch.float32), (1.0, torch.float16)]
)
def test_logits_inside_the_range_are_passed_over(factor: float, dtype: torch.dtype) -> None:
    model = Scaled(factor, dtype)
    report = ExplanationGuidance(model, layer="mix").check(batch(), TARGETS)  # warnings are errors
    assert not report.problem


@pytest.mark.parametrize(
    ("precision", "fix"),
    [
        ("fp16", "Use mixed_precision='bf16', or 'no': float16 holds no number above 65504"),
        ("bf16", "set clip_grad_norm, or use mixed_precision='no'."),
        ("no", "Lower lr or lam, or set clip_grad_norm. The gradient"),
    ],
)
def test_training_names_the_precision_that_is_the_likely_cause(precision: str, fix: str) -> None:
    means = EpochMeans(precision)
    of: Any = SimpleNamespace(images=batch(), annotated=2)
    means.add("epoch 1, step 3", {"loss": torch.tensor(float("inf"))}, of, {})
    with pytest.raises(GuidanceError) as caught:
        means.read()
    text = str(caught.value)
    assert text.startswith("epoch 1, step 3: the class loss is inf. ") and fix in text
    assert ("float16" in text) is (precision == "fp16")


class Unknown(SmallCnn):
    """Operations that have no fast form between the layer and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.hardsigmoid(self.norm(self.up(self.stem(images))))
        return self.head(nn.functional.softplus(self.mix(features)).mean((2, 3)))


def exact_loss(model: nn.Module, fast: Any) -> tuple[ExplanationGuidance, list[Tensor]]:
    model.zero_grad()
    guide = ExplanationGuidance(model, layer="stem", target="all", fast=fast)
    model(batch(dtype=torch.float64))
    guide.loss_loc(TARGETS).backward()
    guide.remove()
    return guide, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_fast_falls_back_for_an_operation_that_it_does_not_know() -> None:
    torch.manual_seed(0)
    model = Unknown().double()
    plain, expected = exact_loss(model, False)
    guide, found = exact_loss(model, True)
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
    assert guide.fast == {"conv2d"} and not guide.slow
    assert "replaced=['hardsigmoid'], fast=['conv2d'], removed" in repr(guide)
    assert "replaced=['hardsigmoid'], removed" in repr(plain)


@pytest.mark.parametrize("name", ["_will_engine_execute_node", "_functorch"])
def test_a_torch_without_what_the_fast_forms_need_runs_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    torch.manual_seed(0)
    model = Unknown().double()
    _, expected = exact_loss(model, False)
    monkeypatch.setattr(table, "_ASKED", (name, "_never_there"))
    guide, found = exact_loss(model, True)
    assert not guide.fast
    assert guide.slow == {"conv2d": f"torch {torch.__version__} has no torch._C._never_there"}
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


def test_an_old_torch_is_told_which_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.library, "custom_op")
    with pytest.raises(ImportError) as caught:
        runpy.run_path(table.__file__)
    assert str(caught.value) == (
        "explainguide needs torch 2.4 or newer, for torch.library.custom_op; this is torch "
        f"{torch.__version__}. Upgrade it: pip install 'torch>=2.4'."
    )


BOX, LABEL = torch.tensor([[1.0, 1, 5, 5]]), torch.tensor([1])
ONE = {"boxes": BOX, "labels": LABEL}
NOWHERE: list[tuple[str, Callable[[], Any], Any, str]] = [
    ("boxes", lambda: [{**ONE, "boxes": BOX.to("meta")}, None, None], None, "[0]['boxes']"),
    ("labels", lambda: [None, {**ONE, "labels": LABEL.to("meta")}, None], None, "[1]['labels']"),
    ("batch", lambda: Annotations.from_targets([ONE] * 3).to("meta"), None, ".boxes"),
    ("mask", lambda: torch.ones(3, 12, 12, device="meta"), torch.tensor([1, 1, 1]), ""),
    ("masks of classes", lambda: torch.ones(3, 4, 12, 12, device="meta"), None, ""),
]


@pytest.mark.parametrize(
    ("make", "target", "where"), [row[1:] for row in NOWHERE], ids=[row[0] for row in NOWHERE]
)
def test_annotations_without_values_are_named(
    model: nn.Module, make: Callable[[], Any], target: Any, where: str
) -> None:
    guide = ExplanationGuidance(model, layer="mix")
    model(batch())
    with pytest.raises(AnnotationError) as caught:
        guide.loss_loc(make(), target)
    assert str(caught.value) == (
        f"ExplanationGuidance.loss_loc: annotations{where} is on the meta device, which holds no "
        "values. Make it on the CPU, or move it before it gets there. Any other device is allowed; "
        "it need not be the model's."
    )
    with pytest.raises(
        Exception, match=r"ExplanationGuidance\.check: annotations.* is on the meta"
    ):
        guide.check(batch(), make(), target)
    model(batch())
    assert guide.loss_loc(TARGETS).isfinite()  # which still works


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_a_target_without_values_is_named(model: nn.Module, shape: tuple[int, ...]) -> None:
    guide = ExplanationGuidance(model, layer="mix")
    target = torch.ones(shape, dtype=torch.int64, device="meta")
    model(batch())
    with pytest.raises(
        OptionError, match=r"loss_loc: target is on the meta device, which holds no"
    ):
        guide.loss_loc(TARGETS, target)
    with pytest.raises(
        AnnotationError, match=r"check: target is on the meta device, which holds no"
    ):
        guide.check(batch(), TARGETS, target)


def test_a_model_without_values_is_named() -> None:
    model = SmallCnn().to("meta")
    guide = ExplanationGuidance(model, layer="mix")
    assert model(batch().to("meta")).device.type == "meta"  # the guide does not disturb it
    with pytest.raises(
        GuidanceError, match=r"the model's logits are on the meta device, where noth"
    ):
        guide.loss_loc(TARGETS)


def test_a_layer_on_another_device_than_the_logits_is_named() -> None:
    features = {"stem": torch.rand(2, 3, 4, 4), "mix": torch.rand(2, 3, 4, 4, device="meta")}
    with pytest.raises(GuidanceError) as caught:
        check_devices(torch.rand(2, 4), features)
    assert str(caught.value) == (
        "layer 'mix' is on meta, but the logits are on cpu. Guide a layer behind the move, or keep "
        "what follows the layer on its device. The layers and the logits must be on one device; "
        "annotations and targets are moved there."
    )


def test_what_is_fetched_from_a_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked.append((str(args[0]), kwargs["non_blocking"]))
        return plain(self, *args, **kwargs)

    with FakeTensorMode():
        away = torch.empty(3, device="cuda")
        monkeypatch.setattr(Tensor, "to", to)
        assert send(away, "cpu").device.type == "cpu"
    assert asked == [("cpu", False)]


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "amp.py"))


def test_the_docs_show_what_the_amp_benchmark_found(benchmark: dict[str, Any]) -> None:
    found = json.loads((ROOT / "benchmarks" / "amp.json").read_text())
    assert found["versions"].keys() >= {"explainguide", "torch"}
    shown = (ROOT / "docs" / "amp_results.md").read_text()
    assert shown == benchmark["table"](found["rows"]) + "\n"


def test_choices_of_another_pass_are_taken(benchmark: dict[str, Any]) -> None:
    """In float64 a pass with its own choices is itself; with those of other weights it is not."""
    case = benchmark["Case"](lambda: benchmark["cnn"](nn.ReLU), 24, ("8",), 0)
    torch.manual_seed(0)
    one, other = (case.build().state_dict() for _ in range(2))
    own, others = benchmark["Choices"](), benchmark["Choices"]()
    plain = benchmark["gradients"](case, one, "8")
    kept = benchmark["gradients"](case, one, "8", choices=own)
    benchmark["gradients"](case, other, "8", choices=others)
    again, changed = (
        benchmark["gradients"](case, one, "8", choices=benchmark["Choices"](found.kept))
        for found in (own, others)
    )
    names = list(plain)
    for same in (kept, again):
        assert benchmark["cosine"](plain, same, names) == pytest.approx(1, abs=1e-12)
    assert benchmark["cosine"](plain, changed, names) < 0.9
    below = benchmark["parameters_below"](case, "8")
    assert below == {f"{i}.{n}" for i in (0, 3, 6) for n in ("weight",)} | {
        f"{i}.{n}" for i in (1, 4, 7) for n in ("weight", "bias")
    }
