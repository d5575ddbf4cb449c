"""The mean of a score over images, and who was left out.

States are sums in float64 and counts, so that any split into batches and processes gives the same
result. A score that is NaN says that the map or the mask is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explainguide.errors import constructor
from explainguide.metrics.checks import Undefined, check_undefined
from explainguide.metrics.left_out import PIXELS, LeavesOut, are_finite

__all__ = ["PIXELS", "ImageMean", "mark_broken", "mark_undefined"]


def mark_undefined(scores: Tensor, defined: Tensor, undefined: Undefined) -> Tensor:
    """The scores of the images, with NaN or 0 where they are not defined; broken ones stay NaN."""
    replaced = torch.nan if undefined == "exclude" else 0.0
    return torch.where(defined | scores.isnan(), scores, replaced)


def mark_broken(scores: Tensor, *tensors: Tensor) -> Tensor:
    """The scores ``(N,)`` or ``(N, width)``, NaN where one of the tensors is not finite."""
    sound = are_finite(*tensors)
    return torch.where(sound if scores.ndim == 1 else sound[:, None], scores, torch.nan)


class ImageMean(LeavesOut):
    """Mean of a score over the images on which it is defined; the others are counted apart.

    Args:
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them
            as 0, but for those that are not finite, which are always left out.
        options: The settings that change the sums, in words.
        width: How many scores an image has; None for one.
        kwargs: Handed on to `torchmetrics.Metric`, which refuses what it does not know.
    """

    kind: str = "undefined"  # why an image is undefined, besides "not_finite"

    @constructor
    def __init__(
        self, undefined: Undefined, *, options: str, width: int | None = None, **kwargs: Any
    ) -> None:
        check_undefined(undefined)
        super().__init__(options=options, kinds=(self.kind,), **kwargs)
        self.undefined_rule = undefined
        shape = () if width is None else (width,)
        self._sum = self._state("score sum", torch.zeros(shape, dtype=torch.float64))
        self._dtype_out = torch.get_default_dtype()

    def _add(self, scores: Tensor, defined: Tensor) -> None:
        """Add the scores of a batch, ``(N,)`` or ``(N, width)``, to the states."""
        flat = scores[:, None] if scores.ndim == 1 else scores
        broken = flat.isnan().any(1)
        keep = (defined & ~broken)[:, None]
        total = getattr(self, self._sum)
        # Images are summed in the state's precision, not the map's.
        batch = torch.where(keep, flat, 0.0).sum(0, dtype=total.dtype)
        setattr(self, self._sum, total + batch.reshape(total.shape))
        self._count(broken, ~defined & ~broken)
        self._dtype_out = scores.dtype

    def _mean(self) -> Tensor:
        """The mean score, or means; NaN where no image counts."""
        self._note_undefined()
        broken, undefined = getattr(self, self._undefined)
        count = getattr(self, self._seen) - broken
        if self.undefined_rule == "exclude":
            count = count - undefined
        return (getattr(self, self._sum) / count).to(self._dtype_out)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        rule = self.undefined_rule
        named = "" if rule == "exclude" else f"undefined={rule!r}"
        return ", ".join(filter(None, (self._options, named)))
