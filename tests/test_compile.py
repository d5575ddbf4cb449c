"""A compiled trunk against eager, and what of torch.compile is refused."""

from __future__ import annotations

import copy
import gc
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from explainguide import ExplanationGuidance
from explainguide.bcos import bcosify
from explainguide.errors import ExplainGuideError, GuidanceError, LayerError, OptionError

D = torch.float64
TARGETS = [{"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([1])}, None]
# torch.compile looks at the .grad of what it is given.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 compiles no single modules"),
]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


class Backend:
    """PyTorch's graphs run as they are; counts the graphs and how often they ran."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, module: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        compiled = aot_eager(module, inputs)

        def run(*args: Any) -> Any:
            self.runs += 1
            return compiled(*args)

        return run


def block(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.GELU())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)
    return nn.Sequential(block(3, 4), block(4, 5), block(5, 6), block(6, 7), *pooled).to(D)


def vit(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": (32, width), "depth": 3, "embed_dim": 16, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **options).to(D)
    nn.init.normal_(model.head.weight)
    return model


def train(
    model: nn.Module,
    guide: ExplanationGuidance,
    *,
    size: tuple[int, int] = (32, 32),
    steps: int = 3,
    after: Callable[[int], None] = lambda step: None,
) -> dict[str, Tensor]:
    """A few steps; all that comes of the last."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        model.zero_grad()
        logits = model(torch.rand(2, 3, *size, generator=generator, dtype=D))
        loss = guide.loss_loc(TARGETS)
        loss.backward()
        after(step)
    found = {"logits": logits.detach(), "loss": loss.detach()}
    found |= {f"map of {name}": found for name, found in guide.attributions.items()}
    names = {p: n.replace("_orig_mod.", "") for n, p in model.named_parameters()}
    return found | {names[p]: p.grad for p in names if p.grad is not None}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = float((found[name] - value).abs().max())
        assert error <= within * max(float(value.abs().max()), 1e-6), (name, error)


def detached(model: nn.Sequential, layer: int, *, steps: int = 3) -> Tensor:
    """The first weight's gradient in the last step, were the feature's gradient a constant."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.rand(2, 3, 32, 32, generator=generator, dtype=D)
        feature = model[: layer + 1](images)
        logits = model[layer + 1 :](feature)
    (gradient,) = torch.autograd.grad(logits[0, 1], feature, retain_graph=True)
    positive = (feature * gradient)[0].sum(0).clamp(min=0)
    loss = 1 - positive[4:20, 4:20].sum() / positive.sum()
    (found,) = torch.autograd.grad(loss, model[0][0].weight)
    return found


def by_guide(model: nn.Module, guide: ExplanationGuidance, backend: Backend) -> None:
    guide.compile(backend=backend)


def in_place(model: nn.Sequential, guide: ExplanationGuidance, backend: Backend) -> None:
    for module in model[:2]:
        module.compile(backend=backend)


def wrapped(model: nn.Sequential, guide: ExplanationGuidance, backend: Backend) -> None:
    for index in range(2):
        model[index] = torch.compile(model[index], backend=backend)


@pytest.mark.parametrize("attribution", ["ixg", "intgrad"])
@pytest.mark.parametrize("how", [by_guide, in_place, wrapped])
def test_a_compiled_trunk_is_eagers(how: Callable[..., None], attribution: str) -> None:
    options: dict[str, Any] = {"attribution": attribution, "loss": "energy"}
    model = net()
    expected = train(model, ExplanationGuidance(model, "2", **options))
    backend, model = Backend(), net()
    guide = ExplanationGuidance(model, "2", **options)
    how(model, guide, backend)
    counts = []
    found = train(model, guide, after=lambda step: counts.append((backend.graphs, backend.runs)))
    equal(found, expected)
    (first, _), (second, runs), (third, more) = counts
    assert first == 0 or attribution == "intgrad"  # uncompiled, to see where tokens go
    assert second == third > 0  # nothing is compiled twice
    assert more > runs
    if attribution == "ixg":
        constant = detached(net(), 2)
        largest = float(constant.abs().max())
        assert float((found["0.0.weight"] - constant).abs().max()) > 0.01 * largest


@pytest.mark.parametrize("attribution", ["ixg", "relevance"])
def test_the_places_of_tokens_are_known_behind_a_compiled_trunk(attribution: str) -> None:
    layer = "blocks.1.norm1" if attribution == "ixg" else None
    found = []
    for compiled in (False, True):
        model = vit()
        guide = ExplanationGuidance(model, layer, attribution=attribution)
        if compiled:
            names = guide.compile(backend=(backend := Backend()))
            assert names[0] == "patch_embed"
        found.append(train(model, guide, size=(32, 64)))
    equal(found[1], found[0])
    assert backend.runs > 0
    assert guide.attributions[guide.layers[0]].shape == (2, 2, 4)


def test_what_is_compiled_is_what_ends_before_the_layer() -> None:
    model = net()
    model[3][2] = model[2][2]  # runs again above the layer
    guide = ExplanationGuidance(model, "2")
    assert guide.compile(backend="eager") == ["0", "1", "2.0", "2.1"]
    assert guide.compiled == ["0", "1", "2.0", "2.1"]
    assert "compiled=['0', '1'" in repr(guide)
    assert guide.compile(backend="eager") == []
    with ExplanationGuidance(several := net(), ["3.0", "1"]) as guide:
        assert guide.compile(backend="eager") == ["0", "1.0", "1.1", "1.2"]
        train(several, guide)


def test_many_modules_are_compiled_each_by_itself() -> None:
    """Past PyTorch's limit of recompilations of one function, and in two modes."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3 + i, 4 + i, 3, padding=1) for i in range(12)]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(15, 4)
    model = nn.Sequential(*parts, *head).to(D)
    guide = ExplanationGuidance(model, "11", fast=False)
    backend = Backend()
    assert len(guide.compile(backend=backend)) == 11
    train(model, guide)
    assert (backend.graphs, backend.runs) == (11, 22)


def test_evaluation_and_maps_with_a_compiled_trunk() -> None:
    model = net()
    images = torch.rand(2, 3, 32, 32, dtype=D)
    guide = ExplanationGuidance(model, "2")
    plain = guide.attribute(images, 1)
    guide.compile(backend=(backend := Backend()))
    assert torch.equal(guide.attribute(images, 1), plain)
    assert backend.graphs == 0
    assert "compiled=['0'" in repr(guide)
    print(guide.check(images, TARGETS))
    model.eval()
    with torch.no_grad():
        logits = model(images)
    assert backend.graphs > 0
    guide.remove()
    torch.testing.assert_close(logits, model(images))


def test_a_removed_or_forgotten_guide_leaves_the_model_as_it_was() -> None:
    model = net()
    model[0].compile(backend="eager")
    own, keys = model[0]._compiled_call_impl, list(model.state_dict())
    for forget in (False, True):
        guide = ExplanationGuidance(model, "2")
        assert guide.compile(backend="eager") == ["1", "2.0", "2.1", "2.2"]
        assert list(model.state_dict()) == keys
        assert all(m._compiled_call_impl is None for m in copy.deepcopy(model).modules())
        if forget:
            del guide
            gc.collect()
        else:
            guide.remove()
        assert model[0]._compiled_call_impl is own
        assert [n for n, m in model.named_modules() if m._compiled_call_impl is not None] == ["0"]


def test_a_part_that_is_compiled_later_is_seen() -> None:
    model = net()
    guide = ExplanationGuidance(model, "2")
    train(model, guide)
    model[0].compile(backend=(backend := Backend()))
    train(model, guide, steps=2)
    assert backend.runs > 0
    model[3].compile(backend="eager")
    with pytest.raises(GuidanceError, match="module '3' was compiled, and ends after"):
        train(model, guide, steps=1)


def whole() -> nn.Module:
    return torch.compile(net(), backend="eager")  # type: ignore[return-value]


def whole_in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return model


def part(index: int, *, wrap: bool = False) -> nn.Module:
    model = net()
    if wrap:
        model[index] = torch.compile(model[index], backend="eager")
    else:
        model[index].compile(backend="eager")
    return model


BUILD: list[tuple[Callable[[], nn.Module], str, list[str]]] = [
    (whole, "2", ["ExplanationGuidance: the model was compiled as a whole", "(`compiled._orig_mod`)", "call `guide.compile()`"]),
    (whole_in_place, "2", ["the model was compiled as a whole", "call `guide.compile()`", "are allowed"]),
    (lambda: part(3), "2", ["module '3' was compiled, and ends after the first guided layer, '2'", "call `guide.compile()`"]),
    (lambda: part(3, wrap=True), "2", ["module '3' was compiled, and ends after", "differentiated once alone"]),
    (lambda: part(0), "input", ["module '0' was compiled, and ends after the first guided layer, 'input'"]),
    (lambda: part(2), "2", ["layer '2' runs inside '2', which was compiled", "as `guide.compile()` does"]),
    (lambda: part(2), "2.0", ["layer '2.0' runs inside '2', which was compiled"]),
    (lambda: part(2, wrap=True), "2._orig_mod.0", ["layer '2._orig_mod.0' runs inside '2'"]),
]  # fmt: skip


@pytest.mark.parametrize(("build", "layer", "parts"), BUILD)
def test_compiled_models_that_are_refused(
    build: Callable[[], nn.Module], layer: str, parts: list[str]
) -> None:
    with pytest.raises(GuidanceError) as wrong:
        ExplanationGuidance(build(), layer)
    for expected in parts:
        assert expected in str(wrong.value)


def test_a_wrapped_layer_can_be_guided() -> None:
    model = net()
    expected = train(model, ExplanationGuidance(model, "2"))
    model = net()
    model[2] = torch.compile(model[2], backend=(backend := Backend()))
    found = train(model, ExplanationGuidance(model, "2"))
    equal(found, expected)
    assert backend.runs > 0


def bcos() -> nn.Module:
    return bcosify(net().float())


def only_large() -> nn.Module:
    model = net().float()
    model[4] = nn.AvgPool2d(400)
    return model


COMPILE: list[tuple[type[ExplainGuideError], Callable[[], nn.Module], str, dict[str, Any], list[str]]] = [
    (GuidanceError, net, "input", {}, ["ExplanationGuidance.compile: no module ends before the first guided layer, 'input'", "Guide a later layer"]),
    (OptionError, net, "2", {"backnd": "eager"}, ["unknown option 'backnd'. Did you mean 'backend'", "fullgraph"]),
    (OptionError, net, "2", {"backend": "eagr"}, ["torch.compile does not take {'backend': 'eagr'}", "are allowed"]),
    (LayerError, only_large, "2", {}, ["it could not be seen what runs before", "3 x 224 x 224", "image_size=(H, W)"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "build", "layer", "options", "parts"), COMPILE)
def test_what_compile_refuses(
    kind: type[ExplainGuideError],
    build: Callable[[], nn.Module],
    layer: str,
    options: dict[str, Any],
    parts: list[str],
) -> None:
    model = build()
    guide = ExplanationGuidance(model, layer)
    with pytest.raises(kind) as wrong:
        guide.compile(**options)
    for expected in parts:
        assert expected in str(wrong.value)
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert guide.compiled == []


def test_compile_refuses_a_torch_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = ExplanationGuidance(net(), "2")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.4.0"))
    with pytest.raises(GuidanceError, match=r"torch 2\.4\.0 cannot compile single modules"):
        guide.compile()


def test_compile_refuses_bcos_networks_and_removed_guides() -> None:
    guide = ExplanationGuidance(bcos(), "2", attribution="bcos")
    with pytest.raises(GuidanceError, match="is a B-cos network, whose backward pass asks"):
        guide.compile()
    guide = ExplanationGuidance(net(), "2")
    guide.remove()
    with pytest.raises(GuidanceError, match="hooks were taken off the model"):
        guide.compile()


def test_compiled_models_and_annotated_rows_exclude_each_other() -> None:
    model = net()
    guide = ExplanationGuidance(model, "2", rows="annotated")
    with pytest.raises(
        GuidanceError, match="compile: with rows='annotated' modules before the layer"
    ):
        guide.compile()
    guide.remove()
    model[0].compile(backend="eager")
    with pytest.raises(
        GuidanceError, match=r"ExplanationGuidance: with rows='annotated' .*rows='all'"
    ):
        ExplanationGuidance(model, "2", rows="annotated")


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_guide_inside_a_compiled_function_is_refused(fullgraph: bool) -> None:
    """Neither a wrong gradient nor a loss without one."""
    model = net()
    guide = ExplanationGuidance(model, "2")

    @torch.compile(backend="aot_eager", fullgraph=fullgraph)
    def step(images: Tensor) -> Tensor:
        model(images)
        return guide.loss_loc(TARGETS)

    # What PyTorch raises where it may not leave the graph is its own.
    kind = Exception if fullgraph else GuidanceError
    with pytest.raises(kind) as wrong:
        step(torch.rand(2, 3, 32, 32, dtype=D))
    if not fullgraph:
        assert "the model ran inside torch.compile" in str(wrong.value)
        assert "guide.compile()" in str(wrong.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_a_trunk_compiled_by_inductor() -> None:
    model = net()
    expected = train(model, ExplanationGuidance(model, "2"), steps=2)
    model = net()
    guide = ExplanationGuidance(model, "2")
    guide.compile()
    equal(train(model, guide, steps=2), expected)


class Interrupted(nn.Module):
    """Passes on what it gets, but once."""

    due = False

    def forward(self, x: Tensor) -> Tensor:
        if self.due:
            raise KeyboardInterrupt
        return x


def test_an_interrupted_pass_leaves_nothing_behind() -> None:
    model = nn.Sequential(*net(), odd := Interrupted())
    backend = Backend()
    guide = ExplanationGuidance(model, "2")
    guide.compile(backend=backend)
    odd.due = True
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(2, 3, 32, 32, dtype=D))
    odd.due = False
    train(model, guide)
    assert backend.graphs > 0
    odd.due = True
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(2, 3, 24, 24, dtype=D))
    guide.remove()
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_refused_guide_leaves_no_hooks() -> None:
    model = net()
    model[3].compile(backend="eager")
    with pytest.raises(GuidanceError, match="module '3' was compiled") as refusal:
        ExplanationGuidance(model, "2")
    assert refusal.value.__traceback__ is not None  # which keeps the guide alive
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_compiled_part_that_the_probe_did_not_see_runs_uncompiled() -> None:
    class InTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()
            self.extra = block(6, 6)

        def forward(self, images: Tensor) -> Tensor:
            features = self.inner[:3](images)
            return self.inner[3:](self.extra(features) if self.training else features)

    found = []
    for compiled in (False, True):
        torch.manual_seed(2)
        model = InTraining().to(D)
        backend = Backend()
        if compiled:
            model.extra.compile(backend=backend)
        guide = ExplanationGuidance(model, "inner.2")
        if compiled:
            guide.compile(backend=backend)
        found.append(train(model, guide))
        assert (backend.graphs > 0) == compiled
    equal(found[1], found[0])
