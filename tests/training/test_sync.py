"""No step waits for the device: nothing is read there, but for the losses at their interval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide import Annotations, ExplanationGuidance
from explainguide.bcos import AddInverse, bcosify
from explainguide.checkpoints import load_checkpoint
from explainguide.errors import GuidanceError
from explainguide.host import host_array
from explainguide.models import small_cnn
from explainguide.training import TrainConfig, train
from explainguide.training.epochs import TrainingRun

from ..vits import build, size_of
from .counted import Counted, needs_newer_torch
from .small_runs import QUICK, WIDTHS, Plain, fingerprint, tiny


@pytest.fixture
def items(digits: Any) -> list[Any]:
    """Items that are there already: reading them is the data set's business."""
    return [digits[0][index] for index in range(20)]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each step of a training reads."""
    found: list[list[str]] = []
    begun: set[TrainingRun] = set()
    step = TrainingRun._step

    def counted(self: TrainingRun, *args: Any) -> None:
        with Counted() as counter:
            step(self, *args)
        assert counter.operations > 100
        reads = counter.reads
        if self not in begun:  # the first pass of a model follows places, in tensors on the host
            reads = [read for read in reads if not read.endswith("hooks/places.py")]
        begun.add(self)
        found.append(reads)

    monkeypatch.setattr(TrainingRun, "_step", counted)
    return found


TRAININGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "l1, Grad-CAM, some annotated": {"loss": "l1", "attribution": "gradcam", "annotated": 0.5},
    "ppce, LayerCAM, negatives": {"loss": "ppce", "attribution": "layercam", "negatives": 0.5},
    "rrr at the input": {"loss": "rrr", "attribution": "gradient", "layer": "input", "score": "log_prob"},
    "gradmask, two layers, all": {"loss": "gradmask", "layer": ["stage1", "stage2"], "target": "all"},
    "reff, integrated gradients": {"loss": "reff", "attribution": "intgrad", "attribution_options": {"n_steps": 3}},
    "predicted, dilated": {"target": "predicted", "dilate": 0.25},
    "masks": {"region": "masks"},
    "sum, accumulated": {"reduction": "sum", "grad_accumulation": 2, "batch_size": 4},
    "Adam, bf16": {"optimizer": "adamw", "mixed_precision": "bf16", "schedule": "one-cycle"},
    "confidence boosting": {"class_loss": "confidence-boosting"},
    "a clipped gradient": {"clip_grad_norm": 0.1},
    "without guidance": {"lam": 0.0, "clip_grad_norm": 0.1},
}  # fmt: skip


@needs_newer_torch
@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_of_a_training_reads_nothing(
    items: list[Any], counts: list[list[str]], name: str
) -> None:
    config = replace(QUICK, epochs=2, optimizer="sgd", lr=1e-3)
    train(tiny(), items, items[:4], replace(config, **TRAININGS[name]), progress=False)
    assert counts == [[]] * 6


@needs_newer_torch
def test_multi_hot_labels_are_not_read(items: list[Any], counts: list[list[str]]) -> None:
    hot = [(image, torch.eye(10)[label], found) for image, label, found in items]
    train(tiny(), hot, hot[:4], replace(QUICK, epochs=1, optimizer="sgd"), progress=False)
    assert counts == [[]] * 3


@needs_newer_torch
def test_a_step_of_a_bcos_network_reads_nothing(items: list[Any], counts: list[list[str]]) -> None:
    plain = [(image.clamp(0, 1), label, found) for image, label, found in items]
    model = nn.Sequential(AddInverse(), bcosify(small_cnn(10, widths=WIDTHS)))
    config = replace(QUICK, epochs=1, optimizer="sgd", layer="input", attribution="bcos")
    train(model, plain, plain[:4], config, progress=False)
    assert counts == [[]] * 3


@needs_newer_torch
@pytest.mark.parametrize("name", ["vit", "vit-registers", "cait", "torchvision"])
@pytest.mark.parametrize("attribution", ["relevance", "ixg"])
def test_a_step_of_a_transformer_reads_nothing(
    counts: list[list[str]], name: str, attribution: str
) -> None:
    vit = build(name)
    box = {"boxes": torch.tensor([[2.0, 3.0, 15.0, 20.0]]), "labels": torch.tensor([1])}
    items = [(torch.rand(3, *size_of(vit)).double(), 1, box)] * 8
    config = replace(QUICK, batch_size=4, epochs=1, optimizer="sgd", layer=None)
    train(vit.model, items, items[:4], replace(config, attribution=attribution), progress=False)
    assert counts == [[]] * 2


@needs_newer_torch
def test_losses_are_read_at_their_interval(items: list[Any], counts: list[list[str]]) -> None:
    config = replace(QUICK, epochs=2, batch_size=4, optimizer="sgd", log_interval=2)
    train(tiny(), items, items[:4], config, progress=False)
    assert [len(reads) for reads in counts] == [0, 1, 0, 1, 0] * 2  # the fifth at the epoch's end


@needs_newer_torch
@pytest.mark.parametrize("form", ["dicts", "Annotations", "masks", "masks of classes"])
@pytest.mark.parametrize("target", ["sample", "all", "predicted"])
def test_loss_loc_reads_nothing(items: list[Any], form: str, target: str) -> None:
    model = tiny().train()
    images = torch.stack([image for image, _, _ in items[:8]])
    labels = torch.tensor([label for _, label, _ in items[:8]])
    dicts = [found if index % 3 else None for index, (_, _, found) in enumerate(items[:8])]
    masks = torch.zeros(8, 24, 24)
    masks[:, 4:12, 4:12] = 1
    of_classes = masks[:, None] * nn.functional.one_hot(labels, 10)[..., None, None]
    forms = {"dicts": dicts, "Annotations": Annotations.from_targets(dicts, canvas=(24, 24))}
    forms |= {"masks": masks, "masks of classes": of_classes}
    given = (labels,) if target != "predicted" else ()
    with ExplanationGuidance(model, layer="stage2", target=target) as guide:
        for _ in range(3):
            logits = model(images)
            with Counted() as counter:
                (logits.logsumexp(1).mean() + guide.loss_loc(forms[form], *given)).backward()
            assert counter.reads == []
            assert counter.operations > 10


@pytest.mark.parametrize("target", ["sample", "all"])
def test_loss_loc_runs_as_many_operations_for_any_batch(items: list[Any], target: str) -> None:
    dispatched = {}
    for count in (2, 16):
        model = tiny().train()
        images = torch.stack([image for image, _, _ in items[:count]])
        annotations = Annotations.from_targets([found for _, _, found in items[:count]])
        with ExplanationGuidance(model, layer="stage2", target=target) as guide:
            seen = []
            for _ in range(2):  # the first looks for second derivatives
                model(images)
                with Counted() as counter:
                    guide.loss_loc(annotations)
                seen.append(counter.operations)
        dispatched[count] = seen
    assert dispatched[2] == dispatched[16]


def test_what_is_read_is_counted() -> None:
    values = torch.tensor([1.0, 0.0])
    for read in (
        lambda: values.sum().item(),
        lambda: bool(values.any()),
        lambda: values[values > 0],
        lambda: values.nonzero(),
        lambda: values.tolist(),
        lambda: values.numpy(),
        lambda: torch.equal(values, values),
    ):
        with Counted() as counter:
            read()
        assert len(counter.reads) == 1
    assert "tolist" not in vars(Tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_values_on_the_host_are_read_without_an_operation(dtype: torch.dtype) -> None:
    values = torch.tensor([1, 0, 2]).to(dtype)
    values = values.requires_grad_() if dtype.is_floating_point else values
    with Counted() as counter:
        found = host_array(values)
    assert counter.reads == []
    assert found.tolist() == [1, 0, 2]
    with torch.inference_mode():
        assert host_array(values.detach() > 1).any()


def test_values_are_read_within_a_transform_of_torch_func() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(host_array(x > 0))
        return x.sum()

    torch.func.grad(function)(torch.tensor([[1.0, -1.0]]))
    assert seen[0].tolist() == [[True, False]]


class BreaksAt(Plain):
    """Its class loss is not finite in some steps, from 1."""

    def __init__(self, *steps: int, gradient: bool = False) -> None:
        super().__init__()
        self.breaks, self.gradient, self.step = steps, gradient, 0

    def forward(self, x: Tensor) -> Tensor:
        self.step += self.training
        out = super().forward(x)
        if not self.training or self.step not in self.breaks:
            return out
        return NanGradient.apply(out) if self.gradient else out * math.nan


class NanGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


@pytest.mark.parametrize("interval", [1, 3, 50])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_step_that_was_not_finite_is_named_later(
    digits: Any, tmp_path: Path, interval: int, gradient: bool, clip: float | None
) -> None:
    config = replace(QUICK, layer="conv", batch_size=4, log_interval=interval, clip_grad_norm=clip)
    config = replace(config, output_dir=tmp_path, optimizer="sgd")
    config = replace(config, lam=0.0) if gradient else config  # loss_loc is made of a gradient
    model = BreaksAt(7, 8, gradient=gradient)  # 5 steps an epoch
    files = {}

    def keep(row: dict[str, float]) -> None:
        files.update({path: path.read_bytes() for path in tmp_path.rglob("*.*")})

    with pytest.raises(GuidanceError) as caught:
        train(model, *digits, config, progress=False, on_epoch=keep)
    what = (
        "the losses are finite, but their gradient is nan" if gradient else "the class loss is nan"
    )
    assert str(caught.value).startswith(f"train: epoch 2, step 2: {what}")
    assert model.step == 5 + {1: 2, 3: 3, 50: 5}[interval]
    assert all(p.isfinite().all() for p in model.parameters())
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert files
    assert all(path.read_bytes() == before for path, before in files.items())


@pytest.mark.parametrize("gradient", [False, True])
def test_the_gradient_of_a_step_that_is_not_finite_moves_nothing(
    digits: Any, gradient: bool
) -> None:
    config = replace(QUICK, layer="conv", lam=0.0, batch_size=4, epochs=1, optimizer="sgd")
    model = BreaksAt(*range(1, 6), gradient=gradient)  # never a momentum
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(GuidanceError, match="epoch 1, step 1"):
        train(model, *digits, replace(config, weight_decay=0.0), progress=False)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_loss_that_is_not_finite_over_a_finite_gradient_moves_nothing(digits: Any) -> None:
    class OutOfRange(Plain):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            # The class of the first image cannot be: its loss is infinite, with a finite gradient.
            return out.masked_fill(torch.arange(10) == label, -math.inf)

    _, label, _ = digits[0][0]
    model = OutOfRange()
    before = [p.detach().clone() for p in model.parameters()]
    config = replace(QUICK, layer="conv", lam=0.0, batch_size=20, epochs=1, weight_decay=0.0)
    with pytest.raises(GuidanceError, match=r"step 1: the class loss is inf\."):
        train(model, *digits, config, progress=False)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_interval_changes_no_weight(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=2, clip_grad_norm=0.5, annotated=0.5)
    rows = {}
    for interval in (1, 50):
        folder = tmp_path / str(interval)
        settings = replace(config, log_interval=interval, output_dir=folder)
        rows[interval] = train(tiny(), *digits, settings, progress=False).rows
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "50")
    for row in (*rows[1], *rows[50]):
        del row["seconds"]
    assert rows[1] == rows[50]


def test_a_training_goes_on_with_another_interval(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, output_dir=tmp_path)
    train(tiny(), *digits, config, progress=False)
    assert len(train(tiny(), *digits, replace(config, log_interval=7), resume=True).rows) == 1
    assert not config.differences(replace(config, log_interval=7).to_dict())
    assert TrainConfig().log_interval == 50
