"""The reference training: classification and the localization loss together, on Accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide.training.config import TrainConfig
    from explainguide.training.loop import train
    from explainguide.training.run_folder import History

__all__ = ["History", "TrainConfig", "train"]

# The settings of a training are read where nothing is trained: by recipes and by the command line.
__getattr__, __dir__ = on_demand(
    __name__, {"History": "run_folder", "TrainConfig": "config", "train": "loop"}
)
