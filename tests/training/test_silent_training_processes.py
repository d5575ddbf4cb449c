"""Two processes train as one does: the weights, the losses, and what stops them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from explainguide.datasets.batches import epoch_order
from explainguide.errors import AnnotationError, DataError, GuidanceError
from explainguide.evaluation import evaluate
from explainguide.models import small_cnn
from explainguide.training import TrainConfig, train

from .small_runs import Plain

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
WORLD = 2
BASE = TrainConfig(
    epochs=1,
    batch_size=8,
    lr=0.3,
    layer="conv",
    target="all",
    optimizer="sgd",
    device="cpu",
    lam=3.0,
)


class Items(torch.utils.data.Dataset):
    """Images of noise; some annotated, some unreadable, some with what breaks a training."""

    def __init__(self, count: int, annotated: Any, **kinds: Any) -> None:
        self.count, self.boxed, self.kinds = count, set(annotated), kinds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index in self.kinds.get("damaged", ()):
            return None
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 20, 20, generator=generator).double()
        label = int(torch.randint(10, (), generator=generator))
        boxes = torch.tensor([[2.0, 3, 12, 11]])
        if index in self.kinds.get("inverted", ()):
            boxes = boxes.flip(1)
        if index in self.kinds.get("infinite", ()):
            image = image * torch.inf
        annotation = {"boxes": boxes, "labels": torch.tensor([label])}
        hot = nn.functional.one_hot(torch.tensor(label), 10).float()
        labels = hot if self.kinds.get("hot") else label
        return image, labels, annotation if index in self.boxed else None


class Binary(torch.utils.data.Dataset):
    """The same images with the labels of one logit."""

    def __init__(self, data: Items) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        boxes = {"boxes": torch.tensor([[2.0, 3, 12, 11]]), "labels": torch.tensor([index // 2])}
        return None if item is None else (item[0], torch.tensor([index / 2]), boxes)


def turns(count: int, rank: int) -> list[int]:
    """What a process gets of the first epoch, in its order."""
    return epoch_order(count, 0, 1)[rank::WORLD]


def cases() -> dict[str, tuple[Items, TrainConfig]]:
    first, second = turns(40, 0), turns(40, 1)
    odd = turns(23, 1)
    return {
        "a tenth": (Items(40, [first[1], first[9], second[6], second[18]]), BASE),
        "one has none": (Items(40, second[::3]), BASE),
        "none in a step": (Items(40, [*first[:3], second[9]]), BASE),
        "sum": (Items(40, second[::3]), replace(BASE, reduction="sum", lam=0.5)),
        "accumulated": (
            Items(40, [first[0], second[5], second[17]]),
            replace(BASE, batch_size=4, grad_accumulation=2),
        ),
        "every second step": (Items(40, second[::3]), replace(BASE, every=2, epochs=2)),
        "clipped": (Items(40, first[::4]), replace(BASE, clip_grad_norm=0.05)),
        "uneven": (Items(23, odd), BASE),
        "damaged": (Items(10, range(10), damaged=turns(10, 1)[1:3]), replace(BASE, batch_size=2)),
        "a part unused": (Items(16, range(16)), replace(BASE, weight_decay=0.1)),
    }


class Spare(Plain):
    """With a parameter that no pass uses, and which weight decay must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))


def outcome(data: Items, config: TrainConfig) -> dict[str, Any]:
    model = Spare().double()
    last = train(model, data, Items(7, range(3)), config, progress=False).last
    scores = {k: v for k, v in last.items() if k != "seconds"}
    return {"scores": scores, "model": {k: v.clone() for k, v in model.state_dict().items()}}


def stopped(work: Callable[[], object]) -> tuple[str, str]:
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def worker(rank: int, todo: dict[str, tuple[Items, TrainConfig]], mistakes: Any, path: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(path) / "store"), WORLD)
    # Short, so that a process that waits for another fails the test instead of hanging it.
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=wait)
    try:
        found: dict[str, Any] = {}
        for name, (data, config) in todo.items():
            if name == "damaged":  # batches of one image, and nothing in one of them
                config = replace(config, batch_size=1)
            else:
                config = replace(config, batch_size=config.batch_size // WORLD)
            found[name] = outcome(data, config)
        torch.manual_seed(rank)  # a script that forgot to seed, and running statistics of its own
        normed = small_cnn(10, widths=(2, 2, 2, 2, 4, 4)).double()
        train(
            normed,
            Items(16, range(16)),
            Items(4, [0]),
            replace(BASE, layer="input"),
            progress=False,
        )
        found["normed"] = normed.state_dict()
        for name, data in mistakes.items():
            found[name] = stopped(lambda data=data: outcome(data, replace(BASE, batch_size=2)))
        model = Plain().double()
        alone = Items(4, range(4), damaged=[1, 3])  # all that the second process has
        found["evaluated"] = evaluate(model, alone, layer="conv", threshold="fit")
        alone = Items(4, range(4), damaged=[1, 3], hot=True)
        found["multi-hot"] = evaluate(model, alone, layer="conv")
        one = nn.Sequential(model, nn.Linear(10, 1).double().requires_grad_(False))
        nn.init.ones_(one[1].weight)
        found["one logit"] = evaluate(one, Binary(alone), layer="0.conv")
        broken = Items(4, range(4), inverted=[1])
        found["not evaluated"] = stopped(lambda: evaluate(model, broken, layer="conv"))
        found["nothing"] = stopped(
            lambda: evaluate(model, Items(4, [], damaged=range(4)), layer="conv")
        )
        torch.save(found, Path(path) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    second = turns(40, 1)
    mistakes = {
        "inverted": Items(40, range(40), inverted=[second[5]]),
        "infinite": Items(40, range(40), infinite=[second[5]]),
    }
    mp.spawn(worker, args=(cases(), mistakes, str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(cases()))
def test_two_processes_train_as_one(both: list[dict[str, Any]], name: str) -> None:
    data, config = cases()[name]
    expected = outcome(data, config)
    before = Spare().double().state_dict()
    assert any(not torch.equal(before[k], v) for k, v in expected["model"].items())
    for found in both:
        got = found[name]
        torch.testing.assert_close(got["model"], expected["model"], rtol=0, atol=1e-9)
        for key, value in expected["scores"].items():
            assert got["scores"][key] == pytest.approx(value, rel=1e-5, nan_ok=True), key


@pytest.mark.slow
def test_all_processes_have_the_same_weights_and_statistics(both: list[dict[str, Any]]) -> None:
    first, second = (found["normed"] for found in both)
    assert any("running_mean" in name for name in first)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.slow
def test_the_guidance_matters_in_these_cases() -> None:
    """A step without it is further away than what the test above lets pass."""
    data, config = cases()["a tenth"]
    with_it, without = outcome(data, config), outcome(data, replace(config, lam=0.0))
    off = [(with_it["model"][k] - v).abs().max() for k, v in without["model"].items()]
    assert max(off) > 1e-4


@pytest.mark.slow
def test_an_error_in_one_process_stops_them_all(both: list[dict[str, Any]]) -> None:
    first, second = both
    other = "train: 1 of the 2 processes stopped with an error of its own, so this one stops too."
    for name, kind in (("inverted", AnnotationError), ("infinite", GuidanceError)):
        assert first[name][0] == GuidanceError.__name__
        assert first[name][1].startswith(other)
        assert second[name][0] == kind.__name__
        assert "stops too" not in second[name][1]
    assert first["not evaluated"][1].startswith("evaluate: 1 of the 2 processes stopped")
    assert second["not evaluated"][0] == AnnotationError.__name__


@pytest.mark.slow
def test_a_process_that_could_read_nothing_gets_the_whole_evaluation(
    both: list[dict[str, Any]],
) -> None:
    model, damaged = Plain().double(), [1, 3]
    expected = evaluate(model, Items(4, range(4), damaged=damaged), layer="conv", threshold="fit")
    assert (expected["images"], expected["skipped"]) == (2, 2)
    hot = evaluate(model, Items(4, range(4), damaged=damaged, hot=True), layer="conv")
    for found in both:
        assert found["evaluated"] == pytest.approx(expected)
        assert found["multi-hot"] == pytest.approx(hot)
        assert {"f1", "map", "epg"} <= set(found["one logit"])
        assert found["nothing"][0] == DataError.__name__
