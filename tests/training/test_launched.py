"""A training that a launcher starts: its processes join when Accelerate is set up, and one writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_one_of_the_launched_processes_writes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*launch, str(tmp_path / "program.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("process"))
    assert said == ["process (0, 2) writes True", "process (1, 2) writes False"]
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3
