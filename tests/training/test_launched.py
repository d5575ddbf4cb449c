"""What a launcher starts: its processes join one another, one of them writes, and says what one alone says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from explainguide.cli import main

from .small_runs import rows_of

PROGRAM = """
import sys
from torch.utils.data import Subset
from explainguide.datasets import DecoyDigits
from explainguide.models import small_cnn
from explainguide.processes import process
from explainguide.training import TrainConfig, run_folder, train

writers = []
before = run_folder.RunFolder.__init__

def noted(self, *args, main, **options):
    writers.append(main)
    before(self, *args, main=main, **options)

run_folder.RunFolder.__init__ = noted
data = Subset(DecoyDigits("train"), range(16))
config = TrainConfig(epochs=2, batch_size=4, layer="stage2", device="cpu", output_dir=sys.argv[1])
train(small_cnn(10, widths=(4, 4, 4, 4, 8, 8)), data, data, config, progress=False)
print("process", process(), "writes", writers[0], flush=True)
"""

# A network without BatchNorm, so that a batch may be cut in pieces.
NETWORK = """
from torch import nn

def plain(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.GELU(), nn.Conv2d(8, 8, 3), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAUNCHERS = {
    "torchrun": TORCHRUN,
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    ),
}


def launch(folder: Path, *program: str) -> str:
    """What the processes print that start in a folder."""
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(printed: str) -> list[list[str]]:
    """The cells of the printed lines, but for the last, which names a folder, and the seconds."""
    rows = [line.split() for line in printed.splitlines() if line and not line.startswith("Check")]
    gone = rows[0].index("seconds") if "seconds" in rows[0] else None
    return [[c for i, c in enumerate(row) if i != gone] for row in rows]


@pytest.mark.slow
def test_ddp_launchers_print_the_table_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "network_of_mine.py").write_text(NETWORK)
    train = [
        *("-m", "explainguide", "train", "--data", "decoy", "--size", "24", "--device", "cpu"),
        *("--model", "network_of_mine:plain", "--layer", "1", "--target", "all", "--quiet"),
        *("--epochs", "1", "--annotated", "0.1", "--lr", "0.01"),
    ]
    alone = launch(tmp_path, *train, "--batch-size", "128", "--out", "alone")
    assert len(table(alone)) == 2
    for name, launcher in LAUNCHERS.items():
        both = launch(tmp_path, *launcher, *train, "--batch-size", "64", "--out", name)
        assert table(both) == table(alone)
        (row,), (expected,) = rows_of(tmp_path / name), rows_of(tmp_path / "alone")
        del row["seconds"], expected["seconds"]
        for key, value in expected.items():
            assert float(row[key]) == pytest.approx(float(value), rel=1e-3, nan_ok=True), key

    measure = ["evaluate", "alone/last.pt", "--quiet", "--device", "cpu"]
    both = launch(tmp_path, *TORCHRUN, "-m", "explainguide", *measure)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(measure) == 0
    assert both == capsys.readouterr().out


@pytest.mark.slow
def test_one_of_the_launched_processes_writes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    printed = launch(tmp_path, *TORCHRUN, "program.py", "run")
    said = sorted(line for line in printed.splitlines() if line.startswith("process"))
    assert said == ["process (0, 2) writes True", "process (1, 2) writes False"]
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3
