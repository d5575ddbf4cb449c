"""COCO: 80 kinds of things in their surroundings, several an image, with boxes and masks."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.boxes_file import BoxRow, decode_masks, read_coco_file
from explainguide.datasets.items import Transforms, warn_skipped
from explainguide.datasets.orientation import Claim, find_stored, turn_boxes
from explainguide.datasets.photos import Objects, Photos
from explainguide.datasets.pictures import read_header
from explainguide.datasets.published import find_missing, find_root
from explainguide.errors import DataError, OptionError, did_you_mean, operation

__all__ = ["COCO"]

_FILE = re.compile(r"instances_(.+)\.json")


class COCO(Photos):
    """COCO as published, for multi-label classification with boxes and masks.

    Items are ``(image, labels, annotation)``: by default the image is float32 ``(3, H, W)`` in
    [0, 1] at its own size (a batch needs transforms that resize), labels are multi-hot float32
    ``(K,)``, and the annotation holds the boxes of every object (and their masks). Categories count
    from 0 in the order of their ids, which have gaps in the file.

    A crowd gives its image the label, but is no object: it has no box. An image without an object
    is one like others, without annotation.

    An image that cannot be decoded, or whose size is not that in the file, gives a warning that
    names it and the item ``None``. Images that are listed and not there are left out, with one
    warning.

    Construction reads the whole file, which for the training images takes about half a minute and
    several gigabytes.

    Args:
        root: The folder that holds ``annotations`` and the folders of images.
        image_set: ``"train"`` or ``"val"``, or with the year, ``"train2014"``: the folder of the
            images, whose objects are in ``annotations/instances_train2014.json``.
        year: Which year, where there are several.
        masks: Whether annotations hold ``"masks"``, drawn by pycocotools.
        annotated: Fraction of the images that may keep their annotation, in [0, 1].
        seed: Seed of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: Names of the K categories, 80 as published.
        labels: ``(N, K)`` float32, multi-hot.
        paths: The image files.
        annotated: ``(N,)`` bool, which images have an object and keep it.
        missing: Images that are listed and not there.

    Raises:
        DataError: If the folder or the file is not in the published form, or pycocotools
            (``explainguide[coco]``) is not installed.
        AnnotationError: If a box is inverted, not finite or in [0, 1].
        OptionError: If there are several years.

    References:
        Lin et al., 2014.

    Example:
        >>> data = COCO("coco", "val", year=2014)  # doctest: +SKIP
        >>> image, labels, annotation = data[0]  # doctest: +SKIP
    """

    multilabel = True

    @operation("COCO")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train",
        *,
        year: str | int | None = None,
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        folder = find_root(root, ["annotations"])
        image_set = _find_set(folder, image_set, year)
        self.with_masks = masks
        file = folder / "annotations" / f"instances_{image_set}.json"
        content = read_coco_file(file)
        if not content.images:
            raise DataError(
                f"'{file}' lists no image. Take the published file. One that lists images is allowed."
            )
        if not (folder / image_set).is_dir():
            raise DataError(
                f"'{folder}' has no folder '{image_set}' with the images of '{file.name}'. Unpack "
                f"{image_set}.zip there. A folder beside annotations is allowed."
            )
        paths = [folder / image_set / name for name in content.images]
        lost = find_missing(paths, listed_in=f"'{file.name}'")
        self.missing = [path for path, gone in zip(paths, lost, strict=True) if gone]
        names = [name for name, gone in zip(content.images, lost, strict=True) if not gone]
        index = {name: place for place, name in enumerate(content.classes)}
        rows: dict[str, list[BoxRow]] = defaultdict(list)
        for row in content.rows:
            rows[row.image].append(row if masks else row._replace(segmentation=None))
        crowds: dict[str, list[str]] = defaultdict(list)
        for name, category in content.crowds:
            crowds[name].append(category)
        self._rows = [rows.get(name, []) for name in names]
        self._sizes = [content.images[name] for name in names]
        labels = torch.zeros(len(names), len(index))
        for place, name in enumerate(names):
            shown = [row.label for row in self._rows[place]] + crowds.get(name, [])
            labels[place, [index[category] for category in shown if category is not None]] = 1
        known = torch.tensor([len(of_image) > 0 for of_image in self._rows])
        super().__init__(
            labels,
            content.classes,
            annotated=draw_annotated(len(names), annotated, seed) & known,
            transforms=transforms,
            paths=[path for path, gone in zip(paths, lost, strict=True) if not gone],
        )
        self._index = index

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        rows, path, made_for = self._rows[index], self.paths[index], self._sizes[index]
        boxes = np.array([row.box for row in rows])
        orientation = 1
        header = read_header(path)
        if header is not None and header.orientation != 1:
            claim = Claim(path, header, made_for, boxes)
            if find_stored({0: claim}, source="the COCO file"):
                boxes, orientation = turn_boxes(boxes, header), header.orientation
                made_for = header.upright
        if made_for not in (None, size):
            warn_skipped(path, f"is {size} and its COCO file says {made_for} (height, width)")
            return None
        masks: Tensor | None = None
        if self.with_masks:
            masks = decode_masks(rows, orientation, size)
            masks = None if masks is None else masks.bool()
        labels = [self._index[row.label] for row in rows if row.label is not None]
        return Objects(torch.from_numpy(boxes).float(), torch.tensor(labels), masks)


def _find_set(folder: Path, image_set: str, year: str | int | None) -> str:
    """The name of a split with its year, as files and folders have it."""
    files = sorted(f.name for f in (folder / "annotations").iterdir())
    known = [match[1] for match in map(_FILE.fullmatch, files) if match]
    wanted = image_set if year is None or image_set.endswith(str(year)) else f"{image_set}{year}"
    if wanted in known:
        return wanted
    found = [name for name in known if re.fullmatch(rf"{re.escape(wanted)}\d{{4}}", name)]
    if len(found) > 1:
        raise OptionError(
            f"'{folder}' holds several years of {image_set!r}. Say which with year=, or in the name. "
            f"{', '.join(map(repr, found))} are allowed."
        )
    if not found:
        raise DataError(
            f"'{folder / 'annotations'}' has no instances_{wanted}.json.{did_you_mean(wanted, known)} "
            f"Splits with such a file ({', '.join(map(repr, known)) or 'there is none'}) are allowed."
        )
    return found[0]
