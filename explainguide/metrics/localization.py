"""The metrics of maps, each with a file of its own now, under their first name."""

from explainguide.metrics.energy import EnergyPointingGame, OnObjectEnergy
from explainguide.metrics.iou import LocalizationIoU
from explainguide.metrics.pointing import PointingGame

__all__ = ["EnergyPointingGame", "LocalizationIoU", "OnObjectEnergy", "PointingGame"]
