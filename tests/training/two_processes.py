"""Two processes on this machine, and the loop that each of them and one alone runs on its images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from explainguide import ExplanationGuidance

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
IMAGES, STEPS = 8, 2
ALL = list(range(IMAGES))


def in_two(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What each of two processes returns."""
    mp.spawn(_join, args=(work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _join(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    # Short, so that a process that waits for another fails the test instead of hanging it.
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        torch.save(work(rank), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


class Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.GroupNorm(2, outside)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.conv(x)))


class Blocks(nn.Module):
    """Blocks one after another, without BatchNorm, so that a batch may be cut in pieces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = Block(3, 8), Block(8, 8), Block(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


def shares(rank: int | None) -> list[int]:
    """The images of a process; all of them for one alone."""
    return ALL if rank is None else ALL[rank::2]


def train(
    model: nn.Module,
    rank: int | None,
    layer: Any = "first",
    *,
    wrapped: nn.Module | None = None,
    before: Callable[[nn.Module], object] = lambda model: None,
    annotated: Any = (0, 2, 4),
    pieces: int = 1,
    lam: float = 3.0,
    alone: bool = False,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float64,
    size: int = 12,
    **options: Any,
) -> dict[str, Tensor]:
    """The weights after some steps of a loop as a user writes it.

    Args:
        model: Whose parameters are trained.
        rank: Of this process, or None.
        layer: Of the guide.
        wrapped: What runs, where it is not the model.
        before: Called with the model, between the guide and the optimizer.
        annotated: Which images are.
        pieces: Batches whose gradients are added up to a step.
        lam: Weight of the localization loss.
        alone: Whether there is no other loss.
        steps: Of the optimizer.
        dtype: Of the images.
        size: Likewise.
        options: Of the guide.
    """
    outer = wrapped or model
    guide = ExplanationGuidance(outer, layer, **{"target": "all", **options})
    before(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(IMAGES, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(4, (IMAGES,), generator=generator)
    box = torch.tensor([[2.0, 3, 8, 10]])
    mine = shares(rank)
    for _ in range(steps):
        for piece in range(pieces):
            part = mine[piece * len(mine) // pieces : (piece + 1) * len(mine) // pieces]
            targets = [
                {"boxes": box, "labels": labels[i : i + 1]} if i in annotated else None
                for i in part
            ]
            with synchronised(outer, piece == pieces - 1):
                logits = outer(images[part])
                loss = lam * guide.loss_loc(targets)
                if not alone:
                    loss = loss + nn.functional.cross_entropy(logits, labels[part])
                (loss / pieces).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # an evaluation in between
            outer(images[mine])
    guide.remove()
    return {name: _whole(p).detach().clone() for name, p in model.named_parameters()}


@contextlib.contextmanager
def synchronised(model: Any, last: bool) -> Any:
    """Gradients of all processes are put together in the last of several backward passes only."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    alone = not last and hasattr(model, "no_sync")
    with model.no_sync() if alone else contextlib.nullcontext():
        yield


def _whole(parameter: Any) -> Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
