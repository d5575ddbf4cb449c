"""The metrics as plain functions, handed on: maps and masks in, one score an image out."""

from explainguide.metrics.agreement import Agreement, segmentation_agreement
from explainguide.metrics.energy import energy_pointing_game, on_object_energy
from explainguide.metrics.iou import localization_iou
from explainguide.metrics.pointing import pointing_game

__all__ = [
    "Agreement",
    "energy_pointing_game",
    "localization_iou",
    "on_object_energy",
    "pointing_game",
    "segmentation_agreement",
]
