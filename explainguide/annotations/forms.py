"""What `loss_loc` may be given: a table of forms, each read into `Regions`.

To add a form, write here what it is called, which values have it and how it is read, above `@form`.
Nothing else has to know of it: the guide asks for `Regions`, and the refusal lists the table. Of two
forms that fit, the later is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from explainguide.annotations.batch import Annotations
from explainguide.annotations.cells import ChosenBoxes
from explainguide.annotations.keys import check_held
from explainguide.annotations.labels import FirstLabel, outside_hint, to_logits, warn_if_strangers
from explainguide.annotations.masks import check_mask
from explainguide.errors import (
    AnnotationError,
    ExplainGuideError,
    OptionError,
    ShapeError,
    check_free,
    operation,
)
from explainguide.host import host_array, send

__all__ = [
    "FORMS",
    "Batch",
    "Form",
    "Regions",
    "annotated_images",
    "as_regions",
    "boxes_of",
    "form",
]

_PRESENT = 0.5  # a class is annotated where its own mask reaches this


class Regions(Protocol):
    """What the guide asks of annotations.

    Regions that are made of boxes may say so by one more method, ``chosen_boxes(classes)``, which
    returns `ChosenBoxes` or None: then most losses need no mask of the image's size. See
    `boxes_of`.
    """

    @property
    def most_classes(self) -> int:
        """No image has more annotated classes than this."""
        ...

    def presence(self, num_classes: int) -> Tensor | None:
        """Annotated classes, ``(N, num_classes)`` bool; None where a mask does not say its class."""

    def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks of one class an image, ``(..., N, H, W)``; class -1 is all of them together."""


def boxes_of(regions: Regions, classes: Tensor) -> ChosenBoxes | None:
    """The boxes whose union the regions of these classes are; None where they are not made of boxes.

    Args:
        regions: The batch's annotations.
        classes: ``(..., N)``, as `Regions.region` takes them.
    """
    ask: Callable[[Tensor], ChosenBoxes | None] | None = getattr(regions, "chosen_boxes", None)
    return None if ask is None else ask(classes)


class Batch(NamedTuple):
    """What annotations are read for.

    Attributes:
        logits: ``(N, K)``; `Regions` are on their device.
        size: (H, W) of the images.
        target: The images' labels, or None.
        first_label: The label of the first logit, or a mapping from labels to logits.
    """

    logits: Tensor
    size: tuple[int, int]
    target: Any
    first_label: FirstLabel


Fits = Callable[[Any, Batch], bool]
Read = Callable[[Any, Batch], Regions]


@dataclass(frozen=True)
class Form:
    """One form of annotations.

    Attributes:
        name: As the refusal lists it; ``{K}`` is the number of classes.
        fits: Whether a value is meant to be of this form; it looks at type and shape alone.
        read: Makes `Regions` of it, or refuses what is wrong with it.
    """

    name: str
    fits: Fits
    read: Read


FORMS: list[Form] = []


def form(name: str, fits: Fits) -> Callable[[Read], Read]:
    """Enter the function that reads a form in the table: put it above the function.

    Of two forms that fit a value the later one is taken, so that a user's own comes before the
    package's.

    Args:
        name: As `Form`, as are the others.
        fits: Whether a value is meant to be of this form.

    Raises:
        OptionError: Where a function is decorated with a name that another form has.

    Example:
        >>> @form("the word 'everywhere'", lambda value, batch: value == "everywhere")
        ... def everywhere(word, batch):
        ...     return as_regions(torch.ones(len(batch.logits), *batch.size), batch.logits, batch.size)
        >>> as_regions("everywhere", torch.zeros(1, 3), (2, 2)).region(torch.tensor([0]), (2, 2))
        tensor([[[1., 1.],
                 [1., 1.]]])
        >>> FORMS.pop().name
        "the word 'everywhere'"
    """

    @operation("form")
    def enter(read: Read) -> Read:
        for known in [entry for entry in FORMS if entry.name == name]:
            names = [entry.name for entry in FORMS]
            check_free(name, read, taken_by=known.read, table="FORMS", keys=names)
            FORMS.remove(known)
        FORMS.append(Form(name, fits, read))
        return read

    return enter


def as_regions(
    annotations: Any,
    logits: Tensor,
    size: tuple[int, int],
    *,
    target: Any = None,
    first_label: FirstLabel = 0,
) -> Regions:
    """Annotations of any form in the table, on the logits' device.

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
    if logits.device.type != "meta":
        for name, value in _tensors(annotations):
            check_held(value, name)
    batch = Batch(logits, size, target, first_label)
    for known in reversed(FORMS):
        if known.fits(annotations, batch):
            return known.read(annotations, batch)
    raise _unknown(annotations, batch)


def _tensors(annotations: Any) -> list[tuple[str, Any]]:
    """What the annotations hold, by name."""
    if isinstance(annotations, Annotations):
        return [(f"annotations.{name}", value) for name, value in vars(annotations).items()]
    return [("annotations", annotations)]


def annotated_images(regions: Regions, annotated: Tensor) -> Tensor:
    """Which images have something to explain, or may have; one at least, where there are images.

    `Annotations` that were made of a list know it. Of others the values are read, which on a device
    waits for it once.

    Args:
        regions: The batch's annotations.
        annotated: Which class of which image is there to explain, ``(S, N)`` bool.

    Returns:
        Indices, ``(n,)`` int64, on that device.
    """
    known = regions.annotated if isinstance(regions, Annotations) else None
    if known is None or annotated.device.type == "cpu":
        shown = annotated.any(0)
        shown = shown if shown.device.type == "cpu" else shown.cpu()
        known = host_array(shown).nonzero()[0].tolist()
    rows = list(known) or list(range(min(annotated.shape[1], 1)))
    return send(torch.tensor(rows, dtype=torch.int64), annotated.device)


def _unknown(annotations: Any, batch: Batch) -> ExplainGuideError:
    count, num_classes = batch.logits.shape
    *names, last = (known.name.replace("{K}", str(num_classes)) for known in FORMS)
    allowed = f"{', '.join(names)} and {last} are allowed."
    allowed = allowed[0].upper() + allowed[1:]
    if isinstance(annotations, Tensor):
        return ShapeError(
            f"the masks have shape {tuple(annotations.shape)} for {count} images of {num_classes} "
            f"classes. Give one mask an image. {allowed}"
        )
    return AnnotationError(
        f"annotations is a {type(annotations).__name__}. Pass a list with one dict an image. {allowed}"
    )


@form("a list of dicts", lambda value, batch: isinstance(value, Sequence))
def _from_dicts(targets: Any, batch: Batch) -> Regions:
    _check_count(len(targets), batch)
    read = Annotations.from_targets(targets, canvas=batch.size, first_label=batch.first_label)
    return _from_annotations(read, batch)


@form("explainguide.Annotations", lambda value, batch: isinstance(value, Annotations))
def _from_annotations(annotations: Annotations, batch: Batch) -> Regions:
    _check_count(len(annotations), batch)
    size, num_classes = batch.size, batch.logits.shape[1]
    if annotations.canvas is not None and annotations.canvas != size:
        raise AnnotationError(
            f"the annotations are for a canvas of {annotations.canvas[0]} x "
            f"{annotations.canvas[1]}, but the model's input is {size[0]} x {size[1]}. Resize image "
            "and annotations together. Boxes are in pixels of the model's input."
        )
    annotations = _counted(annotations, batch.first_label)
    largest = annotations.largest_label
    if largest is not None and largest >= num_classes:
        raise AnnotationError(
            f"the annotations hold label {largest}, but the model has {num_classes} classes. "
            f"{outside_hint(largest, annotations.first_label, num_classes)} 0 to {num_classes - 1} are "
            "allowed."
        )
    if batch.target is not None:
        warn_if_strangers(annotations.labels, batch.target)
    return annotations.to(batch.logits.device, non_blocking=True)


def _counted(annotations: Annotations, first_label: FirstLabel) -> Annotations:
    """With indices of logits for labels; nothing is applied twice."""
    if first_label in (0, annotations.first_label):
        return annotations
    if annotations.first_label != 0:
        raise OptionError(
            f"the Annotations were built with first_label={annotations.first_label}, but the "
            f"guide with {first_label}. Give it to one of them. The guide's is for dicts, and for "
            "Annotations that were built without one."
        )
    labels = to_logits(annotations.labels, first_label, where="an object")
    on_host = annotations.largest_label is not None
    largest = int(host_array(labels).max()) if on_host and labels.numel() else None
    return annotations.same_objects(labels=labels, largest_label=largest, first_label=first_label)


@dataclass(frozen=True)
class _SingleMask:
    """One mask an image, for whichever class is explained."""

    mask: Tensor
    most_classes: int = 1

    def presence(self, num_classes: int) -> Tensor | None:
        return None

    def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        return self.mask.expand(*classes.shape, *size)


def _is_single(value: Any, batch: Batch) -> bool:
    return isinstance(value, Tensor) and (
        value.ndim == 3 or (value.ndim == 4 and value.shape[1] == 1)
    )


@form("masks (N, H, W) or (N, 1, H, W)", _is_single)
def _from_masks(masks: Tensor, batch: Batch) -> Regions:
    read = _read_masks(masks, batch)
    return _SingleMask(read if read.ndim == 3 else read[:, 0])


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


def _is_per_class(value: Any, batch: Batch) -> bool:
    per_class = isinstance(value, Tensor) and value.ndim == 4
    return per_class and value.shape[1] == batch.logits.shape[1] and not _is_single(value, batch)


@form("masks per class (N, {K}, H, W)", _is_per_class)
def _from_class_masks(masks: Tensor, batch: Batch) -> Regions:
    read = _read_masks(masks, batch)
    _check_hard(masks.as_subclass(Tensor))
    return _ClassMasks(read)


def _check_hard(masks: Tensor) -> None:
    """Refuse ``(N, K, H, W)`` in which every class has a little everywhere; on the host only."""
    if masks.dtype == torch.bool or masks.device.type != "cpu":
        return
    highest = masks.flatten(2).amax(2)
    faint = (highest > 0) & (highest < _PRESENT)
    if host_array(faint).any():
        image, label = faint.nonzero()[0].tolist()
        raise AnnotationError(
            f"the mask of class {label} of image {image} reaches only "
            f"{float(highest[image, label]):.3g}: soft masks, as a softmax makes them, do not say "
            "which classes an image shows. Use `masks >= 0.5`. A mask of a class that is there reaches "
            "0.5, and any other is 0."
        )


def _read_masks(masks: Tensor, batch: Batch) -> Tensor:
    """Masks of a whole batch as float32 on the logits' device, of the size of the images."""
    check_mask(masks)
    _check_count(len(masks), batch)
    if tuple(masks.shape[-2:]) != batch.size:
        raise ShapeError(
            f"the masks have shape {tuple(masks.shape)}, but the model's input is {batch.size[0]} x "
            f"{batch.size[1]}. Resize them with mode='nearest'. Masks have the size of the model's "
            "input."
        )
    return send(masks.as_subclass(Tensor), batch.logits.device).float()


def _check_count(number: int, batch: Batch) -> None:
    count = len(batch.logits)
    if number != count:
        raise AnnotationError(
            f"{number} annotations for {count} images. Give one an image. None stands for "
            "an image without annotation."
        )
