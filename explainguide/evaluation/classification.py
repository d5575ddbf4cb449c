"""Single-label, multi-label and binary classification: the labels, and the scores by torchmetrics."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryStatScores,
    MulticlassAccuracy,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelStatScores,
)

from explainguide.errors import DataError, ShapeError
from explainguide.host import host_array

__all__ = ["ClassificationScores", "check_labels", "is_multilabel"]

_TRUE_POSITIVES, _SUPPORT = 0, 4  # columns of torchmetrics' stat scores


def is_multilabel(labels: Tensor) -> bool:
    """Whether labels are multi-hot ``(N, K)`` floats, and not one class an image."""
    return labels.ndim == 2 and labels.is_floating_point()


def check_labels(labels: Tensor, logits: Tensor, *, class_loss: str = "task") -> None:
    """Refuse labels that do not fit the logits; values are read only on the host.

    Args:
        labels: ``(N,)`` integers, or ``(N, K)`` floats; for one logit an image 0 or 1, of any type,
            ``(N,)`` or ``(N, 1)``.
        logits: ``(N, K)``.
        class_loss: Of the training.

    Raises:
        ShapeError: For a wrong shape or dtype.
        DataError: For a class that the model has not; for multi-hot labels with a `class_loss`
            that has one answer an image.
    """
    count, classes = logits.shape
    if classes == 1:
        _check_binary(labels, count)
        return
    if labels.ndim == 2 and class_loss == "confidence-boosting":
        raise DataError(
            f"class_loss is 'confidence-boosting', which knows one class an image, but "
            f"the labels are multi-hot {tuple(labels.shape)}. Use class_loss='task'. One class "
            "index an image is allowed."
        )
    if labels.ndim == 2 and labels.shape == logits.shape and labels.is_floating_point():
        return
    if labels.ndim != 1 or len(labels) != count or labels.is_floating_point():
        raise ShapeError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for logits "
            f"of shape {tuple(logits.shape)}. Build the model with num_classes={labels.shape[-1]}? "
            f"One class index an image, or multi-hot floats (N, {classes}), are allowed."
            if labels.ndim == 2
            else f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for "
            f"{count} images. One class index an image, or multi-hot floats (N, {classes}), are "
            "allowed."
        )
    if labels.device.type == "cpu" and host_array((labels < 0) | (labels >= classes)).any():
        bad = int(labels[(labels < 0) | (labels >= classes)][0])
        raise DataError(
            f"an image has class {bad}, but the model has {classes} logits. Build it "
            f"with num_classes={max(bad + 1, 1)} or more. 0 to {classes - 1} are allowed."
        )


def _check_binary(labels: Tensor, count: int) -> None:
    """Labels of a classifier with one logit, of class 1 against class 0."""
    if tuple(labels.shape) not in ((count,), (count, 1)):
        raise ShapeError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {count} "
            "images and a model with one logit. Give 0 or 1 an image, or build the model with as many "
            "logits as there are classes. (N,) and (N, 1) are allowed."
        )
    if labels.device.type == "cpu" and host_array((labels < 0) | (labels > 1)).any():
        bad = labels[(labels < 0) | (labels > 1)].flatten()[0].item()
        raise DataError(
            f"an image has class {bad:g}, but the model has one logit, which tells two "
            "classes apart. Build it with as many logits as there are classes. 0 and 1 are allowed."
        )


class ClassificationScores:
    """F1 and mAP for multi-hot labels, accuracy overall and of the worst class for class indices.

    With one logit z there are two classes, and z from 0 on says class 1.

    Args:
        num_classes: Number of logits.
        multilabel: Whether labels are multi-hot.
        device: Where the logits are.
    """

    def __init__(self, num_classes: int, multilabel: bool, device: torch.device) -> None:
        self.num_classes, self.multilabel = num_classes, multilabel
        self._metrics: dict[str, Metric]
        if num_classes == 1 and multilabel:
            self._metrics = {
                "f1": BinaryF1Score(),
                "map": BinaryAveragePrecision(),
                "each": BinaryStatScores(),
            }
        elif multilabel:
            self._metrics = {
                "f1": MultilabelF1Score(num_classes, average="micro"),
                "map": MultilabelAveragePrecision(num_classes, average=None),
                "each": MultilabelStatScores(num_classes, average=None),
            }
        else:
            num_classes = max(num_classes, 2)
            self._metrics = {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "each": MulticlassStatScores(num_classes, average=None),
            }
        for metric in self._metrics.values():
            metric.to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        # A logit of 0 is a yes. Ranks are kept in float64, where fewer sigmoids round to 1.
        yes = self.multilabel or self.num_classes == 1
        answers = (logits >= 0).int() if yes else logits.argmax(1)
        ranks = logits.double().sigmoid()
        if self.num_classes == 1:
            answers, ranks, labels = answers[:, 0], ranks[:, 0], (labels.reshape(-1) > 0.5)
        labels = labels.long()
        for name, metric in self._metrics.items():
            metric.update(ranks if name == "map" else answers, labels)

    def add_nothing(self) -> None:
        """Take part in the exchange between processes without an image.

        torchmetrics sends the lists that average precision keeps, and an empty list not at all.
        """
        if self.multilabel:
            shape = (0,) if self.num_classes == 1 else (0, self.num_classes)
            metric = self._metrics["map"]
            nothing = torch.zeros(shape, dtype=torch.float64, device=metric.device)
            metric.update(nothing, nothing.long())

    def compute(self) -> dict[str, float]:
        """The scores, in [0, 1]; classes that no image shows are left out of means and minima."""
        with warnings.catch_warnings():
            # In a distributed run a process may have had nothing to add.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            each = self._metrics["each"].compute().reshape(-1, _SUPPORT + 1)
            return self._of_classes(each, shown=each[:, _SUPPORT] > 0)

    def _of_classes(self, each: Tensor, *, shown: Tensor) -> dict[str, float]:
        if not self.multilabel:
            recall = each[:, _TRUE_POSITIVES].double() / each[:, _SUPPORT].clamp(min=1)
            return {
                "accuracy": float(self._metrics["accuracy"].compute()),
                "worst_class_accuracy": float(recall[shown].min()) if shown.any() else 0.0,
            }
        with warnings.catch_warnings():
            # torchmetrics warns of classes without a positive image, which are left out here.
            warnings.filterwarnings("ignore", message="No positive samples found in target")
            precision = self._metrics["map"].compute().reshape(-1)
        return {
            "f1": float(self._metrics["f1"].compute()),
            "map": float(precision[shown].mean()) if shown.any() else 0.0,
        }
