"""What the metrics share: facts, states with names of their own, and numbers that come with a value."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from explainguide.errors import GuidanceError, constructor

__all__ = ["Score"]


class Score(Metric):
    """A metric in [0, 1], higher is better, with further numbers that belong to its value.

    Args:
        options: The settings that change the states, in words.
        kwargs: Handed on to `torchmetrics.Metric`, which refuses what it does not know.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    @constructor
    def __init__(self, *, options: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._options = options
        self._noted: Any = None  # at `compute`, what belongs to its value
        self._in_forward = False  # where the value is of a batch alone

    def _state(self, name: str, default: Tensor, reduce: Literal["sum"] | None = "sum") -> str:
        """Add a state, and say what it is called."""
        # A MetricCollection takes two metrics for one, and updates only the first of them from then
        # on, where their states have equal names and equal values after one batch. Two thresholds
        # both score 0 on a first batch easily, so the names hold what tells the metrics apart.
        name = f"{name} of {type(self).__name__}({self._options})"
        self.add_state(name, default, dist_reduce_fx=reduce)
        return name

    def _of_compute(self, name: str) -> Any:
        """What `compute` noted, for the property of that name."""
        if self._noted is None:
            raise GuidanceError(
                "compute() has not run since the last update. Call compute() first, on "
                f"every process. {name} belongs to the value that compute() returned."
            )
        return self._noted

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the metric of that batch alone."""
        self._in_forward = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._in_forward = False
            self._noted = None  # it was of that batch alone

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._noted = None

    def set_dtype(self, dst_type: str | torch.dtype) -> Score:
        """Change the dtype of the sums; counts stay whole numbers, which a float may not hold."""
        defaults = {n: d for n, d in self._defaults.items() if isinstance(d, Tensor)}
        whole = {name: d for name, d in defaults.items() if not d.is_floating_point()}
        super().set_dtype(dst_type)
        for name, default in whole.items():
            setattr(self, name, getattr(self, name).to(default.dtype))
            self._defaults[name] = default
        return self

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return self._options
