"""PASCAL VOC folders, for multi-label classification with boxes and masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset

from explainguide.annotations.boxes import box_masks
from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import (
    Annotation,
    Transforms,
    check_transforms,
    make_annotation,
    read_image,
    transform_item,
    warn_skipped,
)
from explainguide.datasets.orientation import Claim, find_stored, turn_boxes, turn_mask
from explainguide.datasets.pictures import Header, read_header
from explainguide.datasets.voc_folder import (
    VOC_CLASSES,
    VOCRecord,
    describe_missing,
    find_year_folder,
    image_files,
    read_record,
    read_split,
)
from explainguide.errors import DataError, OptionError, check_option, operation, warn

__all__ = ["VOC", "VOC_CLASSES"]

_YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")


class VOC(Dataset["tuple[Any, Tensor, Annotation | None] | None"]):
    """A PASCAL VOC year folder as published, or people's own data in that form.

    Items are ``(image, labels, annotation)``: by default the image is float32 ``(3, H, W)`` in
    [0, 1] at its own size (a batch needs transforms that resize), labels are multi-hot float32
    ``(K,)``, and the annotation holds the boxes of every object. VOC's 1-based inclusive corners
    become ``xmin - 1, ymin - 1, xmax, ymax``. Labels come from the whole image: a crop that loses
    an object loses its box and keeps its label.

    An image that cannot be decoded, or whose size is not the one in its XML file, gives a warning
    that names it and the item ``None``, which ``explainguide.annotations.collate`` drops. Listed
    ids without an image or XML file are left out at construction, with one warning.

    Images are read by the rules of :func:`explainguide.datasets.pictures.open_picture`, upright:
    turned as their EXIF orientation says. Boxes and masks of the stored pixels are turned with
    them, where the size in the XML file tells that they are; where nothing tells, boxes are taken
    to be those of the upright image, with a warning.

    Construction reads every XML file of the split and the header of every image (about two
    seconds for 5,000).

    Args:
        root: The year folder (``VOC2007``), the ``VOCdevkit`` folder, or the folder above that.
        image_set: Name of a split file without ``.txt``, in ImageSets/Main or in ImageSets:
            ``"train"``, ``"trainval"``, ``"Segmentation/val"``, ``"cat_train"`` (the images that
            show a cat), or your own.
        year: Which year, where ``root`` holds several.
        classes: Names of the classes in the order of the labels.
        difficult: VOC marks objects that are hard to recognise and counts them in its evaluation
            neither as present nor as absent. ``"ignore"``: they give neither label nor box, and
            ``difficult_only`` says which labels VOC would leave out. ``"include"``: they are
            objects like others.
        masks: Whether annotations hold ``"masks"`` for images with a file in SegmentationClass:
            the pixels of the object's class inside the object's box. Void pixels (255) belong to
            no object, and an object without any pixel is dropped. Other images have boxes only.
        only_masked: Keep only the images that have such a file.
        annotated: Fraction of the images that keep their annotation, in [0, 1]; the others yield
            ``None``. The choice of a smaller fraction is a subset of that of a larger one.
        seed: Seed of that choice.
        transforms: Joint transforms (``torchvision.transforms.v2``), called as
            ``transforms(image, target)`` on a uint8 image; boxes and masks stay in step.

    Attributes:
        classes: Names of the K classes.
        ids: The image ids, N of them.
        paths: Their files.
        labels: ``(N, K)`` float32, multi-hot.
        difficult_only: ``(N, K)`` bool, classes that show in difficult objects only.
        has_mask: ``(N,)`` bool, which images have a file in SegmentationClass.
        annotated: ``(N,)`` bool, which images keep their annotation.
        missing: Ids that the split lists and that have no image or no XML file.

    Raises:
        DataError: If the folder, the split or an XML file is not as VOC's are.
        OptionError: If an argument is not one of those allowed.

    Example:
        >>> data = VOC("data/VOCdevkit", "train", year=2012)  # doctest: +SKIP
        >>> image, labels, annotation = data[0]  # doctest: +SKIP
    """

    multilabel = True

    @operation("VOC")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train",
        *,
        year: str | int | None = None,
        classes: Sequence[str] = VOC_CLASSES,
        difficult: str = "ignore",
        masks: bool = False,
        only_masked: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("difficult", difficult, ("ignore", "include"))
        if year is not None:
            check_option("year", str(year), _YEARS)
        self.transforms = check_transforms(transforms)
        self.folder = find_year_folder(Path(root), None if year is None else str(year))
        self.image_set, self.difficult, self.with_masks = image_set, difficult, masks
        self.classes = _check_classes(classes)
        self.num_classes = len(self.classes)

        listed = read_split(self.folder, image_set, include_difficult=difficult == "include")
        files = image_files(self.folder, listed)
        self.ids, self.missing = self._present(listed, files)
        masked = self._masked_ids()
        if only_masked:
            self.ids = [i for i in self.ids if i in masked]
            if not self.ids:
                raise DataError(
                    f"no image of split {image_set!r} has a file in "
                    f"'{self.folder / 'SegmentationClass'}'. Leave out only_masked=True."
                )
        self.paths = [self.folder / "JPEGImages" / files[i] for i in self.ids]
        self.has_mask = torch.tensor([i in masked for i in self.ids])
        self.annotated = draw_annotated(len(self.ids), annotated, seed)

        index = {name: i for i, name in enumerate(self.classes)}
        records = [read_record(self._xml(i), index) for i in self.ids]
        shown = [_multi_hot(r.labels[~r.difficult], len(index)) for r in records]
        any_shown = [_multi_hot(r.labels, len(index)) for r in records]
        self.difficult_only = torch.from_numpy(np.stack(any_shown) & ~np.stack(shown))
        self.labels = torch.from_numpy(
            np.stack(any_shown if difficult == "include" else shown).astype(np.float32)
        )
        self._records = [self._without_difficult(r) for r in records]
        self._told: set[str] = set()
        self._turned, self._stored = self._make_upright()

    def __len__(self) -> int:
        return len(self.ids)

    @operation("VOC")
    def __getitem__(self, index: int) -> tuple[Any, Tensor, Annotation | None] | None:
        image = read_image(self.paths[index], self._told)
        if image is None:
            return None
        record, size = self._records[index], (image.shape[-2], image.shape[-1])
        header = self._turned.get(index, Header(size, 1))
        if record.size not in (None, size, header.stored):
            warn_skipped(self.paths[index], _size_clash(size, record))
            return None
        annotation = None
        if self.annotated[index]:
            boxes, labels = torch.from_numpy(record.boxes), torch.from_numpy(record.labels)
            masks = None
            if self.with_masks and self.has_mask[index]:
                segmentation = self._read_segmentation(index, size)
                if segmentation is None:
                    return None
                of_class = segmentation == (labels + 1)[:, None, None]
                masks = box_masks(boxes, size) & of_class
            annotation = make_annotation(boxes.clone(), labels.clone(), size, masks)
        image, annotation = transform_item(self.transforms, image, annotation)
        return image, self.labels[index].clone(), annotation

    def __repr__(self) -> str:
        return (
            f"VOC('{self.folder}', {self.image_set!r}): {len(self)} images, "
            f"{int(self.annotated.sum())} annotated, {int(self.has_mask.sum())} with masks"
        )

    def _xml(self, image_id: str) -> Path:
        return self.folder / "Annotations" / f"{image_id}.xml"

    def _present(self, listed: list[str], images: dict[str, str]) -> tuple[list[str], list[str]]:
        described = {f.stem for f in (self.folder / "Annotations").iterdir() if f.suffix == ".xml"}
        no_image = [i for i in listed if i not in images]
        no_xml = [i for i in listed if i in images and i not in described]
        missing = no_image + no_xml
        if missing:
            text = describe_missing(self.image_set, len(listed), no_image, no_xml)
            if len(missing) == len(listed):
                raise DataError(f"{text}. Is '{self.folder}' complete?")
            warn(f"{text}; they are left out.")
        lost = set(missing)
        return [i for i in listed if i not in lost], missing

    def _masked_ids(self) -> set[str]:
        folder = self.folder / "SegmentationClass"
        return (
            {f.stem for f in folder.iterdir() if f.suffix == ".png"} if folder.is_dir() else set()
        )

    def _without_difficult(self, record: VOCRecord) -> VOCRecord:
        keep = np.ones_like(record.difficult) if self.difficult == "include" else ~record.difficult
        return VOCRecord(
            record.boxes[keep], record.labels[keep], record.difficult[keep], record.size
        )

    def _make_upright(self) -> tuple[dict[int, Header], set[int]]:
        """Turn boxes of stored pixels; list the images that are turned, and those with such boxes.

        A first image that was resized without its boxes is told here, before a training starts.
        """
        turned, claims = {}, {}
        for index, (path, record) in enumerate(zip(self.paths, self._records, strict=True)):
            header = read_header(path)
            if header is None:  # unreadable: it is named when the item is read
                continue
            if index == 0 and record.size not in (None, header.stored, header.upright):
                raise DataError(
                    f"'{path}' {_size_clash(header.upright, record)}. Resize images by "
                    "transforms, which move the boxes too."
                )
            if header.orientation != 1:
                turned[index] = header
                if self.annotated[index]:
                    claims[index] = Claim(path, header, record.size, record.boxes)
        stored = find_stored(claims, source="the XML files")
        for index in stored:
            boxes = turn_boxes(claims[index].boxes, turned[index])
            self._records[index] = self._records[index]._replace(boxes=boxes)
        return turned, stored

    def _read_segmentation(self, index: int, size: tuple[int, int]) -> Tensor | None:
        """Class of every pixel plus one, ``(H, W)`` uint8; 0 background, 255 void."""
        path = self.folder / "SegmentationClass" / f"{self.ids[index]}.png"
        try:
            with PILImage.open(path) as file:
                mode, pixels = file.mode, np.array(file)
        except Exception as error:  # PIL raises whatever a broken file drives it to
            warn_skipped(path, f"cannot be read as a mask ({type(error).__name__})")
            return None
        if mode not in ("P", "L"):
            raise DataError(
                f"'{path}' is a {mode} image. A mask file holds class indices (mode P or L); "
                "colours cannot be told apart after a conversion."
            )
        header = self._turned.get(index)
        # A half turn or a square leaves the size: the mask is then taken as the boxes are.
        if header is not None and (
            index in self._stored
            if header.stored == header.upright
            else pixels.shape == header.stored
        ):
            pixels = turn_mask(pixels, header.orientation)
        if pixels.shape != size:
            warn_skipped(path, f"is {pixels.shape} and its image {size} (height, width)")
            return None
        return torch.from_numpy(pixels)


def _multi_hot(labels: np.ndarray, count: int) -> np.ndarray:
    row = np.zeros(count, dtype=bool)
    row[labels] = True
    return row


def _size_clash(size: tuple[int, int], record: VOCRecord) -> str:
    return f"is {size} and its XML file says {record.size} (height, width)"


def _check_classes(classes: Sequence[str]) -> list[str]:
    """Refuse a string or repeated names."""
    if isinstance(classes, str) or len(set(classes)) != len(classes) or not classes:
        raise OptionError(f"classes must be distinct names, but got {classes!r}.")
    return list(classes)
