"""Small networks for the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from explainguide.attr import ATTRIBUTIONS

# The attributions that any network has; relevance needs attention (see test_relevance.py), and bcos
# a B-cos network (see bcos/test_exactness.py).
OF_SOME = {"bcos"} | {name for name, kind in ATTRIBUTIONS.items() if kind.places_itself}
FOR_ANY_NETWORK = [name for name in ATTRIBUTIONS if name not in OF_SOME]


class SmallCnn(nn.Module):
    """Two smooth stages with BatchNorm, so that finite differences are clean; 12-pixel images."""

    def __init__(self, num_classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU(), nn.AvgPool2d(2)
        )
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.silu(self.mix(nn.functional.gelu(self.body(self.stem(images)))))
        return self.head(features.mean((2, 3)))


class InPlaceCnn(nn.Module):
    """The VGG trap: an in-place ReLU follows each convolution."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.unused = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def batch(count: int = 3, size: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images whose numbers are the same in every test."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def boxes(*rows: tuple[float, float, float, float], labels: tuple[int, ...]) -> dict[str, Tensor]:
    """One image's detection dict."""
    return {"boxes": torch.tensor(rows).reshape(-1, 4), "labels": torch.tensor(labels)}


TARGETS = [
    boxes((1, 2, 7, 9), labels=(2,)),
    None,
    boxes((0, 0, 5, 5), (6, 6, 12, 11), (3, 1, 9, 6), labels=(0, 3, 0)),
]
