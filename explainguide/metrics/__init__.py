"""How well attributions fall where they should, and how to choose among models by it.

Classes accumulate over a data set and synchronise over processes (torchmetrics); the functions of
`explainguide.metrics.functional` give one score an image. F1 and mean average precision are
torchmetrics' own.
"""

from explainguide.metrics.agreement import SegmentationAgreement
from explainguide.metrics.functional import (
    Agreement,
    energy_pointing_game,
    localization_iou,
    on_object_energy,
    pointing_game,
    segmentation_agreement,
)
from explainguide.metrics.localization import (
    EnergyPointingGame,
    LocalizationIoU,
    OnObjectEnergy,
    PointingGame,
)
from explainguide.metrics.pareto import pareto_front, representative

__all__ = [
    "Agreement",
    "EnergyPointingGame",
    "LocalizationIoU",
    "OnObjectEnergy",
    "PointingGame",
    "SegmentationAgreement",
    "energy_pointing_game",
    "localization_iou",
    "on_object_energy",
    "pareto_front",
    "pointing_game",
    "representative",
    "segmentation_agreement",
]
