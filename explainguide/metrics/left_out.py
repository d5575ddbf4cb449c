"""What every metric of maps shares: the images that mean nothing to it are counted, by their kind.

A map or a mask that is not finite is of the kind ``"not_finite"`` for every metric. Such an image is
left out whatever the rule for undefined images is, and `compute` warns of how many there are: a
broken map must not vanish in silence, nor spoil the others. Which other kinds there are, each metric
says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explainguide.errors import constructor, method, operation, warn
from explainguide.metrics.score import Score

__all__ = ["PIXELS", "LeavesOut", "are_finite"]

PIXELS = (-2, -1)  # of maps (N, H, W)


def are_finite(*tensors: Tensor) -> Tensor:
    """Whether an image holds neither NaN nor infinity in any of the tensors ``(N, H, W)``, ``(N,)``."""
    # NaN is both the highest and the lowest; much faster than a look at every value.
    ends = [end for tensor in tensors for end in (tensor.amax(PIXELS), tensor.amin(PIXELS))]
    return torch.stack(ends).isfinite().all(0)


class LeavesOut(Score):
    """A metric that counts the images it leaves out.

    Args:
        options: The settings that change the states, in words.
        kinds: Why an image may be undefined, besides ``"not_finite"``.
        kwargs: Handed on to `torchmetrics.Metric`, which refuses what it does not know.
    """

    @constructor
    def __init__(self, *, options: str, kinds: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(options=options, **kwargs)
        self._kinds = ("not_finite", *kinds)
        self._seen = self._state("images", torch.tensor(0))
        zeros = torch.zeros(len(self._kinds), dtype=torch.int64)
        self._undefined = self._state("undefined", zeros)

    def _count(self, *undefined: Tensor) -> None:
        """Add a batch: of each kind which images are of it, ``(N,)``, no image of two."""
        counts = torch.stack(undefined).sum(1)
        setattr(self, self._undefined, getattr(self, self._undefined) + counts)
        setattr(self, self._seen, getattr(self, self._seen) + undefined[0].numel())
        self._noted = None

    def _note_undefined(self) -> None:
        """At `compute`: keep the counts that belong to its value, and warn of broken images."""
        counts = getattr(self, self._undefined)
        self._noted = counts.clone()
        if self._in_forward:
            return  # `compute` warns of all batches
        broken = int(counts[0])
        if broken:
            with operation(f"{type(self).__name__}.compute"):
                warn(
                    f"of {int(getattr(self, self._seen))} images, {broken} have a map or mask that "
                    "is not finite. attribution.isfinite().all((1, 2)) tells which. They are left out, "
                    "and counted in undefined_kinds['not_finite']."
                )

    @property
    @method
    def undefined(self) -> int:
        """Number of images on which the metric was undefined, over all processes, at `compute`."""
        return int(self._of_compute("undefined").sum())

    @property
    @method
    def undefined_kinds(self) -> dict[str, int]:
        """The same by kind: ``{"not_finite": 0, ...}``; their sum is `undefined`."""
        counts = self._of_compute("undefined_kinds").tolist()
        return dict(zip(self._kinds, counts, strict=True))
