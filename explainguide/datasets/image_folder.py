"""People's own images, one folder a class, with a file of boxes."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

from explainguide.annotations.segmentation import segmentation_size
from explainguide.datasets.boxes_file import BoxRow, decode_masks, read_boxes
from explainguide.datasets.items import (
    Annotation,
    Transforms,
    check_transforms,
    class_hint,
    make_annotation,
    read_image,
    require_folder,
    short_list,
    transform_item,
)
from explainguide.datasets.orientation import TOLERANCE, Claim, find_stored, turn_boxes
from explainguide.datasets.pictures import Header, read_header
from explainguide.errors import (
    AnnotationError,
    DataError,
    did_you_mean,
    operation,
    warn,
)

__all__ = ["ImageFolder"]


class ImageFolder(Dataset["tuple[Any, int, Annotation | None] | None"]):
    """Images in ``root/<class>/``, single-label, with boxes from a CSV or COCO JSON file.

    Items are ``(image, label, annotation)``: by default the image is float32 ``(3, H, W)`` in
    [0, 1] at its own size (a batch needs transforms that resize), the label an int, the annotation
    the boxes that the file gives for the image, or ``None`` if it gives none. It is enough to
    annotate a few images.

    **CSV**: a header ``image,xmin,ymin,xmax,ymax`` and optionally ``label``; one box a line, its
    corners in pixels, right and bottom exclusive; without a label the box shows the image's own
    class.
    **COCO JSON**: boxes, categories, and with ``masks=True`` polygons or run lengths (needs
    ``pip install explainguide[coco]``); crowds are left out. Both name an image by its path
    relative to ``root``; a file name alone will do where it occurs in one folder only.

    A file that cannot be decoded gives a warning that names it and the item ``None``, which
    ``explainguide.annotations.collate`` drops. Pictures are turned upright as their EXIF orientation
    says. Their boxes may be of the turned picture or of the stored pixels: sizes and boxes of the file
    tell which; where they cannot, the upright picture is assumed, and a warning says so once.

    Construction reads the header of every annotated image, to compare sizes.

    Args:
        root: The folder that holds one folder of images a class.
        boxes: The file, ``.csv`` or ``.json``. ``None``: no image is annotated.
        masks: Whether annotations hold ``"masks"``, for images whose objects all have one.
        transforms: Joint transforms (``torchvision.transforms.v2``), called as
            ``transforms(image, target)`` on a uint8 image; boxes and masks stay in step.

    Attributes:
        classes: Names of the folders, sorted.
        paths: The image files, N of them.
        labels: ``(N,)`` int64.
        annotated: ``(N,)`` bool, which images the file gives boxes for.

    Raises:
        DataError: If the folder or the file is not in the form above, or the file names images or
            classes that are not there.
        AnnotationError: If a box is inverted, not finite, in [0, 1] or outside its image.

    Example:
        >>> data = ImageFolder("photos", "photos/boxes.csv")  # doctest: +SKIP
        >>> image, label, annotation = data[0]  # doctest: +SKIP
    """

    multilabel = False

    @operation("ImageFolder")
    def __init__(
        self,
        root: str | os.PathLike[str],
        boxes: str | os.PathLike[str] | None = None,
        *,
        masks: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        self.root, self.with_masks = Path(root), masks
        self.transforms = check_transforms(transforms)
        require_folder(self.root)
        try:
            folder = torchvision.datasets.ImageFolder(str(self.root))
        except FileNotFoundError as error:
            raise DataError(
                f"'{self.root}' is not one folder of images a class ({error}). Put the images of each "
                f"class in a folder of its own, as '{self.root / 'cat' / '1.jpg'}'. Every folder must "
                "hold an image."
            ) from None
        self.classes = folder.classes
        self.num_classes = len(self.classes)
        self.paths = [Path(path) for path, _ in folder.samples]
        self.labels = torch.tensor(folder.targets, dtype=torch.int64)

        self._told: set[str] = set()
        self._turns: dict[
            int, int
        ] = {}  # orientation of pictures whose masks are of the stored pixels
        self._rows: dict[int, list[BoxRow]] = {}
        if boxes is not None:
            self._rows = self._assign(Path(boxes), read_boxes(Path(boxes)))
            if masks:
                _warn_without_masks(Path(boxes), list(self._rows.values()))
        self.annotated = torch.zeros(len(self.paths), dtype=torch.bool)
        self.annotated[list(self._rows)] = True

    def __len__(self) -> int:
        return len(self.paths)

    @operation("ImageFolder")
    def __getitem__(self, index: int) -> tuple[Any, int, Annotation | None] | None:
        index = range(len(self.paths))[index]
        image = read_image(self.paths[index], self._told)
        if image is None:
            return None
        size = (image.shape[-2], image.shape[-1])
        annotation = None
        if index in self._rows:
            rows = self._rows[index]
            annotation = make_annotation(
                torch.tensor([row.box for row in rows]),
                torch.tensor([self._label_of(index, row) for row in rows]),
                size,
                self._masks(index, size) if self.with_masks else None,
            )
        image, annotation = transform_item(self.transforms, image, annotation)
        return image, int(self.labels[index]), annotation

    def _masks(self, index: int, size: tuple[int, int]) -> Tensor | None:
        return decode_masks(self._rows[index], self._turns.get(index, 1), size)

    def __repr__(self) -> str:
        return (
            f"ImageFolder('{self.root}'): {len(self)} images, {self.num_classes} classes, "
            f"{int(self.annotated.sum())} annotated"
        )

    def _label_of(self, index: int, row: BoxRow) -> int:
        return int(self.labels[index]) if row.label is None else self.classes.index(row.label)

    def _assign(self, file: Path, rows: list[BoxRow]) -> dict[int, list[BoxRow]]:
        """Give each image its rows; refuse rows that fit no image or class, or not the image."""
        find = self._finder()
        unknown = list(dict.fromkeys(row.image for row in rows if find(row.image) is None))
        if unknown:
            known = [path.relative_to(self.root).as_posix() for path in self.paths]
            raise DataError(
                f"'{file}' names {len(unknown)} images that are not under '{self.root}': "
                f"{short_list(unknown)}.{did_you_mean(unknown[0], known)} Correct them, or add the "
                f"images. Paths relative to the folder, such as '{known[0]}', are allowed."
            )
        assigned: dict[int, list[BoxRow]] = defaultdict(list)
        for row in rows:
            if row.label is not None and row.label not in self.classes:
                raise DataError(
                    f"'{file}', {row.where}: unknown label {row.label!r}."
                    f"{class_hint(row.label, self.classes)} Correct it, or add a folder of that name. "
                    f"Allowed: {', '.join(self.classes)}."
                )
            index = find(row.image)
            assert index is not None
            assigned[index].append(row)
        claims = {}
        for index, group in assigned.items():
            header = read_header(self.paths[index])
            if header is not None:  # unreadable: it is named when the item is read
                boxes = np.array([row.box for row in group])
                claims[index] = Claim(self.paths[index], header, self._size_of(group), boxes)
        stored = find_stored(claims, source=f"'{file.name}'")
        for index, claim in claims.items():
            group = assigned[index]
            self._check_sizes(file, claim.header, group)
            if index in stored:
                self._turns[index] = claim.header.orientation
                boxes = turn_boxes(claim.boxes, claim.header)
                group = [
                    row._replace(box=tuple(box)) for row, box in zip(group, boxes, strict=True)
                ]
                assigned[index] = group
            _check_inside(file, claim.header.upright, group)
        return dict(assigned)

    def _size_of(self, rows: list[BoxRow]) -> tuple[int, int] | None:
        """``(H, W)`` that the file gives for an image, beside it or in its run lengths."""
        lengths = [segmentation_size(row.segmentation) for row in rows if self.with_masks]
        return next((size for size in [rows[0].size, *lengths] if size is not None), None)

    def _finder(self) -> Any:
        """Build the search for an image by relative path, or by a file name that occurs once."""
        by_path: dict[str, int] = {}
        by_name: dict[str, list[int]] = defaultdict(list)
        for index, path in enumerate(self.paths):
            by_path[path.relative_to(self.root).as_posix()] = index
            by_name[path.name].append(index)

        def find(written: str) -> int | None:
            path = PurePosixPath(written.replace("\\", "/"))  # drops a leading "./" too
            if str(path) in by_path:
                return by_path[str(path)]
            alone = by_name[path.name] if len(path.parts) == 1 else []
            return alone[0] if len(alone) == 1 else None

        return find

    def _check_sizes(self, file: Path, header: Header, rows: list[BoxRow]) -> None:
        for row in rows:
            if row.size not in (None, header.stored, header.upright):
                stored = f" or {header.stored}" if header.stored != header.upright else ""
                raise DataError(
                    f"'{file}', {row.where}: '{row.image}' is given as {row.size} and the "
                    f"image is {header.upright}{stored} (height, width). Was it resized, or turned "
                    "without an EXIF orientation that says so? Make its boxes anew on the image that "
                    "is there. Those of the image's size are allowed."
                )
            made_for = segmentation_size(row.segmentation) if self.with_masks else None
            if made_for not in (None, header.stored, header.upright):
                raise AnnotationError(
                    f"'{file}', {row.where}: the run lengths are of size {made_for} and "
                    f"'{row.image}' is {header.upright} (height, width). Was it resized without "
                    "its masks? Resize both, or make the run lengths anew. Those of the image's size "
                    "are allowed."
                )


def _check_inside(file: Path, size: tuple[int, int], rows: list[BoxRow]) -> None:
    height, width = size
    for row in rows:
        x1, y1, x2, y2 = row.box
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        if beyond > TOLERANCE or x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise AnnotationError(
                f"'{file}', {row.where}: box {row.box} lies outside '{row.image}', "
                f"which is {width} wide and {height} high. Correct the box, or give the image that "
                "it was drawn on. Corners in pixels, inside the image, are allowed."
            )


def _warn_without_masks(file: Path, images: list[list[BoxRow]]) -> None:
    """Say where ``masks=True`` gives boxes only: in the whole file, or for want of some objects'."""
    bare = [[row for row in rows if row.segmentation is None] for rows in images]
    fully = [len(some) == len(rows) for some, rows in zip(bare, images, strict=True)]
    partly = [some[0] for some, full in zip(bare, fully, strict=True) if some and not full]
    if images and all(fully):
        text = (
            f"'{file}' holds no segmentation, so that there are boxes only. For masks "
            "give COCO JSON with segmentations; for boxes leave out masks=True."
        )
    elif partly:
        text = (
            f"in {len(partly)} images of '{file}' some objects have no segmentation and others "
            f"have (first: {partly[0].where}, '{partly[0].image}'); these images have boxes only. "
            "Give every object of an image a segmentation."
        )
    else:
        return
    warn(f"masks=True, but {text}")


def open_data(root: str, *, boxes: str | None = None, masks: bool = False) -> ImageFolder:
    # Only COCO's files hold masks; of a CSV file the boxes are all that there is to ask for.
    return ImageFolder(root, boxes, masks=masks and (boxes or "").lower().endswith(".json"))
