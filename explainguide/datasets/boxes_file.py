"""Files of boxes: CSV with a header, and COCO JSON."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from explainguide.datasets.items import short_list
from explainguide.datasets.text_files import read_text
from explainguide.errors import AnnotationError, DataError, did_you_mean

__all__ = ["BoxRow", "read_boxes", "read_coco", "read_csv"]

OWNER = "ImageFolder"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_REQUIRED = ("image", *_CORNERS)
_COLUMNS = (*_REQUIRED, "label")


class CocoMask(NamedTuple):
    """Polygons or run lengths, decoded when asked."""

    segmentation: Any
    size: tuple[int, int]  # (H, W) of the image

    def decode(self) -> np.ndarray:
        """``(H, W)`` uint8, 0 or 1."""
        from pycocotools import mask

        encoded = self.segmentation
        if isinstance(encoded, list):
            encoded = mask.merge(mask.frPyObjects(encoded, *self.size))
        elif isinstance(encoded["counts"], list):
            encoded = mask.frPyObjects(encoded, *self.size)
        with warnings.catch_warnings():  # its compiled part predates numpy 2
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray(mask.decode(encoded))


class BoxRow(NamedTuple):
    """One box of a file."""

    where: str  # "line 3" or "annotation 17", for messages
    image: str  # path as the file writes it
    box: tuple[float, float, float, float]  # XYXY in pixels
    label: str | None  # name of a class; None: that of the image
    size: tuple[int, int] | None = None  # (H, W) of the image, where the file knows it
    mask: CocoMask | None = None


def read_boxes(path: Path) -> list[BoxRow]:
    """Read a file by its ending, ``.csv`` or ``.json``."""
    readers = {".csv": read_csv, ".json": read_coco}
    if not path.is_file():
        raise DataError(f"{OWNER}: boxes file '{path}' does not exist.")
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{OWNER}: boxes file '{path.name}' ends in {path.suffix!r}. "
            "Allowed: .csv (image,xmin,ymin,xmax,ymax[,label]) and .json (COCO)."
        )
    return readers[path.suffix.lower()](path)


def read_csv(path: Path) -> list[BoxRow]:
    """Read ``image,xmin,ymin,xmax,ymax[,label]``, in any order of columns."""
    text = read_text(path, caller=OWNER, kind="a CSV file")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        _check_header(path, [name.strip() for name in reader.fieldnames or []])
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        return [_csv_row(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{OWNER}: '{path}' is not a CSV file ({error}).") from None


def _check_header(path: Path, columns: list[str]) -> None:
    form = f"Allowed: {','.join(_REQUIRED)}[,label], separated by commas"
    if not columns:
        raise DataError(f"{OWNER}: '{path}' is empty. {form}.")
    unknown = [c for c in columns if c not in _COLUMNS]
    if unknown:
        hint = did_you_mean(unknown[0], _COLUMNS)
        raise DataError(
            f"{OWNER}: '{path}', line 1: unknown column {short_list(unknown)}.{hint} {form}."
        )
    absent = [c for c in _REQUIRED if c not in columns]
    if absent:
        raise DataError(f"{OWNER}: '{path}', line 1: no column {short_list(absent, 5)}. {form}.")


def _csv_row(path: Path, line: int, row: dict[Any, Any]) -> BoxRow:
    where = f"line {line}"
    values = [row[c] for c in _REQUIRED]
    if None in row or None in values:
        raise DataError(
            f"{OWNER}: '{path}', {where}: not as many values as the header has columns."
        )
    try:
        x1, y1, x2, y2 = (float(row[c]) for c in _CORNERS)
    except ValueError as error:
        raise AnnotationError(f"{OWNER}: '{path}', {where}: {error}.") from None
    check_box(path, where, (x1, y1, x2, y2))
    return BoxRow(
        where, row["image"].strip(), (x1, y1, x2, y2), (row.get("label") or "").strip() or None
    )


def check_box(path: Path, where: str, box: tuple[float, float, float, float]) -> None:
    """Refuse values that cannot be the corners of a box in pixels."""
    x1, y1, x2, y2 = box
    if not all(math.isfinite(v) for v in box):
        raise AnnotationError(f"{OWNER}: '{path}', {where}: box {box} is not finite.")
    if x2 <= x1 or y2 <= y1:
        raise AnnotationError(
            f"{OWNER}: '{path}', {where}: box {box} is inverted or empty. A box is xmin, ymin, "
            "xmax, ymax with xmin < xmax and ymin < ymax; are these x, y, width, height?"
        )
    if min(box) >= 0 and max(box) <= 1:
        raise AnnotationError(
            f"{OWNER}: '{path}', {where}: box {box} lies in [0, 1]. Boxes are in pixels: multiply "
            "by the width and height of the image."
        )


def read_coco(path: Path) -> list[BoxRow]:
    """Read the objects of a COCO JSON file; crowds, which are not one object, are left out."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise DataError(
            f"{OWNER}: COCO JSON ('{path.name}') needs pycocotools. "
            "`pip install explainguide[coco]`; a CSV file needs nothing."
        ) from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints while it loads
            coco = COCO(str(path))
        return list(_coco_rows(path, coco))
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        if isinstance(error, (DataError, AnnotationError)):
            raise
        raise DataError(
            f"{OWNER}: '{path}' is not COCO JSON ({type(error).__name__}: {error}). It needs "
            "images, annotations and categories."
        ) from None


def _coco_rows(path: Path, coco: Any) -> Iterator[BoxRow]:
    for annotation in coco.dataset["annotations"]:
        where = f"annotation {annotation['id']}"
        if annotation.get("iscrowd"):
            continue
        for key, table in (("image_id", coco.imgs), ("category_id", coco.cats)):
            if annotation[key] not in table:
                raise DataError(
                    f"{OWNER}: '{path}', {where}: {key} {annotation[key]!r} is not in the file."
                )
        image = coco.imgs[annotation["image_id"]]
        x, y, width, height = (float(v) for v in annotation["bbox"])
        box = (x, y, x + width, y + height)
        check_box(path, where, box)
        size = (int(image["height"]), int(image["width"])) if "height" in image else None
        mask = None
        if size is not None and annotation.get("segmentation"):
            mask = CocoMask(annotation["segmentation"], size)
        name = coco.cats[annotation["category_id"]]["name"]
        yield BoxRow(where, image["file_name"], box, name, size, mask)
