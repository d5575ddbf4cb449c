"""Files of boxes: CSV with a header, and COCO JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from explainguide.datasets.items import short_list
from explainguide.datasets.text_files import read_text
from explainguide.errors import AnnotationError, DataError, ExplainGuideWarning, did_you_mean

__all__ = ["BoxRow", "read_boxes", "read_coco", "read_csv"]

OWNER = "ImageFolder"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_REQUIRED = ("image", *_CORNERS)
_COLUMNS = (*_REQUIRED, "label")


class CocoMask(NamedTuple):
    """Polygons or run lengths, decoded when asked."""

    segmentation: Any
    size: tuple[int, int] | None  # (H, W) of the image, where the file knows it

    def decode(self, size: tuple[int, int]) -> np.ndarray:
        """``(H, W)`` uint8, 0 or 1, in the frame that the file means.

        Args:
            size: Of the image, where the file does not say it.
        """
        from pycocotools import mask

        encoded = self.segmentation
        if isinstance(encoded, list):
            encoded = mask.merge(mask.frPyObjects(encoded, *(self.size or size)))
        elif isinstance(encoded["counts"], list):
            encoded = mask.frPyObjects(encoded, *(self.size or size))
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
    text = read_text(path, caller=OWNER, what="a CSV file")
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
        import pycocotools.mask  # noqa: F401  (masks are decoded later: say it now)
    except ImportError:
        raise DataError(
            f"{OWNER}: COCO JSON ('{path.name}') needs pycocotools. "
            "`pip install explainguide[coco]`; a CSV file needs nothing."
        ) from None
    text = read_text(path, caller=OWNER)
    try:
        content = json.loads(text)
        tables = [_by_id(path, kind, content[kind]) for kind in ("images", "categories")]
        return list(_coco_rows(path, content["annotations"], *tables))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, (DataError, AnnotationError)):
            raise
        raise DataError(
            f"{OWNER}: '{path}' is not COCO JSON ({type(error).__name__}: {error}). It needs "
            "images, annotations and categories."
        ) from None


def _by_id(path: Path, kind: str, entries: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    table: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if entry["id"] in table:
            raise DataError(f"{OWNER}: '{path}' has id {entry['id']!r} twice in {kind}.")
        table[entry["id"]] = entry
    return table


def _coco_rows(
    path: Path,
    annotations: list[dict[str, Any]],
    images: dict[Any, dict[str, Any]],
    categories: dict[Any, dict[str, Any]],
) -> Iterator[BoxRow]:
    empty: list[str] = []
    for number, annotation in enumerate(annotations):
        where = f"annotation {annotation.get('id', f'number {number}')}"
        if annotation.get("iscrowd"):
            continue
        image = _entry(path, where, annotation, "image_id", images)
        category = _entry(path, where, annotation, "category_id", categories)
        for entry, key, kind in ((image, "file_name", "image"), (category, "name", "category")):
            if key not in entry:
                raise DataError(
                    f"{OWNER}: '{path}', {where}: its {kind} {entry.get('id')!r} has no {key!r}. COCO "
                    "names every image by file_name and every category by name."
                )
        x, y, width, height = _coco_box(path, where, annotation)
        if 0 in (width, height):  # train2017 has two of them
            empty.append(where)
            continue
        box = (x, y, x + width, y + height)
        check_box(path, where, box)
        size = None
        if "height" in image and "width" in image:
            size = (int(image["height"]), int(image["width"]))
        mask = None
        if annotation.get("segmentation"):
            mask = CocoMask(annotation["segmentation"], size)
        yield BoxRow(where, image["file_name"], box, category["name"], size, mask)
    if empty:
        warnings.warn(
            f"{OWNER}: '{path}' has {len(empty)} boxes without a width or a height "
            f"({short_list(empty)}), which are left out.",
            ExplainGuideWarning,
            stacklevel=6,
        )


def _entry(
    path: Path, where: str, annotation: dict[str, Any], key: str, table: dict[Any, Any]
) -> dict[str, Any]:
    """The image or the category of an annotation."""
    if key not in annotation:
        raise DataError(
            f"{OWNER}: '{path}', {where}: no {key!r}.{did_you_mean(key, annotation)} COCO's "
            "annotations have image_id, category_id and bbox."
        )
    if annotation[key] not in table:
        raise DataError(
            f"{OWNER}: '{path}', {where}: {key} {annotation[key]!r} is not in the file."
        )
    found: dict[str, Any] = table[annotation[key]]
    return found


def _coco_box(path: Path, where: str, annotation: dict[str, Any]) -> tuple[float, ...]:
    """(x, y, width, height): as given, or around the polygons."""
    given = annotation.get("bbox")
    polygons = annotation.get("segmentation")
    if given is None and isinstance(polygons, list) and polygons:
        corners = np.concatenate([np.asarray(p, dtype=float).reshape(-1, 2) for p in polygons])
        low, high = corners.min(0), corners.max(0)
        return (*low.tolist(), *(high - low).tolist())
    try:
        x, y, width, height = (float(v) for v in given)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise DataError(
            f"{OWNER}: '{path}', {where}: bbox is {given!r}. Give [x, y, width, height], or polygons "
            "in segmentation, around which the box is taken."
        ) from None
    return x, y, width, height
