"""Labels and scores of :mod:`explainguide.evaluation.classification`, under their first name."""

from explainguide.evaluation.classification import (
    ClassificationScores,
    check_labels,
    is_multilabel,
)
from explainguide.losses import classification_loss

__all__ = ["ClassificationScores", "check_labels", "classification_loss", "is_multilabel"]
