"""The losses of an epoch: kept on the device, read together, averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from explainguide.datasets.batches import Batch
from explainguide.errors import GuidanceError
from explainguide.processes import Hosts, anywhere

__all__ = ["EpochMeans"]

_WORDS = {"loss": "the class loss", "loss_loc": "loss_loc"}


class _Kept(NamedTuple):
    """Values that nobody has read yet.

    Attributes:
        where: Epoch and step.
        images: For each loss among the values how many images it is of; empty for a gradient.
        maps: The layers whose maps are or are not finite, which the values after the losses say.
        values: ``(len(images) + len(maps),)`` float32 on the device, or ``(1,)``, a gradient's norm.
    """

    where: str
    images: dict[str, int]
    maps: tuple[str, ...]
    values: Tensor


class EpochMeans:
    """Losses of an epoch, averaged over the images that they belong to.

    Nothing of a step is read from the device before `read`.

    Args:
        mixed_precision: Of the training, for what is said of a loss that is not finite.
        hosts: How the processes tell one another of it.
    """

    def __init__(self, mixed_precision: str = "no", hosts: Hosts | None = None) -> None:
        self.mixed_precision = mixed_precision
        self._hosts = hosts or Hosts()
        self.skipped = 0
        self.steps = 0  # that nobody has read yet
        self._kept: list[_Kept] = []
        self._bad: list[Tensor] = []  # of this step, which values are not finite
        self._sums = {"loss": 0.0, "loss_loc": 0.0}
        self._counts = {"loss": 0, "loss_loc": 0}

    def add(
        self, where: str, losses: Mapping[str, Tensor], batch: Batch, maps: Mapping[str, Tensor]
    ) -> None:
        """Keep the losses of a batch.

        Args:
            where: Epoch and step, for an error.
            losses: Scalars: "loss", and "loss_loc" where it is guided.
            batch: What they are of.
            maps: Those of the guided layers.
        """
        images = {name: len(batch.images) if name == "loss" else batch.annotated for name in losses}
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._bad.append(~values.isfinite())
        finite = [layer_map.isfinite().all().float() for layer_map in maps.values()]
        values = torch.cat([values, torch.stack(finite)]) if finite else values
        self._kept.append(_Kept(where, images, tuple(maps), values))

    def end_step(self, where: str, norm: Tensor | None, device: torch.device) -> Tensor:
        """Whether the step must not reach the weights, a scalar bool on the device.

        Args:
            where: Epoch and step.
            norm: Of its gradient, ``(1,)``, the same in every process; None where that may be
                anything.
            device: Where the losses are. A process may have none in a step that others take.
        """
        if norm is not None:
            self._kept.append(_Kept(where, {}, (), norm))
            self._bad.append(~norm.isfinite())
        self.steps += 1
        bad = torch.cat(self._bad) if self._bad else torch.zeros(1, dtype=torch.bool, device=device)
        self._bad = []
        return anywhere(bad.any())

    def read(self) -> None:
        """Read whatever was kept: one wait for the device.

        Every process must call it after the same step.

        Raises:
            GuidanceError: If it is not finite; of the first such step of this process, or where the
                losses of another process were not finite by then.
        """
        error, alone = self._take()
        self._hosts.agree(error if alone else None)
        if error is not None:
            raise error

    def _take(self) -> tuple[GuidanceError | None, bool]:
        """Read and average; what is wrong, and whether it is with a loss, which one process sees.

        A gradient is that of all processes, and where it is not finite all of them see it.
        """
        kept, self._kept, self._bad, self.steps = self._kept, [], [], 0
        if not kept:
            return None, False
        numbers = iter(torch.cat([entry.values for entry in kept]).tolist())
        for where, images, maps, _ in kept:
            if not images and not math.isfinite(size := next(numbers)):
                problem = f"the losses are finite, but their gradient is {size}"
                return _not_finite(where, problem, self.mixed_precision), False
            losses = {name: next(numbers) for name in images}
            broken = [name for name in maps if not next(numbers)]
            if wrong := _problem(losses, broken):
                return _not_finite(where, wrong, self.mixed_precision), True
            for name, value in losses.items():
                self._sums[name] += value * images[name]
                self._counts[name] += images[name]
        return None, False

    def reduce(self) -> None:
        """Add up what the processes of a distributed run have seen."""
        both = self._hosts.agree(None, [*self._sums.values(), *self._counts.values(), self.skipped])
        self._sums = dict(zip(self._sums, both[:2], strict=True))
        self._counts = {k: round(c) for k, c in zip(self._counts, both[2:4], strict=True)}
        self.skipped = round(both[4])

    def compute(self) -> dict[str, float]:
        """The means of what was read; NaN for a loss that never occurred."""
        means = {
            k: s / self._counts[k] if self._counts[k] else math.nan for k, s in self._sums.items()
        }
        return {**means, "skipped": self.skipped}

    def shown(self, epg: float) -> dict[str, str]:
        """For the progress bar."""
        values = {**self.compute(), "EPG": epg}
        del values["skipped"]
        return {k: f"{v:.3f}" for k, v in values.items() if not math.isnan(v)}


def _problem(losses: dict[str, float], broken: list[str]) -> str:
    """Which losses are not finite, with the layers whose maps are not either; "" where all are."""
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if not bad:
        return ""
    problem = " and ".join(f"{_WORDS[name]} is {value}" for name, value in bad.items())
    if "loss_loc" in bad and broken:
        problem += f" (the map of layer {', '.join(map(repr, broken))} is not finite)"
    return problem


def _not_finite(where: str, problem: str, mixed_precision: str) -> GuidanceError:
    """What stops a training: something of a step is NaN or infinite."""
    fix = "Lower lr or lam, or set clip_grad_norm."
    if mixed_precision == "fp16":
        fix = (
            "Use mixed_precision='bf16', or 'no': float16 holds no number above 65504, which logits "
            "and activations can exceed. Otherwise lower lr or lam, or set clip_grad_norm."
        )
    elif mixed_precision == "bf16":
        fix = "Lower lr or lam, set clip_grad_norm, or use mixed_precision='no'."
    return GuidanceError(
        f"{where}: {problem}. {fix} The gradient of this step did not reach the weights; checkpoints "
        "of earlier epochs are unchanged."
    )
