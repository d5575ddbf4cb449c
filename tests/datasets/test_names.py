"""Names of items: paths below one folder, through the wrappers of torch, or numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import ConcatDataset, Dataset, Subset

from explainguide.annotations import LimitedAnnotations
from explainguide.datasets.names import item_names


class Files(Dataset):
    def __init__(self, *paths: str) -> None:
        self.paths = [Path(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]


PHOTOS = Files("photos/left/0.png", "photos/left/1.png", "photos/right/0.png")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (PHOTOS, ["left/0.png", "left/1.png", "right/0.png"]),
        (Subset(PHOTOS, [1, 0]), ["1.png", "0.png"]),
        (LimitedAnnotations(PHOTOS, 0.5), ["left/0.png", "left/1.png", "right/0.png"]),
        (ConcatDataset([PHOTOS, Files("more/2.png")]), None),
        (Files("a/0.png", "a/0.png"), ["item 0", "item 1"]),
        (list(range(11)), [f"item {index:02d}" for index in range(11)]),
        ([], []),
    ],
)
def test_names_of_items(data: Dataset, names: list[str] | None) -> None:
    expected = names or [
        *("photos/left/0.png", "photos/left/1.png", "photos/right/0.png", "more/2.png")
    ]
    assert item_names(data) == ([] if not len(data) else expected)  # type: ignore[arg-type]
