"""From a data set to batches on a device: the order of an epoch, and what could not be read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from explainguide.annotations import Annotations, LimitedAnnotations, collate
from explainguide.errors import DataError, OptionError, first_line
from explainguide.host import host_array, send
from explainguide.processes import process

__all__ = [
    "Batch",
    "batches",
    "check_data",
    "check_device",
    "count_annotated",
    "epoch_order",
    "seed_all",
    "stream_seed",
]


class Batch(NamedTuple):
    """A batch, and facts that would cost a synchronisation on the device.

    Attributes:
        images: ``(N, 3, H, W)``.
        labels: ``(N,)`` int64, or ``(N, K)`` float32.
        annotations: Of all N images.
        segmented: ``(N,)`` bool, on the host: which images came with masks.
        annotated: How many images have an annotation that covers a pixel.
        indices: ``(N,)`` int64, on the host: which items of the data set the images are.
        skipped: How many items could not be read; they are not among the N.
        groups: ``(N,)`` int64; None where items have no group.
    """

    images: Tensor
    labels: Tensor
    annotations: Annotations
    segmented: Tensor
    annotated: int
    indices: Tensor
    skipped: int
    groups: Tensor | None = None

    @property
    def readable(self) -> bool:
        """Whether there is an image in it."""
        return len(self.images) > 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._replace(
            images=send(self.images, device),
            labels=send(self.labels, device),
            annotations=self.annotations.to(device, non_blocking=True),
            groups=None if self.groups is None else send(self.groups, device),
        )


class _Numbered(Dataset[tuple[int, Any]]):
    """The items of a data set with their indices, which tell whose image could be read."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.data[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        # A data set may read a batch at once, and the loader asks it for that by this name.
        read = getattr(self.data, "__getitems__", None)
        items = [self.data[i] for i in indices] if read is None else read(indices)
        return list(zip(indices, items, strict=True))


def _collate(numbered: Sequence[tuple[int, Any]]) -> Batch:
    readable = [item for _, item in numbered if item is not None]
    indices = torch.tensor([i for i, item in numbered if item is not None], dtype=torch.int64)
    skipped = len(numbered) - len(readable)
    if not readable:
        nothing = torch.zeros(0)
        annotations = Annotations(torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.int64))
        return Batch(nothing, nothing, annotations, nothing.bool(), 0, indices, skipped)
    images, labels, annotations, *groups = collate(readable)
    segmented = [item[2] is not None and "masks" in item[2] for item in readable]
    size = (int(images.shape[-2]), int(images.shape[-1]))
    annotated = int(host_array(_covering(annotations, size)).any(1).sum())
    known = torch.tensor(segmented)
    return Batch(images, labels, annotations, known, annotated, indices, skipped, *groups)


def _covering(annotations: Annotations, size: tuple[int, int]) -> Tensor:
    """Which objects cover a pixel, ``(N, M)`` bool: the others are not guided by."""
    limit = annotations.boxes.new_tensor([size[1], size[0]])
    low = annotations.boxes[..., :2].floor().clamp(min=0)
    high = annotations.boxes[..., 2:].ceil().minimum(limit)
    covers = (low < high).all(-1)
    if annotations.masks is not None:
        covers |= annotations.masks.flatten(2).any(2)
    return covers & (annotations.labels >= 0)


def batches(
    data: Dataset[Any],
    order: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device,
) -> Iterator[Batch]:
    """Go through items in an order, once.

    A batch of which no item can be read has no images; its `skipped` still counts.

    Args:
        data: Items ``(image, labels, annotation)`` or ``(image, labels, annotation, group)``, or None
            for an item that cannot be read.
        order: Indices.
        batch_size: Items a batch; the last batch may hold fewer.
        workers: Processes that load; 0 loads in this one. They start anew in every epoch, so that
            what they draw depends on the seed of the epoch alone.
        device: Where the batches go.
    """
    loader = DataLoader(
        _Numbered(data),
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        yield batch.to(device)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """This process's share of an epoch's order, which seed and epoch alone decide.

    The n-th batches of W processes are together the n-th batch of one process with W times the batch
    size. Where it does not come out even, the last processes get an item less.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch, 0))
    order = torch.randperm(count, generator=generator).tolist()
    rank, world = process()
    return order[rank::world]


def stream_seed(seed: int, epoch: int, purpose: int) -> int:
    """A seed for one purpose in one epoch, unrelated to those of the others."""
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's random numbers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_data(data: Any, *, name: str) -> int:
    """The number of items.

    Raises:
        OptionError: If it is not a data set with a length.
        DataError: If it is empty.
    """
    if isinstance(data, IterableDataset) and not hasattr(data, "__len__"):
        raise OptionError(
            f"{name} is a stream ({type(data).__name__}), without length or order. Guide a loop of "
            "your own with `collate` and `loss_loc`. Items (image, labels, annotation) by index are "
            "allowed."
        )
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, Tensor):
        raise OptionError(
            f"{name} is a {type(data).__name__}. Pass the data set, not its loader. "
            "Items (image, labels, annotation) by index are allowed."
        )
    if len(data) == 0:
        raise DataError(f"{name} is empty. Check its split. At least one item is needed.")
    return len(data)


def check_device(device: torch.device | str) -> torch.device:
    """The device of a name, where this machine has it.

    Raises:
        OptionError: If there is no such device.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, AttributeError, ImportError, RuntimeError, TypeError) as error:
        names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise OptionError(
            f"device is {device!r}, which cannot be used ({first_line(error)}). Use 'cpu'. A device "
            f"of this machine ({', '.join(map(repr, names))}) is allowed."
        ) from error
    return found


def count_annotated(data: Any) -> int | None:
    """How many items have an annotation, where the data set says so without reading them.

    Known are data sets with an attribute ``annotated``, ``(N,)`` bool, also inside `Subset`,
    `ConcatDataset` and `LimitedAnnotations`.
    """
    flags = _annotated(data)
    return None if flags is None else int(flags.sum())


def _annotated(data: Any) -> Tensor | None:
    if isinstance(data, ConcatDataset):
        parts = [_annotated(part) for part in data.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(data, Subset | LimitedAnnotations):
        inner = _annotated(data.dataset)
        if isinstance(data, Subset):
            return None if inner is None else inner[torch.as_tensor(data.indices).long()]
        if not data.kept.any():
            return data.kept
        return None if inner is None else inner & data.kept
    flags = getattr(data, "annotated", None)
    if isinstance(flags, Tensor) and flags.shape == (len(data),):
        return flags.bool()
    return None
