"""The losses of an epoch, as numbers."""

from __future__ import annotations

import math

import torch

from explainguide.datasets.batches import Batch
from explainguide.processes import add_up, process

__all__ = ["EpochMeans"]


class EpochMeans:
    """Losses of an epoch, averaged over the images that they belong to."""

    def __init__(self) -> None:
        self.skipped = 0
        self._sums = {"loss": 0.0, "loss_loc": 0.0}
        self._counts = {"loss": 0, "loss_loc": 0}

    def add(self, values: dict[str, float], batch: Batch) -> None:
        """Add the losses of a batch."""
        for name, value in values.items():
            count = len(batch.images) if name == "loss" else batch.annotated
            self._sums[name] += value * count
            self._counts[name] += count

    def reduce(self, device: torch.device) -> None:
        """Add up what the processes of a distributed run have seen."""
        if process()[1] == 1:
            return
        own = [*self._sums.values(), *self._counts.values(), self.skipped]
        both = add_up(own, device).tolist()
        self._sums = dict(zip(self._sums, both[:2], strict=True))
        self._counts = {k: round(c) for k, c in zip(self._counts, both[2:4], strict=True)}
        self.skipped = round(both[4])

    def compute(self) -> dict[str, float]:
        """The means; NaN for a loss that never occurred."""
        means = {
            k: s / self._counts[k] if self._counts[k] else math.nan for k, s in self._sums.items()
        }
        return {**means, "skipped": self.skipped}

    def shown(self, epg: float) -> dict[str, str]:
        """For the progress bar."""
        values = {**self.compute(), "EPG": epg}
        del values["skipped"]
        return {k: f"{v:.3f}" for k, v in values.items() if not math.isnan(v)}
