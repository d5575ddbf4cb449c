"""Classification losses, which go with the localization losses."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, check_option, named

__all__ = ["CLASS_LOSSES", "classification_loss", "confidence_boosting"]

CLASS_LOSSES = ("task", "confidence-boosting")
_REDUCTIONS = ("mean", "sum", "none")


@named("classification_loss")
def classification_loss(
    logits: Tensor, labels: Tensor, *, class_loss: str = "task", temperature: float = 1.0
) -> Tensor:
    """The classification loss of a batch; the mean over images.

    Args:
        logits: ``(N, K)``. One logit z is that of class 1 against class 0.
        labels: ``(N,)`` int64, or ``(N, K)`` float; for one logit 0 or 1 of any type, ``(N,)`` or
            ``(N, 1)``.
        class_loss: ``"task"`` is cross-entropy for class indices and binary cross-entropy for
            multi-hot labels and for one logit; ``"confidence-boosting"`` is `confidence_boosting`,
            which does not look at the labels.
        temperature: Of confidence boosting.

    Returns:
        A scalar, in float32 at least.

    Raises:
        OptionError: If an option is not allowed.
    """
    check_option("class_loss", class_loss, CLASS_LOSSES)
    binary = logits.ndim == 2 and logits.shape[1] == 1
    if class_loss == "confidence-boosting":
        if labels.ndim == 2 and not binary:
            raise OptionError(
                "class_loss is 'confidence-boosting', which knows one class an "
                f"image, but the labels are multi-hot {tuple(labels.shape)}. Use class_loss='task'. "
                "One class index an image is allowed."
            )
        return confidence_boosting(logits, temperature=temperature)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if binary:
        labels = labels.reshape(-1, 1)
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


@named("confidence_boosting")
def confidence_boosting(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    r"""Cross-entropy of the logits against the model's own answer.

    .. math:: -\log \operatorname{softmax}(z / T)_{\hat k}, \qquad \hat k = \operatorname{argmax}_k z_k

    It keeps a trained classifier as sure of its answers as it was while its maps are guided, and
    asks for no labels. On a classifier that is not trained yet it makes any answer surer. Of one
    logit z it is -log sigmoid(abs(z) / T): those of classes 0 and 1 are taken as 0 and z.

    Args:
        logits: ``(N, K)``, of single-label classification.
        temperature: T, positive; below 1 for models with soft answers (0.65 for DeiT-B).
        reduction: ``"mean"`` over images, ``"sum"``, or ``"none"``, one value an image.

    Returns:
        A scalar, or ``(N,)`` with reduction="none"; in [0, log K] for each image, log 2 for one
        logit; in float32 at least. The answer is a constant: no gradient runs through the argmax.

    Raises:
        ShapeError: If the logits are not ``(N, K)`` floats.
        OptionError: If an option is not allowed.

    References:
        Chefer et al., 2022 (RobustViT), Eq. 4; the temperature is the authors' program's.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0], [3.0, 3.0]])
        >>> confidence_boosting(logits, reduction="none")  # log(1 + 1 / e), log 2
        tensor([0.3133, 0.6931])
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ShapeError(
            f"logits have shape {tuple(logits.shape)} and dtype "
            f"{logits.dtype}. Pass the model's output. Floats (N, K) are allowed."
        )
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (number and temperature > 0 and math.isfinite(temperature)):
        raise OptionError(f"temperature is {temperature!r}. Use 1.0. A number above 0 is allowed.")
    check_option("reduction", reduction, _REDUCTIONS)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return F.cross_entropy(logits / temperature, logits.argmax(1), reduction=reduction)
