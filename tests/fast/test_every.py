"""`every=k`: the localization loss in each k-th step, in training and in a loop of one's own."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from explainguide import ExplanationGuidance
from explainguide.datasets.batches import epoch_order
from explainguide.errors import ExplainGuideWarning, OptionError
from explainguide.training import TrainConfig, train
from explainguide.training.epochs import TrainingRun
from tests.training.small_runs import Plain, fingerprint

CONFIG = TrainConfig(
    epochs=3,
    batch_size=4,
    lr=0.1,
    layer="conv",
    target="all",
    optimizer="sgd",
    schedule="constant",
    weight_decay=0.0,
    device="cpu",
    lam=3.0,
)


class Items(torch.utils.data.Dataset):
    """Noise; some images have a box."""

    def __init__(self, count: int, annotated: Any) -> None:
        self.count, self.boxed = count, set(annotated)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(index)).double()
        box = {"boxes": torch.tensor([[2.0, 3, 12, 11]]), "labels": torch.tensor([index % 10])}
        return image, index % 10, box if index in self.boxed else None


def by_hand(data: Items, config: TrainConfig, every: int) -> tuple[nn.Module, list[float]]:
    """A loop as a user writes it: the weights, and the mean of loss_loc in each epoch."""
    model = Plain().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    guide = ExplanationGuidance(model, layer="conv", target="all", reduction="sum")
    size = config.batch_size * config.grad_accumulation  # equal to one large batch
    step, means = 0, []
    for epoch in range(1, config.epochs + 1):
        order, found, count = epoch_order(len(data), config.seed, epoch), 0.0, 0
        for first in range(0, len(order), size):
            items = [data[index] for index in order[first : first + size]]
            images = torch.stack([image for image, _, _ in items])
            labels = torch.tensor([label for _, label, _ in items])
            targets = [target for _, _, target in items]
            annotated = sum(target is not None for target in targets)
            guided = step % every == 0 and annotated
            with nullcontext() if guided else guide.pause():
                loss = cross_entropy(model(images), labels)
            if guided:
                total = guide.loss_loc(targets)
                loss = loss + config.lam * total / annotated
                found, count = found + float(total.detach()), count + annotated
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        means.append(found / count if count else math.nan)
    return model, means


@pytest.mark.parametrize(("every", "accumulated"), [(1, 1), (2, 2), (3, 1), (7, 2)])
def test_a_training_is_the_loop_with_a_loss_in_each_kth_step(every: int, accumulated: int) -> None:
    """Seven steps an epoch, or four: the rhythm goes on from epoch to epoch."""
    data = Items(26, range(0, 26, 2))
    config = replace(CONFIG, every=every, grad_accumulation=accumulated)
    model = Plain().double()
    history = train(model, data, Items(4, [0]), config, progress=False)
    expected, means = by_hand(data, config, every)
    other, _ = by_hand(data, config, 2 if every == 1 else 1)
    for name, value in expected.state_dict().items():
        found = model.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-10)
        assert not torch.allclose(found, other.state_dict()[name], rtol=0, atol=1e-6)
    logged = [row["loss_loc"] for row in history.rows]
    assert logged == pytest.approx(means, rel=1e-6, nan_ok=True)


def test_an_epoch_without_a_guided_step_has_no_loss_loc() -> None:
    history = train(
        Plain().double(),
        Items(8, range(8)),
        Items(4, [0]),
        replace(CONFIG, every=5),
        progress=False,
    )  # steps 0 and 1, 2 and 3, 4 and 5
    known = [not math.isnan(row["loss_loc"]) for row in history.rows]
    assert known == [True, False, True]
    assert all(math.isfinite(row["loss"]) for row in history.rows)


def test_the_steps_between_are_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded, no graph of a gradient is built, and the model is as before afterwards."""
    guided: list[bool] = []
    before = TrainingRun._step

    def step(self: TrainingRun, source: Any, count: int, guide: Any, *rest: Any) -> None:
        guided.append(guide is not None)
        before(self, source, count, guide, *rest)

    monkeypatch.setattr(TrainingRun, "_step", step)
    passes: list[bool] = []

    class Watched(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                features = self.conv(x)
                passes.append("Clone" in features.grad_fn.name())
                return self.head(nn.functional.gelu(features).mean((2, 3)))
            return super().forward(x)

    model = Watched().double()
    train(model, Items(8, range(8)), Items(4, [0]), replace(CONFIG, every=2), progress=False)
    assert guided == [True, False] * 3
    assert [seen for seen in passes if seen] == [True] * 3
    assert len(passes) >= 6 and not model.conv._forward_hooks


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_training_that_goes_on_keeps_its_rhythm(tmp_path: Path, stopped_after: int) -> None:
    data, val = Items(20, range(20)), Items(4, [0])  # five steps an epoch
    config = replace(CONFIG, every=3)
    train(
        Plain().double(), data, val, replace(config, output_dir=tmp_path / "whole"), progress=False
    )

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == stopped_after:
            raise InterruptedError

    broken = replace(config, output_dir=tmp_path / "broken")
    with pytest.raises(InterruptedError):
        train(Plain().double(), data, val, broken, progress=False, on_epoch=stop)
    with pytest.raises(OptionError, match="every was 3, now 4"):
        train(Plain().double(), data, val, replace(broken, every=4), resume=True, progress=False)
    train(Plain().double(), data, val, broken, resume=True, progress=False)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "whole")


def test_it_is_said_where_no_guided_step_had_an_annotated_image() -> None:
    order = epoch_order(8, CONFIG.seed, 1)
    data = Items(8, order[4:])  # those of the second step
    with pytest.warns(ExplainGuideWarning, match=r"train: no image of the steps .*\(every=2\)"):
        train(
            Plain().double(),
            data,
            Items(4, [0]),
            replace(CONFIG, every=2, epochs=1),
            progress=False,
        )


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_other_values_are_refused(every: Any) -> None:
    with pytest.raises(OptionError, match=r"TrainConfig: every is .*whole number from 1 on"):
        TrainConfig(every=every)
