r"""Localization losses: how far an attribution map is from where it should be.

Every loss is a function ``(attribution (N, H, W), mask (N, H, W), *, ...) -> (N,)`` of signed,
unnormalised maps at the mask's resolution. Below, :math:`A` is the map of one image,
:math:`A^+ = \max(A, 0)`, :math:`M` the mask, and sums and means run over pixels.

`classification_loss` and `confidence_boosting` are the other part of the objective.
"""

from __future__ import annotations

from explainguide.losses.classification import (
    CLASS_LOSSES,
    classification_loss,
    confidence_boosting,
)
from explainguide.losses.energy import energy_loss
from explainguide.losses.gradmask import gradmask_loss
from explainguide.losses.normalization import keep_positive, positive_part, scale_by_max
from explainguide.losses.normalized import l1_loss, ppce_loss, rrr_loss
from explainguide.losses.reff import reff_loss
from explainguide.losses.relevance import relevance_loss, scale_to_unit
from explainguide.losses.table import LOSSES, Loss, localization_loss

__all__ = [
    "CLASS_LOSSES",
    "LOSSES",
    "Loss",
    "classification_loss",
    "confidence_boosting",
    "energy_loss",
    "gradmask_loss",
    "keep_positive",
    "l1_loss",
    "localization_loss",
    "positive_part",
    "ppce_loss",
    "reff_loss",
    "relevance_loss",
    "rrr_loss",
    "scale_by_max",
    "scale_to_unit",
]
