"""What the tests of the training share: tiny models, quick settings, the files of a run."""

from __future__ import annotations

import csv
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from explainguide.models import small_cnn
from explainguide.training import TrainConfig

WIDTHS = (4, 4, 4, 4, 8, 8)


QUICK = TrainConfig(epochs=3, batch_size=8, lr=3e-3, layer="stage2", device="cpu", lam=0.5)


def tiny() -> nn.Module:
    torch.manual_seed(3)
    return small_cnn(10, widths=WIDTHS)


class Noisy(Dataset):
    """Items that draw random numbers, as augmentation does."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        image, label, annotation = self.data[index]
        return image + 0.05 * torch.randn_like(image), label, annotation


def fingerprint(folder: Path) -> str:
    return sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Plain(nn.Module):
    """No BatchNorm, so a batch may be cut in pieces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.head = nn.Conv2d(3, 6, 5), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.gelu(self.conv(x)).mean((2, 3)))
