"""Waterbirds: birds cut out of their photographs and pasted on land or water."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import Transforms, require_folder, warn_skipped
from explainguide.datasets.photos import Objects, Photos, masked_object, outside
from explainguide.datasets.published import (
    find_missing,
    find_root,
    read_mask,
    read_table,
    refuse_values,
)
from explainguide.datasets.text_files import read_text
from explainguide.errors import DataError, check_option, operation

__all__ = ["Waterbirds"]

_COLUMNS = ("img_id", "img_filename", "y", "split", "place")
_SPLITS = {"train": "0", "val": "1", "test": "2"}
_BIRDS, _PLACES = ("landbird", "waterbird"), ("land", "water")
_GROUPS = tuple(f"{bird} on {place}" for bird in _BIRDS for place in _PLACES)
_AGREED = 128  # of 255, in steps of 51 for each of five people who marked the bird
_ONE_OF_FIVE = 51
_BEYOND = 2  # pixels by which a box may leave its image; it is clipped


class Waterbirds(Photos):
    """Landbirds and waterbirds, whose background gives them away in training and not in the test.

    Items are ``(image, label, annotation, group)``: by default the image is float32 ``(3, H, W)`` in
    [0, 1] at its own size (a batch needs transforms that resize), label and group are ints. The
    annotation is one box (and mask) of the bird, or of the background up to four boxes, with
    `explainguide.datasets.photos.outside`.

    The folder is as published, with ``metadata.csv`` and a folder of images for each species. It holds
    no boxes and no masks; those of CUB-200-2011 are of the same pixels. Without either no image is
    annotated.

    An image that cannot be decoded, or whose mask is of another size, gives a warning that names it and
    the item ``None``. Images that are listed and not there are left out, with one warning.

    Args:
        root: The folder: ``waterbirds_v1.0`` of WILDS, ``waterbird_complete95_forest2water2`` of Sagawa
            et al., or ``waterbird_1.0_forest2water2`` of Petryk et al.
        image_set: ``"train"``, ``"val"`` or ``"test"``.
        boxes: CUB's ``bounding_boxes.txt``. Without it boxes are those around the masks.
        segmentations: CUB's folder ``segmentations``.
        task: ``"bird"``: landbird or waterbird, and the region is the bird. ``"background"``: land or
            water, and the region lies outside of the bird's box, or mask (*reversed*).
        bias: ``"published"``: all images. ``"complete"``: training and validation without landbirds on
            water and waterbirds on land, as in Waterbirds-100.
        masks: Whether annotations hold ``"masks"``, where there is a segmentation.
        annotated: Fraction of the images that may keep their annotation, in [0, 1].
        seed: Seed of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: Landbird and waterbird, or land and water.
        groups: The four groups, G1 to G4 of the papers: landbird on land, landbird on water, waterbird
            on land, waterbird on water.
        labels: ``(N,)`` int64.
        group_of: ``(N,)`` int64.
        paths: The image files.
        annotated: ``(N,)`` bool.
        missing: Images that are listed and not there.

    Raises:
        DataError: If the folder or a file is not in the published form.
        OptionError: If an argument is not one of those allowed.

    References:
        Sagawa et al., 2019; Petryk et al., 2022; Rao et al., 2023, Sec. 5.5.

    Example:
        >>> data = Waterbirds("waterbirds_v1.0", boxes="bounding_boxes.txt")  # doctest: +SKIP
        >>> image, label, annotation, group = data[0]  # doctest: +SKIP
    """

    @operation("Waterbirds")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train",
        *,
        boxes: str | os.PathLike[str] | None = None,
        segmentations: str | os.PathLike[str] | None = None,
        task: str = "bird",
        bias: str = "published",
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("image_set", image_set, _SPLITS)
        check_option("task", task, ("bird", "background"))
        check_option("bias", bias, ("published", "complete"))
        folder = find_root(root, ["metadata.csv"])
        self.task, self.with_masks = task, masks
        rows = _rows(folder / "metadata.csv", image_set)
        if bias == "complete" and image_set != "test":
            rows = [row for row in rows if row["y"] == row["place"]]
        paths = [folder / row["img_filename"] for row in rows]
        lost = find_missing(paths, listed_in=f"split {image_set!r} of 'metadata.csv'")
        self.missing = [path for path, gone in zip(paths, lost, strict=True) if gone]
        rows = [row for row, gone in zip(rows, lost, strict=True) if not gone]
        birds = torch.tensor([int(row["y"]) for row in rows])
        places = torch.tensor([int(row["place"]) for row in rows])
        self._boxes = torch.full((len(rows), 4), math.nan)
        if boxes is not None:
            self._boxes = _cub_boxes(Path(boxes), [row["img_id"] for row in rows])
        self._masks = _cub_masks(segmentations, [row["img_filename"] for row in rows])
        known = ~self._boxes[:, 0].isnan() | torch.tensor([m is not None for m in self._masks])
        super().__init__(
            birds if task == "bird" else places,
            _BIRDS if task == "bird" else _PLACES,
            annotated=draw_annotated(len(rows), annotated, seed) & known,
            transforms=transforms,
            paths=[path for path, gone in zip(paths, lost, strict=True) if not gone],
            groups=_GROUPS,
            group_of=birds * 2 + places,
        )

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        label, box, file = (
            int(self.labels[index]),
            self._boxes[index : index + 1],
            self._masks[index],
        )
        boxed = not bool(box.isnan().any())
        if boxed and bool((box[0, 2:] > torch.tensor([size[1], size[0]]) + _BEYOND).any()):
            corners = tuple(box[0].tolist())
            warn_skipped(self.paths[index], f"is {size} (height, width), and its box is {corners}")
            return None
        bird = Objects(box.clone(), torch.tensor([label]))
        if file is not None and (self.with_masks or not boxed):
            marked = read_mask(file, self.paths[index], size)
            if marked is None:
                return None
            bird = masked_object(_agreed(marked, file), label, masks=self.with_masks)
            if boxed and len(bird.boxes):
                bird = bird._replace(boxes=box.clone())
        return bird if self.task == "bird" else outside(bird, size)


def _rows(path: Path, image_set: str) -> list[dict[str, str]]:
    rows = read_table(path, _COLUMNS)
    for name, allowed in (("split", ("0", "1", "2")), ("y", ("0", "1")), ("place", ("0", "1"))):
        strange = next((row for row in rows if row[name] not in allowed), None)
        if strange is not None:
            raise DataError(
                f"'{path}' has {name} {strange[name]!r} for '{strange['img_filename']}'. Take the "
                f"published file. {', '.join(allowed)} are allowed."
            )
    chosen = [row for row in rows if row["split"] == _SPLITS[image_set]]
    if not chosen:
        there = [name for name, code in _SPLITS.items() if any(r["split"] == code for r in rows)]
        raise DataError(
            f"split {image_set!r} of '{path}' is empty. Take another. "
            f"{', '.join(map(repr, there)) or 'None'} of this file are allowed."
        )
    return chosen


def _cub_boxes(path: Path, ids: list[str]) -> Tensor:
    """The boxes of images, ``(N, 4)`` XYXY; NaN for those that the file does not list."""
    if not path.is_file():
        raise DataError(
            f"boxes file '{path}' does not exist. It is bounding_boxes.txt of CUB-200-2011. A file "
            "with lines of an image's id, x, y, width and height is allowed."
        )
    found: dict[str, list[float]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            image_id, (x, y, width, height) = words[0], map(float, words[1:])
        except ValueError:
            x = y = width = height = math.nan
        if not (width > 0 and height > 0 and math.isfinite(x + y + width + height)):
            raise DataError(
                f"'{path}', line {number}: {line!r} is no box. Is it bounding_boxes.txt of "
                "CUB-200-2011? Lines of an image's id, x, y, width and height are allowed."
            )
        found[image_id] = [x, y, x + width, y + height]
    boxes = torch.tensor([found.get(i, [math.nan] * 4) for i in ids])
    if bool(boxes.isnan().all()):
        raise DataError(
            f"'{path}' lists none of the images (the first is {ids[0]!r}). Take CUB-200-2011's. Ids as "
            "the column img_id of metadata.csv has them are allowed."
        )
    return boxes


def _cub_masks(folder: str | os.PathLike[str] | None, names: list[str]) -> list[Path | None]:
    """The segmentation of each image, None where there is none."""
    if folder is None:
        return [None] * len(names)
    require_folder(Path(folder), name="segmentations")
    species = sorted({Path(name).parent.as_posix() for name in names})
    parts = [next((name for name in species if (Path(folder) / name).is_dir()), species[0])]
    home = find_root(folder, parts, name="segmentations")
    there = {
        f"{name}/{file}"
        for name in species
        if (home / name).is_dir()
        for file in os.listdir(home / name)
    }
    masks = [Path(name).with_suffix(".png").as_posix() for name in names]
    return [home / mask if mask in there else None for mask in masks]


def _agreed(marked: np.ndarray, path: Path) -> np.ndarray:
    """Pixels that most people marked as the bird."""
    grey = marked.astype(np.uint8) if marked.ndim == 2 else marked[..., 0]
    largest = int(grey.max())
    if 0 < largest < _ONE_OF_FIVE or (marked.ndim == 3 and (marked != grey[..., None]).any()):
        refuse_values(path, [largest], "0 to 255 of grey, of which 128 and more are the bird,")
    return grey >= _AGREED
