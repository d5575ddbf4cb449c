"""Many trainings of one question: which settings, on which front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide.studies.run_sweep import sweep
    from explainguide.studies.search import LogRange
    from explainguide.studies.sweep_points import SweepResult

__all__ = ["LogRange", "SweepResult", "sweep"]

# The command line reads what can be searched before it imports torch.
__getattr__, __dir__ = on_demand(
    __name__, {"LogRange": "search", "SweepResult": "sweep_points", "sweep": "run_sweep"}
)
