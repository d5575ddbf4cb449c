"""The items of a data set as the cells of grids: which are confident, and their grids one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from explainguide.annotations import collate
from explainguide.errors import DataError
from explainguide.evaluation.classification import check_labels
from explainguide.evaluation.grids import Probability, join_cells, label_confidence
from explainguide.hooks.logits import check_logits
from explainguide.hooks.reading import Reading
from explainguide.metrics.grid import CellOrder
from explainguide.processes import add_up, process

__all__ = ["GridItems", "Looked"]


class Looked(NamedTuple):
    """What one look at every item of a data set showed, on the host.

    Attributes:
        label: Its class, ``(M,)`` int64.
        confidence: The probability of it where the item is classified right, else 0, ``(M,)``.
        read: Whether the item could be read, ``(M,)`` bool.
    """

    label: Tensor
    confidence: Tensor
    read: Tensor


class _Numbered(Dataset[Any]):
    """Items with their number: a batch does not say which of its items could not be read."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.data[index]


def _readable(items: Sequence[tuple[int, Any]]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Numbers, images and labels of the items that could be read; None where there is none."""
    kept = [(index, item) for index, item in items if item is not None]
    if not kept:
        return None
    images, labels, *_ = collate([item for _, item in kept])
    return torch.tensor([index for index, _ in kept]), images, labels


class GridItems(NamedTuple):
    """Items, and how they are loaded.

    Attributes:
        data: ``(image, labels, annotation)`` by index; None for one that could not be read.
        batch_size: Images a forward pass.
        workers: Processes that load.
        device: Where images and labels go.
        progress: Whether to show a bar.
    """

    data: Any
    batch_size: int
    workers: int
    device: torch.device
    progress: bool

    def _batches(self, order: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Numbers on the host, images and labels on the device, in an order."""
        loader = DataLoader(
            _Numbered(self.data),
            batch_size=size,
            sampler=order,
            num_workers=self.workers,
            collate_fn=_readable,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            if batch is not None:
                index, images, labels = batch
                yield index, images.to(self.device), labels.to(self.device)

    def look(self, model: nn.Module, reading: Reading, by: Probability) -> Looked:
        """Classify this process's share of the items; `share` tells the others.

        Raises:
            ShapeError, DataError: If labels and model do not fit.
        """
        rank, world = process()
        share, seen = range(rank, len(self.data), world), []
        steps = -(-len(share) // self.batch_size)
        bar = tqdm(total=steps, desc="confident", disable=not self.progress, leave=False)
        with torch.no_grad(), bar:
            for index, images, labels in self._batches(share, self.batch_size):
                logits = check_logits(model(images), reading=reading, images=len(images))
                check_labels(labels, logits)
                seen.append((index, *label_confidence(logits, labels, by=by)))
                bar.update()
        label, sure, read = (torch.zeros(len(self.data)) for _ in range(3))
        for index, names, values in seen:
            label[index], sure[index], read[index] = names.float().cpu(), values.cpu(), 1.0
        return Looked(label.long(), sure, read.bool())

    def share(self, looked: Looked) -> Looked:
        """What all processes have seen, each of its own items."""
        label, sure, read = (add_up(part.tolist(), self.device).cpu() for part in looked)
        return Looked(label.long(), sure, read.bool())

    def grids(
        self, source: Tensor, rows: range, *, size: tuple[int, int] | None, order: CellOrder
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Rows of ``source``, ``(G, n * n)`` numbers of items, and their grid images, a few at a time.

        Raises:
            DataError: If an item cannot be read again.
        """
        cells, done = source.shape[1], 0
        flat = source[list(rows)].flatten().tolist()
        size_of_batch = max(self.batch_size // cells, 1) * cells
        bar = tqdm(total=len(rows), desc="grids", disable=not self.progress, leave=False)
        with bar:
            for index, images, _ in self._batches(flat, size_of_batch):
                asked = flat[done * cells :][:size_of_batch]
                _check_read_again(asked, index.tolist())
                if size is not None and images.shape[-2:] != size:
                    images = F.interpolate(
                        images, size, mode="bilinear", align_corners=False, antialias=True
                    )
                now = list(rows[done:][: len(images) // cells])
                done += len(now)
                yield now, join_cells(images.unflatten(0, (-1, cells)), order=order)
                bar.update(len(now))
        _check_read_again(flat[done * cells :], [])


def _check_read_again(asked: Sequence[int], got: Sequence[int]) -> None:
    gone = set(asked) - set(got)
    if gone:
        raise DataError(
            f"item {min(gone)} was read at first and cannot be read again. See the warnings for its "
            "name. Items that stay as they are are needed."
        )
