"""How well attributions fall where they should, and how to choose among models by it.

Functions give one score an image; the class of the same name accumulates over a data set and
synchronises over processes (torchmetrics). `map_metric` enters a class into the table of those that
`explainguide.evaluation.evaluate` reports. F1 and mean average precision are torchmetrics' own.

All metrics of maps share one convention. Attributions are signed and of any scale; only the
positive part counts, except in `segmentation_agreement`, which measures a map against its own mean,
and `pixel_average_precision`, which ranks all pixels. An image on which the metric means nothing
(each function says which) scores NaN with ``undefined="exclude"``, so that ``scores.nanmean()`` leaves
it out, and 0 with ``undefined="zero"``, which is how the published tables average. An image whose map
or mask holds NaN or infinity scores NaN under both; the classes leave it out under both, count it in
``undefined_kinds["not_finite"]``, and warn of it at ``compute()``. Nothing here synchronises with the
host before ``compute()``.
"""

from explainguide.metrics.aggregate import Aggregate, aggregate_maps
from explainguide.metrics.agreement import (
    Agreement,
    SegmentationAgreement,
    segmentation_agreement,
)
from explainguide.metrics.curves import (
    DeletionCurve,
    InsertionCurve,
    deletion_curve,
    insertion_curve,
)
from explainguide.metrics.energy import (
    EnergyPointingGame,
    OnObjectEnergy,
    energy_pointing_game,
    on_object_energy,
)
from explainguide.metrics.fidelity import Infidelity, infidelity
from explainguide.metrics.grid import GridPointingGame, grid_pointing_game
from explainguide.metrics.groups import GroupAccuracy, WorstGroupAccuracy, group_accuracy
from explainguide.metrics.iou import LocalizationIoU, localization_iou
from explainguide.metrics.iou_thresholds import Curve, IoUCurve, iou_curve
from explainguide.metrics.pareto import pareto_front, representative
from explainguide.metrics.perturbation import PixelPerturbation, pixel_perturbation
from explainguide.metrics.perturbed import perturb
from explainguide.metrics.pixel_precision import PixelAveragePrecision, pixel_average_precision
from explainguide.metrics.pointing import PointingGame, pointing_game
from explainguide.metrics.robustness import Robustness, drop_pixels, replace_background
from explainguide.metrics.stability import SensitivityMax, sensitivity_max
from explainguide.metrics.table import MAP_METRICS, MapMetric, map_metric

__all__ = [
    "MAP_METRICS",
    "Aggregate",
    "Agreement",
    "Curve",
    "DeletionCurve",
    "EnergyPointingGame",
    "GridPointingGame",
    "GroupAccuracy",
    "Infidelity",
    "InsertionCurve",
    "IoUCurve",
    "LocalizationIoU",
    "MapMetric",
    "OnObjectEnergy",
    "PixelAveragePrecision",
    "PixelPerturbation",
    "PointingGame",
    "Robustness",
    "SegmentationAgreement",
    "SensitivityMax",
    "WorstGroupAccuracy",
    "aggregate_maps",
    "deletion_curve",
    "drop_pixels",
    "energy_pointing_game",
    "grid_pointing_game",
    "group_accuracy",
    "infidelity",
    "insertion_curve",
    "iou_curve",
    "localization_iou",
    "map_metric",
    "on_object_energy",
    "pareto_front",
    "perturb",
    "pixel_average_precision",
    "pixel_perturbation",
    "pointing_game",
    "replace_background",
    "representative",
    "segmentation_agreement",
    "sensitivity_max",
]
