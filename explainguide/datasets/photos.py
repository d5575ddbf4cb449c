"""What data sets of photographs share: items that are read when asked for, groups, regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from explainguide.annotations.boxes import box_masks
from explainguide.annotations.masks import boxes_around
from explainguide.datasets.items import (
    Transforms,
    check_transforms,
    make_annotation,
    read_image,
    transform_item,
)
from explainguide.errors import constructor

__all__ = ["Objects", "Photos", "masked_object", "outside"]


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
        boxes: ``(M, 4)`` XYXY in pixels.
        labels: ``(M,)`` int64.
        masks: ``(M, H, W)`` bool, or None.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Photos(Dataset[Any]):
    """Items ``(image, label, annotation)``, or with a group behind, of images that are read one by one.

    A data set derives from it and says how an image is read, or only what its objects are.

    Args:
        labels: ``(N,)`` int64, or ``(N, K)`` float32.
        classes: Names of the K classes.
        annotated: ``(N,)`` bool, which images have an annotation.
        transforms: Joint transforms, as all data sets take them.
        paths: The image files, where there is one an image.
        groups: Names of the groups.
        group_of: ``(N,)`` int64, where there are groups.
    """

    multilabel = False

    def __init__(
        self,
        labels: Tensor,
        classes: Sequence[str],
        *,
        annotated: Tensor,
        transforms: Transforms | None,
        paths: Sequence[Path] = (),
        groups: Sequence[str] = (),
        group_of: Tensor | None = None,
    ) -> None:
        self.labels, self.annotated, self.group_of = labels, annotated, group_of
        self.classes, self.groups = list(classes), list(groups)
        self.num_classes = len(self.classes)
        self.paths = list(paths)
        self.transforms = check_transforms(transforms)
        self._told: set[str] = set()

    def __len__(self) -> int:
        return len(self.labels)

    @constructor
    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        read = self._read(index)
        if read is None:
            return None
        image, objects = read
        annotation = None
        if objects is not None:
            size = (int(image.shape[-2]), int(image.shape[-1]))
            annotation = make_annotation(objects.boxes, objects.labels, size, objects.masks)
        image, annotation = transform_item(self.transforms, image, annotation)
        label = self.labels[index].clone() if self.multilabel else int(self.labels[index])
        if self.group_of is None:
            return image, label, annotation
        return image, label, annotation, int(self.group_of[index])

    def __repr__(self) -> str:
        in_groups = f", {len(self.groups)} groups" if self.groups else ""
        return (
            f"{type(self).__name__}: {len(self)} images, {self.num_classes} classes{in_groups}, "
            f"{int(self.annotated.sum())} annotated"
        )

    def _read(self, index: int) -> tuple[Tensor, Objects | None] | None:
        """Image and objects, None for those of an image without annotation; None if it is skipped."""
        image = read_image(self.paths[index], self._told)
        if image is None:
            return None
        if not self.annotated[index]:
            return image, None
        objects = self._objects(index, (int(image.shape[-2]), int(image.shape[-1])))
        return None if objects is None else (image, objects)

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        """The objects of an annotated image; None, after a warning, if they cannot be read."""
        raise NotImplementedError


def masked_object(pixels: np.ndarray, label: int, *, masks: bool) -> Objects:
    """One object, from its pixels; none where it has no pixel.

    Args:
        pixels: ``(H, W)`` bool.
        label: Its class.
        masks: Whether the mask goes with the box around it.

    Example:
        >>> pixels = np.zeros((4, 6), dtype=bool)
        >>> pixels[1:3, 2:5] = True
        >>> masked_object(pixels, 7, masks=False).boxes.tolist()
        [[2.0, 1.0, 5.0, 3.0]]
    """
    mask = torch.from_numpy(pixels)[None]
    mask = mask if bool(mask.any()) else mask[:0]
    boxes = boxes_around(mask) if len(mask) else torch.zeros(0, 4)
    return Objects(boxes, torch.full((len(mask),), label), mask if masks else None)


def outside(objects: Objects, size: tuple[int, int]) -> Objects:
    """What lies outside of one object: the region of a class that is the background.

    Outside of a box are up to four boxes, above, below, left and right of it; so the region is as
    exact as the box was, moves with the image, and needs no masks. Where there is a mask, the pixels
    in the box that are not the object's are the region's, too: of the largest of the boxes.

    Args:
        objects: One; where there is none, nothing is known of what is outside.
        size: (H, W) of the image.

    Returns:
        Boxes of the object's class; none where the object fills the image.

    Example:
        >>> bird = Objects(torch.tensor([[2.0, 1.0, 5.0, 4.0]]), torch.tensor([1]))
        >>> outside(bird, (4, 6)).boxes.tolist()
        [[0.0, 0.0, 6.0, 1.0], [0.0, 1.0, 2.0, 4.0], [5.0, 1.0, 6.0, 4.0]]
    """
    if not len(objects.boxes):
        return objects
    height, width = size
    limit = torch.tensor([width, height])
    box = torch.cat([objects.boxes[:1, :2].floor(), objects.boxes[:1, 2:].ceil()], 1)
    x1, y1, x2, y2 = box.reshape(2, 2).clamp(min=0).minimum(limit).flatten().tolist()
    around = torch.tensor(
        [[0, 0, width, y1], [0, y2, width, height], [0, y1, x1, y2], [x2, y1, width, y2]]
    ).float()
    area = (around[:, 2:] - around[:, :2]).prod(1)
    boxes, area = around[area > 0], area[area > 0]
    labels = objects.labels[:1].expand(len(boxes))
    if objects.masks is None or not len(boxes):
        return Objects(boxes, labels, None if objects.masks is None else objects.masks[:0])
    inside = box_masks(box, size)
    masks = box_masks(boxes, size)
    masks[area.argmax()] |= inside[0]
    return Objects(boxes, labels, masks & ~objects.masks[:1])
