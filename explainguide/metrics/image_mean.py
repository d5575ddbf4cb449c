"""What the metrics of maps share: the mean of a score over images, and who was left out.

States are sums in float64 and counts, so that any split into batches and processes gives the same
result. A map that holds NaN, or whose maximum is infinite where that matters, is *defined* with the
score NaN: a broken map must spoil the mean rather than disappear among the images without evidence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from explainguide.errors import GuidanceError, constructor, method
from explainguide.metrics.checks import Undefined, check_undefined

__all__ = ["PIXELS", "ImageMean", "mark_undefined"]

PIXELS = (-2, -1)  # of maps (N, H, W)


def mark_undefined(scores: Tensor, defined: Tensor, undefined: Undefined) -> Tensor:
    """The scores of the images, with NaN or 0 where they are not defined."""
    return torch.where(defined, scores, torch.nan if undefined == "exclude" else 0.0)


class ImageMean(Metric):
    """Mean of a score over the images on which it is defined; the others are counted apart.

    Args:
        undefined: ``"exclude"`` leaves undefined images out of the mean; ``"zero"`` counts them
            as 0.
        options: The settings that change the sums, in words.
        width: How many scores an image has; None for one.
        kwargs: Handed on to `torchmetrics.Metric`, which refuses what it does not know.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    @constructor
    def __init__(
        self, undefined: Undefined, *, options: str, width: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_undefined(undefined)
        self.undefined_rule = undefined
        # A MetricCollection takes two metrics for one, and updates only the first of them from then
        # on, where their states have equal names and equal values after one batch. Two thresholds
        # both score 0 on a first batch easily, so the names hold what tells the metrics apart.
        self._options = options
        tag = f"{type(self).__name__}({options})"
        self._sum, self._defined, self._undefined = (
            f"{state} of {tag}" for state in ("score sum", "defined", "undefined")
        )
        shape = () if width is None else (width,)
        self.add_state(self._sum, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(self._defined, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state(self._undefined, torch.tensor(0), dist_reduce_fx="sum")
        self._dtype_out = torch.get_default_dtype()
        self._undefined_at_compute: Tensor | None = None

    def _add(self, scores: Tensor, defined: Tensor) -> None:
        """Add the scores of a batch, ``(N,)`` or ``(N, width)``, to the states."""
        keep = defined if scores.ndim == 1 else defined[:, None]
        total, count = getattr(self, self._sum), defined.sum()
        # Images are summed in the state's precision, not the map's.
        batch = torch.where(keep, scores, 0.0).sum(0, dtype=total.dtype)
        setattr(self, self._sum, total + batch)
        setattr(self, self._defined, getattr(self, self._defined) + count)
        setattr(self, self._undefined, getattr(self, self._undefined) + defined.numel() - count)
        self._dtype_out = scores.dtype
        self._undefined_at_compute = None

    def _mean(self) -> Tensor:
        """The mean score, or means; NaN where no image counts."""
        defined, undefined = getattr(self, self._defined), getattr(self, self._undefined)
        self._undefined_at_compute = undefined.clone()
        count = defined + undefined if self.undefined_rule == "zero" else defined
        return (getattr(self, self._sum) / count).to(self._dtype_out)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        rule = self.undefined_rule
        named = "" if rule == "exclude" else f"undefined={rule!r}"
        return ", ".join(filter(None, (self._options, named)))

    @property
    @method
    def undefined(self) -> int:
        """Number of images on which the metric was undefined, over all processes, at `compute`."""
        if self._undefined_at_compute is None:
            raise self._too_early("undefined")
        return int(self._undefined_at_compute)

    def _too_early(self, name: str) -> GuidanceError:
        return GuidanceError(
            "compute() has not run since the last update. Call compute() first, on "
            f"every process. {name} belongs to the value that compute() returned."
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the metric of that batch alone."""
        value = super().forward(*args, **kwargs)
        self._undefined_at_compute = None  # it counted that batch alone
        return value

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._undefined_at_compute = None
