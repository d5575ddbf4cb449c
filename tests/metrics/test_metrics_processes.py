"""Two processes with uneven shares give what one process gives."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from explainguide.metrics import (
    EnergyPointingGame,
    LocalizationIoU,
    OnObjectEnergy,
    PointingGame,
    SegmentationAgreement,
)

# Batches of each process, as slices of the eleven images: three against one, the last one empty.
SHARES = [[(0, 3), (3, 4), (4, 9)], [(9, 11), (11, 11)]]


def build():
    return {
        "energy": EnergyPointingGame(),
        "iou": LocalizationIoU(),
        "fit": LocalizationIoU(threshold="fit"),
        "object": OnObjectEnergy(undefined="zero"),
        "pointing": PointingGame(tolerance=1),
        "segmentation": SegmentationAgreement(),
    }


def run(metrics, images, batches):
    for start, stop in batches:
        maps, masks, boxes = (part[start:stop] for part in images)
        for name, metric in metrics.items():
            metric.update(maps, masks, *([boxes] if name == "object" else []))
    values = {name: metric.compute() for name, metric in metrics.items()}
    return values, {name: m.undefined for name, m in metrics.items()}, metrics["fit"].best_threshold


def worker(rank, images, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    # Short, so that a process that died fails the test instead of hanging it.
    wait = timedelta(seconds=90)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        torch.save(run(build(), images, SHARES[rank]), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
def test_two_processes_equal_one(images, tmp_path):
    mp.spawn(worker, args=(images, str(tmp_path)), nprocs=2)
    values, undefined, threshold = run(build(), images, [(0, 11)])
    assert all(undefined.values())
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got[0], values, rtol=1e-12, atol=0)
        assert got[1] == undefined
        assert got[2] == threshold
