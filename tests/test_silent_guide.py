"""What happens around a step: dropped passes, refused calls, buffers, copies, compiled parts."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

from explainguide import ExplainGuideWarning, ExplanationGuidance
from explainguide.attr import ATTRIBUTIONS, InputXGradient, IntegratedGradients
from explainguide.errors import AnnotationError, GuidanceError, OptionError

from .networks import FOR_ANY_NETWORK

TARGETS = [{"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([1])}] * 2


def images(count: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def net(*inside: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        *(inside or (nn.BatchNorm2d(8),)),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


# Two passes, one loss.


def test_a_dropped_pass_is_said_once() -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    model(images())
    alone = guide.loss_loc(TARGETS)
    model(images(seed=2))
    model(images())
    with pytest.warns(
        ExplainGuideWarning, match="2 forward passes with gradients since the last loss_loc"
    ):
        last = guide.loss_loc(TARGETS)
    assert torch.equal(last, alone)
    model(images(seed=2))
    model(images())
    guide.loss_loc(TARGETS)  # warnings are errors: said once


def test_passes_that_raised_or_were_not_recorded_do_not_count() -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.rand(2, 5, 32, 32))
    with torch.no_grad():
        model(images())
    model(images())
    guide.loss_loc(TARGETS)


def test_pause_reads_nothing_and_lets_a_pass_wait() -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    model(images())
    alone = guide.loss_loc(TARGETS)
    model(images())
    with guide.pause():
        model(images(3, seed=2))
        with guide.pause():
            model(images(4, seed=3))
        model(images(5, seed=3))
    assert torch.equal(guide.loss_loc(TARGETS), alone)
    with guide.pause():
        model(images())
    with pytest.raises(GuidanceError, match="no forward pass is waiting"):
        guide.loss_loc(TARGETS)


def test_a_closure_of_sam_with_pause_equals_one_without_a_guide() -> None:
    found = []
    for guided in (False, True):
        model = net(nn.Identity())
        guide = ExplanationGuidance(model, "2")
        for _ in range(2):
            if guided:
                with guide.pause():
                    model(images(seed=2)).logsumexp(1).mean().backward()
            model(images())
            found.append(guide.loss_loc(TARGETS).detach())
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_a_checkpointed_model_that_is_computed_again_is_no_new_pass() -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    model(images())
    plain = guide.loss_loc(TARGETS)
    expected = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    for _ in range(2):  # the second time tells whether the recomputed pass was taken for one
        checkpoint(model, images(), use_reentrant=False)
        loss = guide.loss_loc(TARGETS)
        torch.testing.assert_close(loss, plain)
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for ours, theirs in zip(found, expected, strict=True):
            if theirs is not None and theirs.any():
                torch.testing.assert_close(ours, theirs)
        assert guide._tap.last is None


# Calls that are refused.


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda m, g: (m(images()), g.loss_loc([{"boxes": torch.tensor([[5.0, 5, 1, 9]]), "labels": torch.tensor([0])}, None])), AnnotationError),
        (lambda m, g: (m(images()), g.loss_loc(TARGETS[:1])), AnnotationError),
        (lambda m, g: (m(images()), g.loss_loc(TARGETS, target=9)), OptionError),
        (lambda m, g: g.loss_loc(TARGETS), GuidanceError),
        (lambda m, g: (m(images()), torch.no_grad()(g.loss_loc)(TARGETS)), GuidanceError),
        (lambda m, g: (torch.no_grad()(m)(images()), g.loss_loc(TARGETS)), GuidanceError),
        (lambda m, g: g.check(images(), TARGETS[:1]), AnnotationError),
        (lambda m, g: g.attribute(images(), 9), OptionError),
    ],
)  # fmt: skip
def test_a_refused_call_leaves_the_guide_as_it_was(act: Callable[..., Any], error: type) -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    model(images())
    expected = guide.loss_loc(TARGETS)
    for _ in range(2):
        with pytest.raises(error):
            act(model, guide)
        assert guide._tap.last is None  # nothing stays captured
    model(images())
    assert torch.equal(guide.loss_loc(TARGETS), expected)
    guide.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_evaluation_says_what_to_write() -> None:
    model = net()
    guide = ExplanationGuidance(model, "2")
    with torch.no_grad():
        model.eval()(images())
        with pytest.raises(GuidanceError, match=r"write `if model.training: loss = loss \+ lam"):
            guide.loss_loc(TARGETS)
    model.train()(images())
    guide.loss_loc(TARGETS).backward()


def test_hooks_come_off_when_a_guide_is_dropped() -> None:
    model = net()
    guide = ExplanationGuidance(model, "2")
    with pytest.raises(GuidanceError):
        guide.loss_loc(TARGETS)
    del guide
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("step", [False, True])
def test_a_loss_after_backward_is_one_line(step: bool) -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(images()).sum().backward(retain_graph=step)
    if step:
        optimizer.step()
    with pytest.raises(GuidanceError) as wrong:
        guide.loss_loc(TARGETS)
    assert "Call loss_loc before backward() and optimizer.step()" in str(wrong.value)
    assert "\n" not in str(wrong.value)
    model(images())
    guide.loss_loc(TARGETS).backward()


# Buffers.


class Spectral(nn.Module):
    """A buffer that a forward pass in training mode replaces, and one that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
            self.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return x + self.mean[:, None, None]


@pytest.mark.parametrize("inside", [lambda: nn.BatchNorm2d(8), Spectral, lambda: nn.InstanceNorm2d(8, track_running_stats=True)])  # fmt: skip
@pytest.mark.parametrize("attribution", FOR_ANY_NETWORK)
def test_check_and_attribute_leave_buffers_and_a_waiting_pass_alone(
    inside: Any, attribution: str
) -> None:
    def step(between: Callable[[nn.Module, ExplanationGuidance], object]) -> list[Tensor]:
        model = net(inside()).train()
        guide = ExplanationGuidance(model, "2", attribution=attribution)
        logits = model(images())
        before = {n: b.clone() for n, b in model.named_buffers()}
        between(model, guide)
        assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
        (F.cross_entropy(logits, torch.tensor([1, 2])) + guide.loss_loc(TARGETS)).backward()
        return [p.grad for p in model.parameters()]

    def broken_check(model: nn.Module, guide: ExplanationGuidance) -> None:
        with pytest.raises(AnnotationError):
            guide.check(images(), TARGETS[:1])

    expected = step(lambda model, guide: None)
    for between in (
        lambda model, guide: guide.check(images(seed=3), TARGETS),
        lambda model, guide: guide.attribute(images(seed=3), 1),
        lambda model, guide: InputXGradient(model, "2").attribute(images(seed=3), 1),
        broken_check,
    ):
        for ours, theirs in zip(step(between), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


# Copies.


class Task(nn.Module):
    """A module that holds its guide, as a LightningModule does."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.model = net(nn.Identity())
        self.guide = ExplanationGuidance(self.model, "2", **options)

    def loss(self) -> Tensor:
        self.model(images())
        return self.guide.loss_loc(TARGETS)


class Whole(nn.Module):
    """A module that is guided itself, and holds the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net(nn.Identity())
        self.guide = ExplanationGuidance(self, "model.2")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def through_torch(task: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(task, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task)), through_torch]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize(
    "options",
    [{"loss": loss} for loss in ("energy", "l1", "ppce", "rrr", "gradmask", "relevance", "reff")]
    + [{"attribution": a} for a in FOR_ANY_NETWORK]
    + [{"generator": torch.Generator().manual_seed(3), "reduction": "none"}, {"score": "log_prob"}],
    ids=lambda options: "-".join(f"{k}-{v}" for k, v in options.items() if k != "generator"),
)
def test_a_module_with_its_guide_is_copied(copied: Any, options: dict[str, Any]) -> None:
    task = Task(**options)
    twin = copied(task)
    assert repr(twin.guide) == repr(task.guide)
    assert torch.equal(twin.loss(), task.loss())
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert not torch.equal(twin.loss(), task.loss())  # each guides its own model
    twin.guide.remove()
    task.loss()


@pytest.mark.parametrize("copied", COPIES)
def test_a_guided_module_that_holds_its_guide_is_copied(copied: Any) -> None:
    task = Whole()
    twin = copied(task)
    assert twin.guide.layers == ["model.2"]
    values = []
    for one in (task, twin):
        one(images())
        values.append(one.guide.loss_loc(TARGETS))
    assert torch.equal(*values)
    assert twin.guide._outer is twin


@pytest.mark.parametrize("copied", COPIES)
def test_an_attribution_with_settings_and_a_removed_guide_are_copied(copied: Any) -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2", attribution=IntegratedGradients(model, n_steps=3))
    twin = copied(guide)
    assert twin._settings.attribution.n_steps == 3
    assert twin._settings.attribution.model is twin._outer is not model
    guide.remove()
    assert "removed" in repr(copied(guide))


# Compiled parts, and operations that have no second derivative.


def compiled_part() -> nn.Module:
    model = net(nn.Identity())
    model[3] = torch.compile(model[3], backend="aot_eager")
    return model


def compiled_in_place() -> nn.Module:
    model = net(nn.Identity())
    model[3].compile(backend="aot_eager")
    return model


# torch.compile looks at the .grad of what it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_part_above_the_layer_is_named_and_one_below_is_fine() -> None:
    expected = None
    for build in (lambda: net(nn.Identity()), compiled_part):
        model = build()
        guide = ExplanationGuidance(model, "4")
        model(images())
        loss = guide.loss_loc(TARGETS)
        loss.backward()
        found = loss.detach(), model[0].weight.grad
        expected = expected or found
        torch.testing.assert_close(found, expected)
    with pytest.raises(GuidanceError, match=r"module '3' was compiled, and ends after the first"):
        ExplanationGuidance(compiled_part(), "2")


@pytest.mark.parametrize("how", ["outside", "in place"])
def test_a_model_that_is_compiled_after_the_guide_was_built(how: str) -> None:
    model = net(nn.Identity())
    guide = ExplanationGuidance(model, "2")
    called: Any = torch.compile(model, backend="aot_eager") if how == "outside" else model
    if how == "in place":
        model.compile(backend="aot_eager")
    logits = called(images())
    torch.testing.assert_close(logits, net(nn.Identity())(images()))
    with pytest.raises(GuidanceError, match=r"the model ran inside torch\.compile"):
        guide.loss_loc(TARGETS)
    if how == "outside":  # the model itself can still be trained
        model(images())
        guide.loss_loc(TARGETS).backward()


class Extension(nn.Module):
    """An operation of a compiled extension, whose backward has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        offset = x.new_zeros(len(x), 18, x.shape[2] - 2, x.shape[3] - 2)
        return deform_conv2d(x, offset, self.weight)


def test_an_operation_of_an_extension_is_named_by_loss_loc_and_check() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), Extension(), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip
    guide = ExplanationGuidance(model, "1")
    model(images())
    with pytest.raises(GuidanceError, match=r"operation '.*deform_conv2d.*' has no second"):
        guide.loss_loc(TARGETS)
    with pytest.raises(GuidanceError, match=r"operation '.*deform_conv2d.*' has no second"):
        guide.check(images(), TARGETS)
    with ExplanationGuidance(model, "3") as above:
        model(images())
        above.loss_loc(TARGETS).backward()


# Tensors made under inference_mode.


@pytest.mark.parametrize("attribution", FOR_ANY_NETWORK)
@pytest.mark.parametrize("layer", ["input", "2"])
def test_tensors_of_inference_mode_are_welcome(attribution: str, layer: str) -> None:
    with torch.inference_mode():
        x, mask, label = images(), torch.ones(2, 32, 32), torch.tensor([1, 2])
        hot = F.one_hot(label, 4).float()
        boxes = [
            {"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": label[i : i + 1]} for i in (0, 1)
        ]
    model = net()
    guide = ExplanationGuidance(model, layer, attribution=attribution, target="all")
    for annotation, target in (
        (mask, label),
        (mask, hot),
        (boxes, None),
        (boxes, label),
        (boxes, hot),
    ):
        model(images())
        guide.loss_loc(annotation, target=target).backward()
    assert guide.check(x, boxes).ok or attribution == "gradient"
    for inside in (False, True):
        with torch.inference_mode(inside):
            torch.testing.assert_close(
                guide.attribute(x, label), guide.attribute(images(), torch.tensor([1, 2]))
            )
            ATTRIBUTIONS[attribution](model, layer).attribute(x, label)
