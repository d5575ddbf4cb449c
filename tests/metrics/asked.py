"""Images, maps that hold every special case, and a small model, for the metrics that ask a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

UNDEFINED = (4, 5)  # of the seven
# One of them is not finite, which `compute` tells: test_metrics_model_undefined.py.
told_elsewhere = pytest.mark.filterwarnings("ignore:.* a map or mask that is not finite")


class Small(nn.Module):
    """A smooth network of three classes, in float64, in evaluation mode."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, classes)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = drawn
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(images)).mean((2, 3)))


class Affine(nn.Module):
    """Logits that are linear in the pixels: a weight for each class, channel and pixel."""

    def __init__(self, classes: int, size: tuple[int, int, int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(classes, *size, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", images, self.weight)


def seven() -> tuple[Tensor, Tensor, Tensor]:
    """Maps ``(7, 6, 9)``, images ``(7, 3, 6, 9)`` and targets; one map has ties, two are undefined."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(7, 6, 9, generator=generator, dtype=torch.float64)
    images = torch.randn(7, 3, 6, 9, generator=generator, dtype=torch.float64)
    maps[3] = -maps[3].abs()  # nothing positive: its highest pixels are its highest all the same
    maps[4] = 0.7
    maps[5, 2, 3] = torch.nan
    return maps, images, torch.tensor([0, 1, 2, 0, 1, 2, 0])


def defined() -> Tensor:
    """Which of the seven maps are defined."""
    return torch.tensor([i not in UNDEFINED for i in range(7)])
