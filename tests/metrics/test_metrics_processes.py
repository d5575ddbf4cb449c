"""Two processes with uneven shares, or one of them with none, give what one process gives."""

import math
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from explainguide.errors import ExplainGuideWarning
from explainguide.metrics import (
    EnergyPointingGame,
    IoUCurve,
    LocalizationIoU,
    OnObjectEnergy,
    PixelAveragePrecision,
    PointingGame,
    SegmentationAgreement,
    WorstGroupAccuracy,
    pixel_average_precision,
)

# Batches of each process, as slices of the eleven images: three against one, the last one empty.
UNEVEN = [[(0, 3), (3, 4), (4, 9)], [(9, 11), (11, 11)]]
NONE = [[(0, 3), (3, 11)], []]
PIXELS = 6 * 9  # of an image


def build():
    return {
        "energy": EnergyPointingGame(),
        "iou": LocalizationIoU(),
        "fit": LocalizationIoU(threshold="fit"),
        "object": OnObjectEnergy(undefined="zero"),
        "pointing": PointingGame(tolerance=1),
        "segmentation": SegmentationAgreement(),
        "curve": IoUCurve(thresholds=(0.1, 0.3, 0.8), normalize="max"),
        "pxap": PixelAveragePrecision(),
        # The first process is beyond it, the second is not.
        "pxap of bins": PixelAveragePrecision(exact_pixels=4 * PIXELS, bits=12),
        "pxap of units": PixelAveragePrecision(normalize="minmax", exact_pixels=0),
        "pxap of choe": PixelAveragePrecision(definition="choe", normalize="minmax"),
        "pxap of comet": PixelAveragePrecision(definition="comet", normalize="minmax"),
    }


def predictions(images):
    """Logits, labels and groups of eleven images; the second group has none."""
    logits = images[0][:, :3, 0]
    return logits, torch.arange(11) % 3, torch.tensor([0, 0, 2, 2, 0, 2, 0, 0, 2, 3, 3])


def run(images, batches):
    """All that the metrics say of the batches, to be compared."""
    metrics, groups = build(), WorstGroupAccuracy(groups=["a", "b", "c", "d"])
    each_process = PixelAveragePrecision(exact_pixels=9 * PIXELS)
    for start, stop in batches:
        maps, masks, boxes = (part[start:stop] for part in images)
        for name, metric in metrics.items():
            metric.update(maps, masks, *([boxes] if name == "object" else []))
        each_process.update(maps, masks)
        groups.update(*(part[start:stop] for part in predictions(images)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExplainGuideWarning)
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        values = {name: metric.compute() for name, metric in metrics.items()}
        worst, kept = groups.compute(), each_process.compute()
    return {
        "values": {**values, "worst": worst},
        "undefined": {name: metric.undefined_kinds for name, metric in metrics.items()},
        "threshold": metrics["fit"].best_threshold,
        "errors": {name: metrics[name].error for name in metrics if "pxap" in name},
        "bounds": metrics["pxap of bins"].bounds,
        "table": {row["group"]: (row["accuracy"], row["images"]) for row in groups.table},
        "kept": (float(kept), each_process.error),
    }


def worker(rank, images, shares, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    # Short, so that a process that died fails the test instead of hanging it.
    wait = timedelta(seconds=90)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        torch.save(run(images, shares[rank]), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
@pytest.mark.parametrize("shares", [UNEVEN, NONE], ids=["uneven", "one has none"])
def test_two_processes_equal_one(images, tmp_path, shares):
    images[0][3, 0, 0] = math.nan  # in the first process
    mp.spawn(worker, args=(images, shares, str(tmp_path)), nprocs=2)
    alone = run(images, [(0, 11)])
    assert all(kinds["not_finite"] == 1 for kinds in alone["undefined"].values())
    exact = float(pixel_average_precision(*(part[[0, 1, 2, *range(4, 11)]] for part in images[:2])))
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        # A process that saw no map does not know that they are float64.
        knows = bool(shares[rank])
        close = {"rtol": 1e-12 if knows else 1e-6, "atol": 0, "check_dtype": knows}
        torch.testing.assert_close(got["values"], alone["values"], **close)
        assert got["undefined"] == alone["undefined"]
        assert got["threshold"] == alone["threshold"]
        assert got["errors"] == alone["errors"]
        assert got["bounds"] == alone["bounds"]
        assert got["errors"]["pxap"] == 0 < got["errors"]["pxap of bins"]
        assert float(got["values"]["pxap"]) == pytest.approx(exact, rel=close["rtol"])
        assert repr(got["table"]) == repr(alone["table"])  # NaN is not equal to NaN
        assert got["table"]["b"][1] == 0
        # 11 images are more than one process keeps, but no process has more than it keeps.
        assert got["kept"][0] == pytest.approx(exact, rel=1e-12 if shares is UNEVEN else 1e-2)
        assert (got["kept"][1] == 0) == (shares is UNEVEN)
