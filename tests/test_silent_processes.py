"""Several processes give the weights of one, however few images are annotated, and wherever they are."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from explainguide import ExplanationGuidance

STEPS, IMAGES = 3, 10
# Which images of each step's ten are annotated; a process has the even or the odd ones.
ANNOTATED = {
    "a tenth": [{0}, {3}, {6}],
    "one has none": [{0, 2, 4}, {2}, {6, 8}],
    "none": [set()] * 3,
}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).double()  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(IMAGES, 3, 32, 32, generator=generator).double()
    return images, torch.randint(4, (IMAGES,), generator=generator)


def train(case: str, rank: int = 0, world: int = 1, **options: Any) -> dict[str, Tensor]:
    model = build()
    guided = DistributedDataParallel(model) if world > 1 else model
    guide = ExplanationGuidance(guided, "3", target="all", **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(STEPS):
        images, labels = batch(step)
        mine = list(range(rank, IMAGES, world))
        targets: list[Any] = [
            {"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": labels[i : i + 1]}
            if i in ANNOTATED[case][step]
            else None
            for i in mine
        ]
        logits = guided(images[mine])
        loss = nn.functional.cross_entropy(logits, labels[mine]) + 3 * guide.loss_loc(targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report = guide.check(batch(0)[0], [None] * IMAGES)  # alone: no other process need take part
    assert report.loss == 0
    return {name: p.detach() for name, p in model.named_parameters()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    wait = timedelta(seconds=90)  # a process that died fails the test instead of hanging it
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        found = {case: train(case, rank, 2) for case in ANNOTATED}
        found["own mean"] = train("one has none", rank, 2, sync_dist=False)
        torch.save(found, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
def test_two_processes_equal_one_whatever_is_annotated(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case in ANNOTATED:
        expected = train(case)
        for process in found:
            for name, weight in expected.items():
                torch.testing.assert_close(process[case][name], weight, rtol=0, atol=1e-10)
    # The option turns it off, and then it matters: the guidance of the one process is halved.
    off = max((found[0]["own mean"][n] - w).abs().max() for n, w in train("one has none").items())
    assert off > 1e-3
