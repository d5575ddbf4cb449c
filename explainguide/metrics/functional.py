"""The metrics as plain functions, handed on: maps and masks in, scores out."""

from explainguide.metrics.agreement import Agreement, segmentation_agreement
from explainguide.metrics.energy import energy_pointing_game, on_object_energy
from explainguide.metrics.groups import GroupAccuracy, group_accuracy
from explainguide.metrics.iou import localization_iou
from explainguide.metrics.iou_thresholds import Curve, iou_curve
from explainguide.metrics.pixel_precision import pixel_average_precision
from explainguide.metrics.pointing import pointing_game

__all__ = [
    "Agreement",
    "Curve",
    "GroupAccuracy",
    "energy_pointing_game",
    "group_accuracy",
    "iou_curve",
    "localization_iou",
    "on_object_energy",
    "pixel_average_precision",
    "pointing_game",
    "segmentation_agreement",
]
