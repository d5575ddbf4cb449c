"""Files of boxes: CSV with a header, and COCO JSON."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from explainguide.annotations.segmentation import (
    draw_segmentation,
    segmentation_box,
    segmentation_size,
)
from explainguide.datasets.items import short_list
from explainguide.datasets.orientation import turn_mask
from explainguide.datasets.text_files import read_text
from explainguide.errors import AnnotationError, DataError, did_you_mean, first_line, warn

__all__ = [
    "BoxRow",
    "CocoFile",
    "decode_masks",
    "read_boxes",
    "read_coco",
    "read_coco_file",
    "read_csv",
]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_REQUIRED = ("image", *_CORNERS)
_COLUMNS = (*_REQUIRED, "label")


class BoxRow(NamedTuple):
    """One box of a file."""

    where: str  # "line 3" or "annotation 17", for messages
    image: str  # path as the file writes it
    box: tuple[float, float, float, float]  # XYXY in pixels
    label: str | None  # name of a class; None: that of the image
    size: tuple[int, int] | None = None  # (H, W) of the image, where the file knows it
    segmentation: Any = None  # polygons or run lengths, as COCO has them


def read_boxes(path: Path) -> list[BoxRow]:
    """Read a file by its ending, ``.csv`` or ``.json``."""
    readers = {".csv": read_csv, ".json": read_coco}
    if not path.is_file():
        raise DataError(f"boxes file '{path}' does not exist.")
    if path.suffix.lower() not in readers:
        raise DataError(
            f"boxes file '{path.name}' ends in {path.suffix!r}. "
            "Allowed: .csv (image,xmin,ymin,xmax,ymax[,label]) and .json (COCO)."
        )
    return readers[path.suffix.lower()](path)


def read_csv(path: Path) -> list[BoxRow]:
    """Read ``image,xmin,ymin,xmax,ymax[,label]``, in any order of columns."""
    text = read_text(path, kind="a CSV file")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        _check_header(path, [name.strip() for name in reader.fieldnames or []])
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        return [_csv_row(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"'{path}' is not a CSV file ({error}).") from None


def _check_header(path: Path, columns: list[str]) -> None:
    form = f"Allowed: {','.join(_REQUIRED)}[,label], separated by commas"
    if not columns:
        raise DataError(f"'{path}' is empty. {form}.")
    unknown = [c for c in columns if c not in _COLUMNS]
    if unknown:
        hint = did_you_mean(unknown[0], _COLUMNS)
        raise DataError(f"'{path}', line 1: unknown column {short_list(unknown)}.{hint} {form}.")
    absent = [c for c in _REQUIRED if c not in columns]
    if absent:
        raise DataError(f"'{path}', line 1: no column {short_list(absent, 5)}. {form}.")


def _csv_row(path: Path, line: int, row: dict[Any, Any]) -> BoxRow:
    where = f"line {line}"
    values = [row[c] for c in _REQUIRED]
    if None in row or None in values:
        raise DataError(f"'{path}', {where}: not as many values as the header has columns.")
    try:
        x1, y1, x2, y2 = (float(row[c]) for c in _CORNERS)
    except ValueError as error:
        raise AnnotationError(f"'{path}', {where}: {error}.") from None
    check_box(path, where, (x1, y1, x2, y2))
    return BoxRow(
        where, row["image"].strip(), (x1, y1, x2, y2), (row.get("label") or "").strip() or None
    )


def check_box(path: Path, where: str, box: tuple[float, float, float, float]) -> None:
    """Refuse values that cannot be the corners of a box in pixels."""
    x1, y1, x2, y2 = box
    if not all(math.isfinite(v) for v in box):
        raise AnnotationError(f"'{path}', {where}: box {box} is not finite.")
    if x2 <= x1 or y2 <= y1:
        raise AnnotationError(
            f"'{path}', {where}: box {box} is inverted or empty. A box is xmin, ymin, "
            "xmax, ymax with xmin < xmax and ymin < ymax; are these x, y, width, height?"
        )
    if min(box) >= 0 and max(box) <= 1:
        raise AnnotationError(
            f"'{path}', {where}: box {box} lies in [0, 1]. Boxes are in pixels: multiply "
            "by the width and height of the image."
        )


class CocoFile(NamedTuple):
    """What a COCO JSON file holds.

    Attributes:
        images: File name to (H, W), None where the file does not say; in the file's order.
        classes: Names of the categories, by their ids.
        rows: The objects, without crowds, which are not one object.
        crowds: File name and category of each crowd.
    """

    images: dict[str, tuple[int, int] | None]
    classes: list[str]
    rows: list[BoxRow]
    crowds: list[tuple[str, str]]


def read_coco(path: Path) -> list[BoxRow]:
    """Read the objects of a COCO JSON file; crowds, which are not one object, are left out."""
    return read_coco_file(path).rows


def read_coco_file(path: Path) -> CocoFile:
    """Read all of a COCO JSON file.

    Raises:
        DataError: If it is none, or refers to what is not in it.
        AnnotationError: If a box is inverted, not finite or in [0, 1].

    Warns:
        ExplainGuideWarning: For boxes without area, which are left out, and ids that occur twice.
    """
    try:
        importlib.import_module("pycocotools.coco")
    except ImportError:
        raise DataError(
            f"COCO JSON ('{path.name}') needs pycocotools. "
            "`pip install explainguide[coco]`; a CSV file needs nothing."
        ) from None
    try:
        content = json.loads(read_text(path, kind="a JSON file"))
    except json.JSONDecodeError as error:
        raise _not_coco(path, str(error)) from None
    if not isinstance(content, dict):
        raise _not_coco(path, f"it is a {type(content).__name__}, not an object")

    images: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    for where, entry in _entries(path, content, "images", ("id", "file_name")):
        _add(path, where, images, entry["id"], (entry["file_name"], _size_of(entry)))
    categories: dict[Any, str] = {}
    for where, entry in _entries(path, content, "categories", ("id", "name")):
        _add(path, where, categories, entry["id"], entry["name"])

    rows, empty = [], []
    for where, entry in _entries(path, content, "annotations", ("image_id", "category_id")):
        row = _coco_row(path, where, entry, images, categories)
        if _is_empty(row.box):
            empty.append(where)
            continue
        check_box(path, where, row.box)
        rows.append(row)
    if empty:
        warn(
            f"'{path}' has {len(empty)} {'box' if len(empty) == 1 else 'boxes'} of no width or no "
            f"height, left out: {short_list(empty)}."
        )
    counts = Counter(row.where for row in rows)
    repeated = [where for where, count in counts.items() if count > 1]
    if repeated:
        warn(
            f"'{path}' uses {len(repeated)} annotation id{'s' * (len(repeated) > 1)} more than once "
            f"({short_list(repeated)}); every entry is taken for an object of its own."
        )
    crowds = [
        (images[entry["image_id"]][0], categories[entry["category_id"]])
        for entry in content["annotations"]
        if _is_crowd(entry)
        and entry.get("image_id") in images
        and entry.get("category_id") in categories
    ]
    try:
        classes = [categories[key] for key in sorted(categories)]
    except TypeError:  # ids that are numbers and text
        classes = [categories[key] for key in sorted(categories, key=str)]
    return CocoFile(dict(images.values()), classes, rows, crowds)


def _not_coco(path: Path, reason: str) -> DataError:
    return DataError(
        f"'{path}' is not COCO JSON ({reason}). It needs images, annotations and "
        "categories, each a list of objects."
    )


def _entries(
    path: Path, content: dict[str, Any], table: str, required: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list in the file, with their names for messages; crowds are passed over."""
    if not isinstance(content.get(table), list):
        fault = f"no {table!r}" if content.get(table) is None else f"{table!r} is not a list"
        raise _not_coco(path, fault)
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}[table]
    for place, entry in enumerate(content[table]):
        if not isinstance(entry, dict):
            raise _not_coco(path, f"{table}[{place}] is {entry!r}")
        known = entry.get("id") is not None
        where = f"{singular} {entry['id']}" if known else f"{table}[{place}]"
        if table == "annotations" and _is_crowd(entry):
            continue
        for key in required:
            value = entry.get(key)
            if value is None:
                raise DataError(
                    f"'{path}', {where}: no {key!r}. Every {singular} needs "
                    f"{' and '.join(required)}."
                )
            if not isinstance(value, str if key in ("file_name", "name") else (int, float, str)):
                fix, allowed = "Give the id of one entry", "A number or text is"
                if key in ("file_name", "name"):
                    fix, allowed = "Write it as text, in quotes", "Text alone is"
                raise DataError(f"'{path}', {where}: {key} is {value!r}. {fix}. {allowed} allowed.")
        yield where, entry


def _add(path: Path, where: str, table: dict[Any, Any], key: Any, value: Any) -> None:
    """Enter an id; the same one again is refused where it means something else."""
    if table.setdefault(key, value) != value:
        raise DataError(
            f"'{path}', {where}: the id occurs twice, for {table[key]!r} and for "
            f"{value!r}. Number them anew; were two files joined?"
        )


def _size_of(image: dict[str, Any]) -> tuple[int, int] | None:
    """(H, W), where the file says it; some programs write 0."""
    try:
        height, width = int(image["height"]), int(image["width"])
    except (KeyError, TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _coco_row(
    path: Path, where: str, entry: dict[str, Any], images: dict[Any, Any], names: dict[Any, str]
) -> BoxRow:
    for key, table in (("image_id", images), ("category_id", names)):
        if entry[key] not in table:
            known = "images" if key == "image_id" else "categories"
            near = [k for k in table if str(k) == str(entry[key])]  # 1 and "1" are two
            fix = f"Did you mean {near[0]!r}?" if near else f"Correct it, or add it to {known!r}."
            raise DataError(
                f"'{path}', {where}: {key} {entry[key]!r} is not in the file. {fix} The ids under "
                f"{known!r} are allowed."
            )
    file_name, size = images[entry["image_id"]]
    segmentation = entry.get("segmentation") or None
    if entry.get("bbox"):
        try:
            x, y, width, height = (float(v) for v in entry["bbox"])
        except (TypeError, ValueError):
            raise DataError(
                f"'{path}', {where}: bbox {entry['bbox']!r} is not x, y, width, height. Give these "
                "four. Numbers of pixels, from the upper left corner of the image, are allowed."
            ) from None
        box = (x, y, x + width, y + height)
    elif segmentation is None:
        raise DataError(
            f"'{path}', {where}: no bbox, and no segmentation to take it from. Give bbox "
            "as x, y, width, height in pixels, or leave the annotation out."
        )
    else:
        try:
            box = segmentation_box(segmentation)
        except Exception as error:  # pycocotools raises bare Exception, among others
            raise DataError(
                f"'{path}', {where}: no bbox, and a segmentation that cannot be decoded "
                f"({first_line(error)}). Give bbox as x, y, width, height in pixels, or mend the "
                "segmentation. A list of polygons or {'size', 'counts'} is allowed."
            ) from None
        size = segmentation_size(segmentation) or size  # to be compared with the image's own
    return BoxRow(where, file_name, box, names[entry["category_id"]], size, segmentation)


def _is_crowd(entry: dict[str, Any]) -> bool:
    return entry.get("iscrowd") in (1, "1")


def _is_empty(box: tuple[float, float, float, float]) -> bool:
    """Without area in float32, as datasets keep it, but not inverted: train2017 has two."""
    x1, y1, x2, y2 = np.array(box, dtype=np.float32).tolist()
    return (x1 == x2 and y1 <= y2) or (y1 == y2 and x1 <= x2)


def decode_masks(rows: list[BoxRow], orientation: int, size: tuple[int, int]) -> Tensor | None:
    """The masks of an image's objects.

    Args:
        rows: The objects.
        orientation: EXIF's of the picture whose stored pixels they are of; 1 where they are upright.
        size: (H, W) of the upright picture.

    Returns:
        ``(M, H, W)`` of the upright picture, or None where an object has none.

    Raises:
        AnnotationError: For a segmentation that cannot be drawn, or of another size.
    """
    stored = size if orientation < 5 else (size[1], size[0])
    decoded = []
    for row in rows:
        if row.segmentation is None:
            return None
        try:
            decoded.append(turn_mask(draw_segmentation(row.segmentation, stored), orientation))
        except Exception as error:  # pycocotools raises bare Exception, among others
            raise AnnotationError(
                f"{row.where} of '{row.image}' has a segmentation that cannot be decoded "
                f"({first_line(error)}). Make it anew, or leave it out for a box alone. A list of "
                "polygons, or a dict of 'size' and 'counts', is allowed."
            ) from None
        if decoded[-1].shape != size:
            raise AnnotationError(
                f"{row.where} of '{row.image}' has a mask of {decoded[-1].shape}, and the "
                f"image is {size} (height, width). Make it anew on the image, or resize both. Masks "
                "of the size of their image are allowed."
            )
    return torch.from_numpy(np.stack(decoded))
