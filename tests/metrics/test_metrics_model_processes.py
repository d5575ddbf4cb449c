"""Two processes with uneven shares give what one gives, for the metrics that ask a model."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from explainguide.metrics import (
    DeletionCurve,
    EnergyPointingGame,
    Infidelity,
    InsertionCurve,
    PixelPerturbation,
    Robustness,
    SensitivityMax,
)
from tests.metrics.asked import Small, seven, told_elsewhere

# Batches of each process, as slices of the seven images: the last one empty.
SHARES = [[(0, 3), (3, 4), (4, 5)], [(5, 7), (7, 7)]]


def build():
    return {
        "remove": PixelPerturbation(),
        "keep": PixelPerturbation(mode="keep", fill="blur", multilabel=True),
        "insertion": InsertionCurve(steps=5),
        "deletion": DeletionCurve(steps=5, fill=0.0),
        "robust": Robustness(EnergyPointingGame(), change=mirrored),
        # Draws differ, but not what they are of: a fit that is exact, and maps that do not move.
        "infidelity": Infidelity(perturbation="add", sd=1e-9, normalize=False),
        "sensitivity": SensitivityMax(radius=1e-9),
    }


def mirrored(images, mask):
    return images.flip(-1)


def first_channel(images, target):
    return images[:, 0]


def run(metrics, batches):
    for start, stop in batches:
        maps, images, target = (part[start:stop] for part in seven())
        for name, metric in metrics.items():
            if name == "robust":
                metric.update(images, target, maps > 0, first_channel)
            elif name == "sensitivity":
                metric.update(maps, images, target, lambda images, target: images[:, 0])
            else:
                metric.update(maps, images, target, Small())
    values = {name: metric.compute() for name, metric in metrics.items()}
    counts = {name: m.undefined for name, m in metrics.items() if name != "robust"}
    return values, counts, metrics["remove"].shares


def worker(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    # Short, so that a process that died fails the test instead of hanging it.
    wait = timedelta(seconds=90)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        torch.save(run(build(), SHARES[rank]), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
@told_elsewhere
def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    values, undefined, shares = run(build(), [(0, 7)])
    assert set(undefined.values()) == {2}
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got[0], values, rtol=1e-6, atol=1e-12)
        assert got[1] == undefined
        assert got[2] == pytest.approx(shares)


@told_elsewhere
def test_states_of_two_processes_are_added():
    """As if a second process held the same images."""
    maps, images, target = seven()
    alone, both = (
        {
            "remove": PixelPerturbation(**options),
            "insertion": InsertionCurve(steps=3, **options),
        }
        for options in (
            {},
            {
                "distributed_available_fn": lambda: True,
                "dist_sync_fn": lambda state, group: [state, state],
            },
        )
    )
    for metrics in (alone, both):
        for metric in metrics.values():
            metric.update(maps, images, target, Small())
    for name, metric in alone.items():
        torch.testing.assert_close(both[name].compute(), metric.compute())
        assert both[name].undefined == 2 * metric.undefined
