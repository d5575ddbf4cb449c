"""What the images of a data set are called, for messages, reports and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from explainguide.annotations import LimitedAnnotations

__all__ = ["item_names"]


def item_names(data: Any) -> list[str]:
    """A name for each item, no two alike: the image's path below the folder of all, or ``"item 12"``.

    Known are data sets with an attribute ``paths``, also inside `Subset`, `ConcatDataset` and
    `LimitedAnnotations`.
    """
    paths = _paths(data)
    if paths is None or len(set(paths)) != len(data):
        width = len(str(max(len(data) - 1, 0)))
        return [f"item {index:0{width}d}" for index in range(len(data))]
    folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [Path(os.path.relpath(path, folder)).as_posix() for path in paths]


def _paths(data: Any) -> list[Path] | None:
    if isinstance(data, LimitedAnnotations):
        return _paths(data.dataset)
    if isinstance(data, Subset):
        paths = _paths(data.dataset)
        return None if paths is None else [paths[index] for index in data.indices]
    if isinstance(data, ConcatDataset):
        parts = [_paths(part) for part in data.datasets]
        return None if None in parts else [path for part in parts for path in part or ()]
    paths = getattr(data, "paths", None)
    if not isinstance(paths, list | tuple) or len(paths) != len(data):
        return None
    return [Path(path).absolute() for path in paths]
