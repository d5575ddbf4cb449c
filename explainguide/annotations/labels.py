"""Which logit a label means: labels that do not count from 0, soft labels, labels that disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from explainguide.errors import AnnotationError, OptionError, ShapeError, first_line, warn
from explainguide.host import host_array, send

__all__ = [
    "FirstLabel",
    "as_labels",
    "check_first_label",
    "check_multi_hot",
    "mark_soft",
    "outside_hint",
    "to_logits",
    "warn_if_strangers",
]

FirstLabel = int | Mapping[int, int]
_SHOWN = 5  # labels that an error lists


def check_first_label(first_label: FirstLabel) -> FirstLabel:
    """The option as it was given, or a dict of it.

    Raises:
        OptionError: If it is no label, or a mapping to what cannot be a logit.
    """
    if isinstance(first_label, Mapping):
        for label, logit in first_label.items():
            if not (_is_index(label) and _is_index(logit)):
                raise OptionError(
                    f"first_label holds {label!r}: {logit!r}. Give the data set's id and the "
                    "index of its logit, both from 0 on, as {18: 0, 44: 1}. An int, or a dict of "
                    "ints, is allowed."
                )
        if first_label:
            return dict(first_label)
    elif _is_index(first_label):
        return first_label
    raise OptionError(
        f"first_label is {first_label!r}. Give the label of the first logit: 1 where 0 is "
        "the background. An int from 0 on, or a dict from the data set's ids to logits, is allowed."
    )


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def to_logits(labels: Tensor, first_label: FirstLabel, *, where: str) -> Tensor:
    """A data set's labels as indices of logits.

    Args:
        labels: Any shape, int64; negative where there is no object.
        first_label: The label of the first logit, or a mapping from labels to logits.
        where: Begins the error: what has the label.

    Returns:
        The same shape; -1 where there is no object or, off the host, no logit.

    Raises:
        AnnotationError: For a label that means no logit (read on the host only).

    Example:
        >>> to_logits(torch.tensor([12, 20, -1]), 1, where="a box")
        tensor([11, 19, -1])
        >>> to_logits(torch.tensor([44, -1]), {18: 0, 44: 1}, where="a box")
        tensor([ 1, -1])
    """
    if isinstance(first_label, int):
        indices = torch.where(labels < first_label, -1, labels - first_label)
    else:
        rows = send(torch.tensor(sorted(first_label.items())), labels.device)
        ids, logits = rows.T.contiguous()
        place = torch.searchsorted(ids, labels.contiguous()).clamp(max=len(ids) - 1)
        indices = torch.where(ids[place] == labels, logits[place], -1)
    unknown = (labels >= 0) & (indices < 0)
    if labels.device.type == "cpu" and host_array(unknown).any():
        label = int(labels[unknown][0])
        if isinstance(first_label, int):
            what = "the background" if label == 0 else f"labels below {first_label}"
            raise AnnotationError(
                f"{where} has label {label}, but first_label is {first_label}. Leave out objects of "
                f"{what}. Labels count from {first_label}."
            )
        known = ", ".join(map(str, sorted(first_label)[:_SHOWN]))
        more = f" and {len(first_label) - _SHOWN} more" if len(first_label) > _SHOWN else ""
        raise AnnotationError(
            f"{where} has label {label}, which first_label does not name. Add it, or leave out objects "
            f"of this class. {known}{more} are allowed."
        )
    return indices


def outside_hint(label: int, first_label: FirstLabel, num_classes: int) -> str:
    """How a label that is no logit may have been meant; two sentences."""
    if isinstance(first_label, Mapping):
        return "That is what first_label makes of it. Map it to a logit."
    if first_label:
        return f"That is after first_label={first_label}. Check the label map."
    if label == num_classes:
        return (
            "Labels count from 0. Where they count from 1, as in torchvision's detection data sets, "
            "pass first_label=1."
        )
    return (
        "Labels count from 0. Where they are ids, as COCO's 1 to 90, pass "
        "first_label={id: logit, ...}."
    )


def as_labels(target: Any) -> Tensor:
    """Class indices or multi-hot labels as a tensor.

    Raises:
        OptionError: For what makes none, such as names.
    """
    try:
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"target makes no tensor ({first_line(error)}). Give class indices for "
            "names. An int, class indices (N,) or multi-hot labels (N, K) are allowed."
        ) from error


def check_multi_hot(target: Tensor, shape: tuple[int, int]) -> None:
    """Refuse what is no multi-hot ``(N, K)``; values are read on the host only.

    Args:
        target: Two-dimensional.
        shape: N images and K classes.

    Raises:
        ShapeError: For another shape.
        OptionError: For values other than 0 and 1.
    """
    if target.shape != shape:
        fix = "Give one row an image and one column a class."
        if target.shape == (shape[0], 1):
            fix = "If these are class indices, write `target[:, 0].long()`."
        raise ShapeError(
            f"target has shape {tuple(target.shape)} but the logits {tuple(shape)}. {fix} "
            "Class indices (N,) or multi-hot labels (N, K) are allowed."
        )
    if target.device.type == "meta":
        raise OptionError(
            "target is on the meta device, which holds no values. Make it on the CPU, or move it "
            "before it gets there. Any other device is allowed; it need not be the model's."
        )
    if target.device.type != "cpu":
        return
    neither = _neither(target)
    if not host_array(neither).any():
        return
    value = float(target[neither][0])
    if 0 < value < 1:
        raise OptionError(
            f"target holds {value:.3g}: soft labels, as label smoothing, mixup and cutmix "
            "make them, do not say which classes an image shows. Pass the hard labels, as class "
            "indices (N,); for mixup and cutmix the labels of both images, as one multi-hot row. "
            "0 and 1 are allowed."
        )
    raise OptionError(
        f"target holds {value:g} in shape {tuple(target.shape)}, which is read as multi-hot "
        "labels. Write 1 for a class that the image shows and 0 for any other. 0 and 1 are allowed."
    )


def _neither(target: Tensor) -> Tensor:
    return (target != 0) & (target != 1)


def mark_soft(losses: Tensor, target: Tensor | None) -> Tensor:
    """NaN for an image whose multi-hot row is soft, ``(N,) -> (N,)``.

    On a device values are not read, so that nothing can be refused there; a plausible number would
    be wrong.
    """
    if target is None or target.ndim != 2 or not target.is_floating_point():
        return losses
    return losses.masked_fill(_neither(target).any(1), float("nan"))


def warn_if_strangers(labels: Tensor, target: Any, *, sure: bool = False) -> None:
    """Say so where no image of a batch has an object of its own class; on the host only.

    Args:
        labels: Of the objects, ``(N, M)``; negative where there is none.
        target: Of the images: class indices, one or ``(N,)``, or multi-hot ``(N, K)``.
        sure: Say nothing but where two images or more have labels that are all one too high.
    """
    target = torch.as_tensor(target)
    if labels.device.type != "cpu" or target.device.type != "cpu":
        return  # a value costs a synchronisation
    objects = labels >= 0
    annotated = host_array(objects.any(1))
    if not annotated.any() or host_array(_among(labels, target)).any():
        return
    shifted = bool(host_array(_among(labels - 1, target).any(1))[annotated].all())
    if sure and not (shifted and annotated.sum() > 1):
        return
    what = (
        "Each counts one higher: where the data set's labels count from 1, pass first_label=1."
        if shifted
        else "Do boxes and images count their classes alike? first_label says how the boxes do."
    )
    warn(
        f"no image of a batch has a box with the image's own label. {what} A label is the "
        "index of a logit."
    )


def _among(labels: Tensor, target: Tensor) -> Tensor:
    """Which of an image's objects have a class of the image, ``(N, M)`` bool."""
    if target.ndim < 2:
        return (labels >= 0) & (labels == target[..., None])
    known = (labels >= 0) & (labels < target.shape[1])
    return known & (target.gather(1, torch.where(known, labels, 0)) > 0)
