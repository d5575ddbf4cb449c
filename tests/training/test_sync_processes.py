"""Several processes: no step waits for the device, and what stops one stops all in the same step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from explainguide.datasets.batches import epoch_order
from explainguide.errors import GuidanceError
from explainguide.training import TrainConfig, train
from explainguide.training.epochs import TrainingRun

from .counted import Counted, needs_newer_torch
from .small_runs import Plain
from .two_processes import in_two, needs_gloo

pytestmark = [needs_gloo, pytest.mark.slow]

COUNT, STEPS = 20, 5  # images of both, and the steps in which each process gets two of its ten
SECOND = epoch_order(COUNT, 0, 1)[1::2]  # what the second process gets; made where there is one
BASE = TrainConfig(
    epochs=1,
    batch_size=2,
    lr=0.1,
    layer="conv",
    target="all",
    optimizer="sgd",
    device="cpu",
    lam=2.0,
)
TRAININGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "a clipped gradient": {"clip_grad_norm": 0.1},
    "accumulated": {"batch_size": 1, "grad_accumulation": 2},
    "every second": {"every": 2},
    "predicted, l1, Grad-CAM": {"target": "predicted", "loss": "l1", "attribution": "gradcam"},
    "AdamW, bf16": {"optimizer": "adamw", "mixed_precision": "bf16"},
    "without guidance": {"lam": 0.0},
}


class Images(Dataset):
    """Noise. The second process alone has annotations, what cannot be read, and what raises."""

    def __init__(self, *, damaged: tuple[int, ...] = (), raises: tuple[int, ...] = ()) -> None:
        self.annotated = set(SECOND)
        self.damaged, self.raises = ({SECOND[i] for i in some} for some in (damaged, raises))

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        if index in self.raises:
            raise KeyError("a label")
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 16, 16, generator=generator)
        box = {"boxes": torch.tensor([[2.0, 3, 12, 11]]), "labels": torch.tensor([index % 10])}
        item = image, index % 10, box if index in self.annotated else None
        return None if index in self.damaged else item


VALIDATION = [Images()[0]]


class Breaks(Plain):
    """In one process something goes wrong in one step, counted from 1."""

    def __init__(self, rank: int, what: str, at: int) -> None:
        super().__init__()
        self.what, self.at, self.step = what if rank == 1 else "", at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.step += self.training
        out = super().forward(x)
        if not self.training or self.step != self.at or not self.what:
            return out
        if self.what == "raises":
            raise ArithmeticError("of its own")
        if self.what == "gradient":
            return NanGradient.apply(out)
        return out.masked_fill(
            torch.arange(10) > 0, -math.inf
        )  # an infinite loss, a finite gradient


class NanGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


@contextlib.contextmanager
def counting() -> Iterator[list[list[str]]]:
    """What each step reads, but for the first guided pass, which follows places on the host."""
    found: list[list[str]] = []
    step = TrainingRun._step

    def counted(self: TrainingRun, *args: Any) -> None:
        with Counted() as counter:
            step(self, *args)
        assert counter.operations > 20
        found.append([read for read in counter.reads if not read.endswith("hooks/places.py")])

    TrainingRun._step = counted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        TrainingRun._step = step  # type: ignore[method-assign]


def reads(config: TrainConfig, data: Images) -> list[list[str]]:
    with counting() as found:
        train(Plain(), data, VALIDATION, config, progress=False)
    return found


def count_reads(rank: int) -> dict[str, list[list[str]]]:
    found = {n: reads(replace(BASE, **options), Images()) for n, options in TRAININGS.items()}
    found["nothing in a batch"] = reads(BASE, Images(damaged=(2, 3)))
    found["at the interval"] = reads(replace(BASE, log_interval=2), Images())
    return found


@needs_newer_torch
def test_a_step_of_several_processes_reads_nothing(tmp_path: Any) -> None:
    for found in in_two(count_reads, tmp_path):
        assert [len(step) for step in found.pop("at the interval")] == [0, 1, 0, 1, 0]
        assert found == {name: [[]] * STEPS for name in found}
        assert len(found) == len(TRAININGS) + 1


def stopped(model: nn.Module, data: Dataset, config: TrainConfig) -> dict[str, Any]:
    """How a training ended, after how many passes, and the weights."""
    kind, text = "", ""
    try:
        train(model, data, VALIDATION, config, progress=False)
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"kind": kind, "text": text, "step": model.step, "weights": weights}


INTERVALS = {1: 2, 2: 2, 3: 3, 50: 5}  # the step after which a wrong second one is read


def break_one(rank: int) -> dict[str, Any]:
    found = {}
    plain = replace(BASE, lam=0.0, weight_decay=0.0)
    for interval in INTERVALS:
        for what in ("loss", "gradient"):
            config = replace(plain, log_interval=interval)
            found[what, interval] = stopped(Breaks(rank, what, 2), Images(), config)
    found["raises"] = stopped(Breaks(rank, "raises", 3), Images(), BASE)
    found["load"] = stopped(Breaks(rank, "", 0), Images(raises=(4,)), BASE)
    whole = replace(plain, batch_size=COUNT)
    found["not moved"] = stopped(Breaks(rank, "loss", 1), Images(), whole)
    return found


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return in_two(break_one, tmp_path_factory.mktemp("broken"))


OTHER = "train: 1 of the 2 processes stopped with an error of its own, so this one stops too."


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_loss_of_one_process_stops_all_in_sync_at_the_interval(
    broken: list[Any], interval: int
) -> None:
    first, second = (found["loss", interval] for found in broken)
    assert second["text"].startswith("train: epoch 1, step 2: the class loss is inf.")
    assert first["text"].startswith(OTHER)
    assert first["kind"] == second["kind"] == GuidanceError.__name__
    assert first["step"] == second["step"] == INTERVALS[interval]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert all(weight.isfinite().all() for weight in first["weights"].values())


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_gradient_that_is_not_finite_is_named_by_all_in_sync(
    broken: list[Any], interval: int
) -> None:
    for found in broken:
        got = found["gradient", interval]
        assert got["text"].startswith(
            "train: epoch 1, step 2: the losses are finite, but their gradient is nan."
        )
        assert got["step"] == INTERVALS[interval]
        assert all(weight.isfinite().all() for weight in got["weights"].values())


def test_a_loss_of_one_process_moves_the_weights_of_none_in_sync(broken: list[Any]) -> None:
    before = dict(Plain().named_parameters())
    for found in broken:
        assert found["not moved"]["text"]
        torch.testing.assert_close(found["not moved"]["weights"], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "passes", "kind"), [("raises", 3, "ArithmeticError"), ("load", 2, "KeyError")]
)
def test_an_error_of_one_process_stops_all_in_sync_before_the_step(
    broken: list[Any], name: str, passes: int, kind: str
) -> None:
    first, second = (found[name] for found in broken)
    assert first["text"].startswith(OTHER)
    assert second["kind"] == kind
    assert first["step"] == second["step"] == passes
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


def without_a_group_of_the_cpu(rank: int) -> dict[str, Any]:
    """As where the default group takes tensors of a GPU alone, which NCCL's does."""
    calls: list[tuple[str, Any]] = []
    own = {
        name: getattr(dist, name) for name in ("new_group", "destroy_process_group", "all_reduce")
    }

    def new_group(**options: Any) -> Any:
        calls.append(("made", options))
        made.append(own["new_group"](**options))
        return made[-1]

    def destroy_process_group(group: Any) -> None:
        calls.append(("gone", group is made[-1]))
        own["destroy_process_group"](group)

    def all_reduce(tensor: Tensor, *args: Any, group: Any = None) -> Any:
        if group is not None:
            assert group is made[-1]
            exchanged.append(tensor.dtype)
        return own["all_reduce"](tensor, *args, group=group)

    found, made, exchanged = {}, [], []  # type: ignore[var-annotated]
    found["usual"] = stopped(Breaks(rank, "", 0), Images(), BASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
        for function in (new_group, destroy_process_group, all_reduce):
            patch.setattr(dist, function.__name__, function)
        found["own group"] = stopped(Breaks(rank, "", 0), Images(), BASE)
        found["calls"], found["exchanged"] = list(calls), exchanged
        patch.setattr(dist, "is_gloo_available", lambda: False)
        found["no gloo"] = stopped(Breaks(rank, "", 0), Images(), BASE)
        assert calls == found["calls"]
    return found


def test_hosts_have_a_group_of_their_own_and_stay_in_sync(tmp_path: Any) -> None:
    for found in in_two(without_a_group_of_the_cpu, tmp_path):
        assert found["calls"] == [("made", {"backend": "gloo"}), ("gone", True)]
        # Twice a step, and at the epoch's end what was read and its sums.
        assert found["exchanged"] == [torch.float64] * (2 * STEPS + 2)
        for name in ("own group", "no gloo"):
            assert not found[name]["kind"], found[name]["text"]
            torch.testing.assert_close(
                found[name]["weights"], found["usual"]["weights"], rtol=0, atol=0
            )
