"""Every form of annotation behind one interface, and the choice of the classes to explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from explainguide.annotations.batch import Annotations
from explainguide.annotations.checks import check_mask
from explainguide.annotations.labels import FirstLabel, outside_hint, to_logits, warn_if_strangers
from explainguide.errors import AnnotationError, OptionError, ShapeError

__all__ = ["Choice", "Regions", "as_regions", "choose_classes"]

_PRESENT = 0.5  # a class is annotated where its own mask reaches this


class Regions(Protocol):
    """What the guide asks of annotations."""

    @property
    def most_classes(self) -> int:
        """No image has more annotated classes than this."""
        ...

    def presence(self, num_classes: int) -> Tensor | None:
        """Annotated classes, ``(N, num_classes)`` bool; None where a mask does not say its class."""

    def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks of one class an image, ``(..., N, H, W)``; class -1 is all of them together."""


@dataclass(frozen=True)
class _SingleMask:
    """One mask an image, for whichever class is explained."""

    mask: Tensor
    most_classes: int = 1

    def presence(self, num_classes: int) -> Tensor | None:
        return None

    def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        return self.mask.expand(*classes.shape, *size)


@dataclass(frozen=True)
class _ClassMasks:
    """A mask for each class of each image."""

    masks: Tensor

    @property
    def most_classes(self) -> int:
        return self.masks.shape[1]

    def presence(self, num_classes: int) -> Tensor | None:
        return (self.masks >= _PRESENT).flatten(2).any(2)

    def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        images = torch.arange(self.masks.shape[0], device=classes.device)
        chosen = self.masks[images, classes.clamp(min=0)]
        return torch.where((classes < 0)[..., None, None], self.masks.amax(1), chosen)


def as_regions(
    annotations: Any,
    logits: Tensor,
    size: tuple[int, int],
    *,
    target: Any = None,
    first_label: FirstLabel = 0,
) -> Regions:
    """Detection dicts, `Annotations` or a mask tensor, on the logits' device.

    Args:
        annotations: As `ExplanationGuidance.loss_loc` takes them.
        logits: ``(N, K)``.
        size: (H, W) of the images.
        target: The images' labels, where they are known, for a warning.
        first_label: The label of the first logit, or a mapping from labels to logits; for dicts, and
            for `Annotations` that were built without.

    Raises:
        AnnotationError: If the number of images, the canvas, the labels or a mask's values do not fit.
        OptionError: If `Annotations` were built with another `first_label`.
        ShapeError: If a mask has the wrong size or dtype.

    Warns:
        ExplainGuideWarning: If labels on the host disagree with the boxes in every image.
    """
    count, num_classes = logits.shape
    if isinstance(annotations, Tensor):
        return _from_masks(annotations, logits, size)
    if not isinstance(annotations, Annotations):
        if isinstance(annotations, dict) or not isinstance(annotations, Sequence):
            raise AnnotationError(
                f"annotations is a {type(annotations).__name__}. Pass a list with one dict "
                "an image. A list of dicts, explainguide.Annotations or a mask tensor is allowed."
            )
        _check_count(len(annotations), count)
        annotations = Annotations.from_targets(annotations, canvas=size, first_label=first_label)
    _check_count(len(annotations), count)
    if annotations.canvas is not None and annotations.canvas != size:
        raise AnnotationError(
            f"the annotations are for a canvas of {annotations.canvas[0]} x "
            f"{annotations.canvas[1]}, but the model's input is {size[0]} x {size[1]}. Resize image "
            "and annotations together. Boxes are in pixels of the model's input."
        )
    annotations = _counted(annotations, first_label)
    largest = annotations.largest_label
    if largest is not None and largest >= num_classes:
        raise AnnotationError(
            f"the annotations hold label {largest}, but the model has {num_classes} classes. "
            f"{outside_hint(largest, annotations.first_label, num_classes)} 0 to {num_classes - 1} are "
            "allowed."
        )
    if target is not None:
        warn_if_strangers(annotations.labels, target)
    return annotations.to(logits.device, non_blocking=True)


def _counted(annotations: Annotations, first_label: FirstLabel) -> Annotations:
    """With indices of logits for labels; nothing is applied twice."""
    if first_label in (0, annotations.first_label):
        return annotations
    if annotations.first_label != 0:
        raise OptionError(
            f"the Annotations were built with first_label={annotations.first_label}, but the "
            f"guide with {first_label}. Give it to one of them. The guide applies it to dicts, and to "
            "Annotations without."
        )
    labels = to_logits(annotations.labels, first_label, where="an object")
    on_host = annotations.largest_label is not None
    largest = int(labels.max()) if on_host and labels.numel() else None
    return replace(annotations, labels=labels, largest_label=largest, first_label=first_label)


def _check_count(found: int, count: int) -> None:
    if found != count:
        raise AnnotationError(
            f"{found} annotations for {count} images. Give one an image. None stands for "
            "an image without annotation."
        )


def _from_masks(masks: Tensor, logits: Tensor, size: tuple[int, int]) -> Regions:
    count, num_classes = logits.shape
    check_mask(masks)
    if masks.ndim >= 1:
        _check_count(len(masks), count)
    shape = tuple(masks.shape)
    if shape[-2:] != size:
        raise ShapeError(
            f"the masks have shape {shape}, but the model's input is {size[0]} x "
            f"{size[1]}. Resize them with mode='nearest'. Masks have the size of the model's input."
        )
    plain = masks.as_subclass(Tensor)
    masks = plain.to(logits.device, non_blocking=True).float()
    if masks.ndim == 3:
        return _SingleMask(masks)
    if masks.ndim == 4 and masks.shape[1] == 1:
        return _SingleMask(masks[:, 0])
    if masks.ndim == 4 and masks.shape[1] == num_classes:
        _check_hard(plain)
        return _ClassMasks(masks)
    raise ShapeError(
        f"the masks have shape {shape} for {count} images of {num_classes} classes. Give "
        f"one mask an image. (N, H, W), (N, 1, H, W) and (N, {num_classes}, H, W) are allowed."
    )


def _check_hard(masks: Tensor) -> None:
    """Refuse ``(N, K, H, W)`` in which every class has a little everywhere; on the host only."""
    if masks.dtype == torch.bool or masks.device.type != "cpu":
        return
    highest = masks.flatten(2).amax(2)
    faint = (highest > 0) & (highest < _PRESENT)
    if bool(faint.any()):
        image, label = faint.nonzero()[0].tolist()
        raise AnnotationError(
            f"the mask of class {label} of image {image} reaches only "
            f"{float(highest[image, label]):.3g}: soft masks, as a softmax makes them, do not say "
            "which classes an image shows. Use `masks >= 0.5`. A mask of a class that is there reaches "
            "0.5, and any other is 0."
        )


class Choice(NamedTuple):
    """S classes of every image.

    Attributes:
        classes: What is explained, ``(S, N)`` int64.
        regions: Whose region it is compared with, ``(S, N)``; -1 for all objects.
        valid: Whether there is such a class, ``(S, N)`` bool.
    """

    classes: Tensor
    regions: Tensor
    valid: Tensor


def choose_classes(
    mode: str,
    regions: Regions,
    logits: Tensor,
    target: Any,
    *,
    negatives: float,
    generator: torch.Generator | None,
) -> Choice:
    """The classes that are explained, without synchronising with the device.

    Args:
        mode: "sample", "all" or "predicted".
        regions: The batch's annotations.
        logits: ``(N, K)``.
        target: None, class indices ``(N,)`` on the logits' device, or multi-hot labels ``(N, K)``.
        negatives: Probability of a class that the image does not show, against all its objects.
        generator: For the draw.

    Raises:
        OptionError: If the target cannot be used, or is needed and missing.
    """
    annotated = regions.presence(logits.shape[1])
    if mode == "predicted":
        if target is not None:
            raise OptionError(
                "a target is given, but the guide explains the predicted class. Leave it "
                "out. target='sample' takes one."
            )
        classes = logits.detach().argmax(1)[None]
        return Choice(classes, classes, torch.ones_like(classes, dtype=torch.bool))
    if isinstance(target, Tensor) and target.ndim == 1:
        candidates = target[:, None] == torch.arange(logits.shape[1], device=target.device)
        shown = candidates if annotated is None else candidates | annotated
    elif target is not None:
        labels = target > 0
        candidates = labels if annotated is None else labels & annotated
        shown = labels if annotated is None else labels | annotated
    elif annotated is not None:
        candidates = shown = annotated
    else:
        raise OptionError(
            "masks (N, H, W) do not say their class. Pass target. Class indices (N,) or "
            "multi-hot labels (N, K) are allowed."
        )
    if mode == "all":
        slots = logits.shape[1] if annotated is None else regions.most_classes
        if isinstance(target, Tensor) and target.ndim == 1:
            slots = 1
        rank = torch.arange(max(min(slots, logits.shape[1]), 1), device=logits.device)
        classes, valid = _nth(candidates, rank[:, None].expand(-1, len(logits)))
        return Choice(classes, classes, valid)
    draws = _uniform(2, len(logits), logits.device, generator)
    classes, valid = _nth(candidates, _rank(candidates, draws[0])[None])
    absent, possible = _nth(~shown, _rank(~shown, draws[0])[None])
    negative = possible & (draws[1] < negatives)
    return Choice(
        torch.where(negative, absent, classes),
        torch.where(negative, -1, classes),
        valid | negative,
    )


def _uniform(
    rows: int, count: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """On the generator's device, so that one seed means one sequence of draws everywhere."""
    source = device if generator is None else generator.device
    draws = torch.rand(rows, count, generator=generator, device=source)
    return draws.to(device, non_blocking=True)


def _rank(present: Tensor, uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) to a uniform place among the present classes, ``(N,)``."""
    count = present.sum(1)
    return torch.minimum((uniform * count).long(), (count - 1).clamp(min=0))


def _nth(present: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The class at a place among the present ones: ``(N, K)``, ``(S, N)`` -> twice ``(S, N)``."""
    hit = present & (present.cumsum(1) == rank[..., None] + 1)
    return hit.int().argmax(-1), hit.any(-1)
