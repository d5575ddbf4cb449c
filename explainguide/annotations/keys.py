"""The keys of one image's dict: which were meant, and what to say of those that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from explainguide.errors import AnnotationError, first_line

__all__ = [
    "as_tensor",
    "check_held",
    "check_nothing_else",
    "check_spelling",
    "nearest_key",
    "no_dict",
    "no_region",
]

_KEYS = ("boxes", "masks", "segmentation", "labels")
_MISSPELT = {
    **dict.fromkeys(("mask", "masks"), "masks"),
    **dict.fromkeys(("segmentation", "segmentations", "polygon", "polygons"), "segmentation"),
}
# What other programs call them; the last word of a key decides, as in 'box_labels'.
_WORDS = {
    "boxes": ("box", "rect", "roi"),
    "masks": ("mask",),
    "segmentation": ("segm", "polygon", "rle"),
    "labels": ("label", "class", "categor", "cls"),
}
_ALLOWED = (
    "'boxes' or 'masks', or COCO's 'segmentation', with 'labels', or None for an image without "
    "annotation, are allowed."
)


def as_tensor(target: Mapping[str, Any], name: str, where: str) -> Tensor | None:
    """A value of the dict; a tensor stays what it is, a subclass with its format too."""
    value = target.get(name)
    if value is None or isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = "Stack a list of tensors with torch.stack; rows must be of one length."
        if name == "labels":
            fix = "Give class indices for names, as {name: index for index, name in enumerate(names)}."
        raise AnnotationError(
            f"{where} has {name} that make no tensor ({first_line(error)}). {fix} Tensors, "
            "arrays and lists of numbers are allowed."
        ) from error


def check_held(value: Any, name: str) -> None:
    """Refuse tensors, also those inside a list of dicts, on the device that holds no values."""
    if isinstance(value, Tensor) and value.device.type == "meta":
        raise AnnotationError(
            f"{name} is on the meta device, which holds no values. Make it on the CPU, or move it "
            "before it gets there. Any other device is allowed; it need not be the model's."
        )
    if isinstance(value, Mapping):
        for key, member in value.items():
            check_held(member, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            if isinstance(member, Mapping):
                check_held(member, f"{name}[{index}]")


def no_dict(target: Any, where: str) -> str:
    """What to say of an annotation that is no dict."""
    fix = "Use a dict with 'boxes' and 'labels'."
    if isinstance(target, list | tuple) and target and isinstance(target[0], Mapping):
        fix = (
            "COCO's own form, a dict an object, becomes one dict an image by "
            "torchvision.datasets.wrap_dataset_for_transforms_v2."
        )
    return (
        f"{where} has a {type(target).__name__}. {fix} None stands for an image without annotation."
    )


def _meaning(key: Any) -> str | None:
    """Which of our keys another key stands for."""
    name = str(key).lower()
    place, meant = max(
        (name.rfind(word), meant) for meant, words in _WORDS.items() for word in words
    )
    if place >= 0:
        return meant
    return next(iter(get_close_matches(name, _KEYS, n=1, cutoff=0.7)), None)


def nearest_key(target: Mapping[str, Any], *names: str) -> str:
    """The sentence that names a key's right spelling, with a leading space; or nothing."""
    for key in target:
        meant = _meaning(key)
        if key in _KEYS or meant not in names:
            continue
        hint = f" Did you mean {meant!r} for {key!r}?"
        if meant == "boxes":
            hint += (
                " Boxes (x, y, width, height), as COCO's 'bbox', are wrapped in "
                "tv_tensors.BoundingBoxes(format='XYWH')."
            )
        if meant == "segmentation":
            hint += " It is one list of polygons [x1, y1, x2, y2, ...], or RLE, an object."
        if meant == "labels" and "categor" in str(key).lower():
            hint += " COCO's ids become logits by first_label={id: logit, ...}."
        return hint
    return ""


def no_region(target: Mapping[str, Any], where: str) -> str:
    """What to say of a dict without boxes and masks."""
    keys = ", ".join(map(repr, target))
    if not target:
        return f"{where} has an empty dict. Pass None where nobody annotated. {_ALLOWED}"
    hint = nearest_key(target, "boxes", "masks", "segmentation")
    if isinstance(target.get("annotation"), Mapping):
        hint = (
            " VOCDetection's own form becomes boxes and labels by "
            "torchvision.datasets.wrap_dataset_for_transforms_v2."
        )
    elif set(target) == {"image_id"}:
        hint = " So torchvision's COCO wrapper gives an image without objects: pass None for it."
    elif all(target.get(key) is None for key in _KEYS) and set(target) <= set(_KEYS):
        hint = " Pass None in place of the dict where nobody annotated."
    elif not hint and "labels" in target:
        hint = " Labels alone do not say where. Pass None where nobody annotated."
    return f"{where} has {keys}, but no boxes and no masks.{hint} {_ALLOWED}"


def check_nothing_else(target: Mapping[str, Any], many: str, where: str) -> None:
    """No objects: then no labels, masks or outlines either."""
    if target.get("segmentation"):
        raise AnnotationError(
            f"{where} has {many} but {len(target['segmentation'])} segmentations. Drop an object's "
            "box, label and segmentation together. One segmentation a box is allowed."
        )
    for name in ("labels", "masks"):
        value = as_tensor(target, name, where)
        if value is not None and (value.ndim == 0 or len(value) > 0):
            raise AnnotationError(
                f"{where} has {many} but {name} of shape {tuple(value.shape)}. Drop an object's box, "
                "label and mask together, as transforms.v2.SanitizeBoundingBoxes does. One label a "
                "box is allowed."
            )


def check_spelling(target: Mapping[str, Any], where: str) -> None:
    """Masks or outlines under a key that nobody would read."""
    for key, value in target.items():
        meant = _MISSPELT.get(str(key).lower())
        if meant is not None and value is not None:
            raise AnnotationError(
                f"{where} has {key!r} beside 'boxes', which would not be read. Did you mean {meant!r}? "
                "Rename it, or leave it out. 'masks' (M, H, W) or 'segmentation', one an object, are "
                "allowed."
            )
