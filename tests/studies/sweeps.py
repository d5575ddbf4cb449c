"""What the tests of the sweep share; as a program, one sweep in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset, Subset

from explainguide.datasets import DecoyDigits
from explainguide.models import small_cnn
from explainguide.studies import SweepResult, sweep
from explainguide.training import TrainConfig

QUICK = TrainConfig(epochs=2, batch_size=8, layer="stage2", device="cpu", lr=3e-3)
SEARCH: dict[str, Any] = {"lam": [0.5, 5.0]}

tiny = partial(small_cnn, 10, widths=(4, 4, 4, 4, 8, 8))


class Deadly(Dataset):
    """Kills its process, as a machine that goes down, when the file is there at an item."""

    def __init__(self, data: Dataset, after: int) -> None:
        self.data, self.left = data, after

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.data[index]


def images() -> tuple[Subset, Subset]:
    return (
        Subset(DecoyDigits("train", size=24), range(16)),
        Subset(DecoyDigits("test", size=24), range(12)),
    )


def run(out: Path, *, after: int = 0, built: Path | None = None, **options: Any) -> SweepResult:
    train_data, val_data = images()

    def build() -> nn.Module:
        if built is not None:
            with built.open("a") as file:
                file.write(f"{os.getpid()}\n")
        return tiny()

    deadly = Deadly(train_data, after) if after else train_data
    given = {"search": SEARCH, "config": QUICK, "progress": False, **options}
    return sweep(build, deadly, val_data, out=out, **given)


if __name__ == "__main__":
    run(Path(sys.argv[1]), after=int(sys.argv[2]), built=Path(sys.argv[3]), storage=sys.argv[4])
