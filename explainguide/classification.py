"""Single-label and multi-label classification: the labels, and the scores by torchmetrics."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelStatScores,
)

from explainguide.errors import DataError, ShapeError
from explainguide.losses import classification_loss

__all__ = ["ClassificationScores", "check_labels", "classification_loss"]

_TRUE_POSITIVES, _SUPPORT = 0, 4  # columns of torchmetrics' stat scores


def check_labels(labels: Tensor, logits: Tensor, *, caller: str, class_loss: str = "task") -> None:
    """Refuse labels that do not fit the logits; values are read only on the host.

    Raises:
        ShapeError: For a wrong shape or dtype.
        DataError: For a class that the model has not; for multi-hot labels with a `class_loss`
            that has one answer an image.
    """
    count, classes = logits.shape
    if labels.ndim == 2 and class_loss == "confidence-boosting":
        raise DataError(
            f"{caller}: class_loss is 'confidence-boosting', which knows one class an image, but "
            f"the labels are multi-hot {tuple(labels.shape)}. Use class_loss='task'. One class "
            "index an image is allowed."
        )
    if labels.ndim == 2 and labels.shape == logits.shape and labels.is_floating_point():
        return
    if labels.ndim != 1 or len(labels) != count or labels.is_floating_point():
        raise ShapeError(
            f"{caller}: labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for logits "
            f"of shape {tuple(logits.shape)}. Build the model with num_classes={labels.shape[-1]}? "
            f"One class index an image, or multi-hot floats (N, {classes}), are allowed."
            if labels.ndim == 2
            else f"{caller}: labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for "
            f"{count} images. One class index an image, or multi-hot floats (N, {classes}), are "
            "allowed."
        )
    if labels.device.type == "cpu" and bool(((labels < 0) | (labels >= classes)).any()):
        bad = int(labels[(labels < 0) | (labels >= classes)][0])
        raise DataError(
            f"{caller}: an image has class {bad}, but the model has {classes} logits. Build it "
            f"with num_classes={max(bad + 1, 1)} or more. 0 to {classes - 1} are allowed."
        )


class ClassificationScores:
    """F1 and mAP for multi-hot labels, accuracy overall and of the worst class for class indices.

    Args:
        num_classes: Number of logits.
        multilabel: Whether labels are multi-hot.
        device: Where the logits are.

    Raises:
        DataError: If there is nothing to tell apart.
    """

    def __init__(self, num_classes: int, multilabel: bool, device: torch.device) -> None:
        if num_classes < 2 and not multilabel:
            raise DataError(
                f"evaluate: the model has {num_classes} class, so every answer is right. Add the "
                "images of what it is not. Two classes or more are allowed."
            )
        self.multilabel = multilabel
        self._metrics: dict[str, Metric]
        if multilabel:
            self._metrics = {
                "f1": MultilabelF1Score(num_classes, average="micro"),
                "map": MultilabelAveragePrecision(num_classes, average=None),
                "each": MultilabelStatScores(num_classes, average=None),
            }
        else:
            self._metrics = {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "each": MulticlassStatScores(num_classes, average=None),
            }
        for metric in self._metrics.values():
            metric.to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        # A logit of 0 is a yes. Ranks are kept in float64, where fewer sigmoids round to 1.
        said = (logits >= 0).int() if self.multilabel else logits.argmax(1)
        labels = labels.long()
        for name, metric in self._metrics.items():
            metric.update(logits.double().sigmoid() if name == "map" else said, labels)

    def compute(self) -> dict[str, float]:
        """The scores, in [0, 1]; classes that no image shows are left out of means and minima."""
        each = self._metrics["each"].compute()
        shown = each[:, _SUPPORT] > 0
        if not self.multilabel:
            recall = each[:, _TRUE_POSITIVES].double() / each[:, _SUPPORT].clamp(min=1)
            return {
                "accuracy": float(self._metrics["accuracy"].compute()),
                "worst_class_accuracy": float(recall[shown].min()) if shown.any() else 0.0,
            }
        with warnings.catch_warnings():
            # torchmetrics warns of classes without a positive image, which are left out here.
            warnings.filterwarnings("ignore", message="No positive samples found in target")
            precision = self._metrics["map"].compute()
        return {
            "f1": float(self._metrics["f1"].compute()),
            "map": float(precision[shown].mean()) if shown.any() else 0.0,
        }
