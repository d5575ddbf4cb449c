"""The files of a VOC year folder: where it is, what its splits list, what its XML files say."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torchvision.datasets import VOCDetection
from torchvision.datasets.folder import IMG_EXTENSIONS

from explainguide.datasets.items import class_hint, require_folder, short_list
from explainguide.datasets.text_files import read_text, read_xml
from explainguide.errors import DataError, OptionError, did_you_mean

__all__ = ["VOC_CLASSES", "VOCRecord", "find_year_folder", "read_record", "read_split"]


VOC_CLASSES: tuple[str, ...] = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_DIFFICULT = {"0": False, "false": False, "unspecified": False, "1": True, "true": True}
_PARTS = ("Annotations", "ImageSets", "JPEGImages")


class VOCRecord(NamedTuple):
    """What one XML file says; numpy, since many small tensors are costly to send to workers."""

    boxes: np.ndarray  # (M, 4) float32, XYXY in pixels, 0-based, right and bottom exclusive
    labels: np.ndarray  # (M,) int64
    difficult: np.ndarray  # (M,) bool
    size: tuple[int, int] | None  # (H, W), None where the file does not say


def find_year_folder(root: Path, year: str | None) -> Path:
    """Find the folder that holds Annotations, ImageSets and JPEGImages, at or below ``root``."""
    require_folder(root)
    if any((root / part).is_dir() for part in _PARTS):
        folder = root
    else:
        wanted = f"VOC{year}" if year else "VOC20[0-9][0-9]"
        below = [f for base in (root, root / "VOCdevkit") for f in sorted(base.glob(wanted))]
        if len(below) > 1:
            raise OptionError(
                f"'{root}' holds several years. Say which with year=. "
                f"Found: {', '.join(f.name for f in below)}."
            )
        if not below:
            raise DataError(
                f"'{root}' holds no folder {wanted}. Give the year folder (it holds "
                "Annotations, ImageSets and JPEGImages), the VOCdevkit folder, or the one above it."
            )
        folder = below[0]
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        there = ", ".join(sorted(f.name for f in folder.iterdir() if f.is_dir())) or "no folder"
        raise DataError(
            f"'{folder}' has no {' and no '.join(missing)} folder. Unpack the whole archive there, or "
            f"give another folder. A VOC year folder holds {', '.join(_PARTS)}. Found: {there}."
        )
    return folder


def read_split(folder: Path, image_set: str, *, include_difficult: bool) -> list[str]:
    """List the image ids of a split.

    ``train`` is ImageSets/Main/train.txt or, failing that, ImageSets/train.txt;
    ``Segmentation/val`` is ImageSets/Segmentation/val.txt. In VOC's files for one class the second
    column is 1 (shows the class), 0 (only difficult objects of it) or -1: the images that show it
    are taken, those with 0 if difficult objects count. Any other second column is ignored.
    """
    sets = folder / "ImageSets"
    for path in (sets / "Main" / f"{image_set}.txt", sets / f"{image_set}.txt"):
        if path.is_file():
            break
    else:
        names = _split_names(sets)
        plain = [n for n in names if n.rpartition("_")[0] not in VOC_CLASSES] or names
        raise DataError(
            f"'{folder}' has no split {image_set!r}.{did_you_mean(image_set, names)} Name one that is "
            f"there, or add a list in '{sets / 'Main'}'. Available: {', '.join(plain) or 'none'}."
        )
    wanted = {"1", "0"} if include_difficult else {"1"}
    ids = []
    for line in read_text(path).splitlines():
        words = line.split()
        if words and (len(words) == 1 or words[1] not in {"1", "0", "-1"} or words[1] in wanted):
            ids.append(words[0])
    if not ids:
        raise DataError(
            f"'{path}' lists no image that shows the class, or none at all. Use another split. One id "
            "of an image a line is allowed; in the lists of one class, those marked 1 are taken."
        )
    return ids


def _split_names(sets: Path) -> list[str]:
    names = []
    for path in sorted(sets.rglob("*.txt")):
        name = path.relative_to(sets).with_suffix("").as_posix()
        names.append(name.removeprefix("Main/"))
    return names


def read_record(path: Path, class_index: dict[str, int]) -> VOCRecord:
    """Read one XML file; its boxes are 1-based and inclusive, those returned are not."""
    root = read_xml(path)
    if root.tag != "annotation":
        raise DataError(
            f"'{path}' is not a VOC annotation (its root is <{root.tag}>, not <annotation>). Convert "
            "it to VOC's form. A file whose root is <annotation> is allowed."
        )
    tree = VOCDetection.parse_voc_xml(root)["annotation"]
    size = _read_size(tree)
    boxes, labels, difficult = [], [], []
    for item in tree.get("object", []) if isinstance(tree, dict) else []:
        name, box = _read_object(path, item)
        if name not in class_index:
            raise DataError(
                f"'{path}' has an object of class {name!r}."
                f"{class_hint(name, list(class_index))} classes= names other classes than VOC's; "
                f"allowed now: {', '.join(class_index)}."
            )
        if size is not None and not (box[0] < size[1] and box[1] < size[0] and min(box[2:]) > 0):
            raise DataError(
                f"'{path}' has a box of {name!r} that lies outside the image, "
                f"{box} in an image of {size} (height, width). Correct it, or take the object out. "
                "Corners in pixels, from 1 on, inside the image are allowed."
            )
        boxes.append(box)
        labels.append(class_index[name])
        difficult.append(_read_difficult(path, item))
    return VOCRecord(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(difficult, dtype=bool),
        size,
    )


def _read_object(path: Path, item: Any) -> tuple[str, tuple[float, float, float, float]]:
    try:
        name = item["name"]
        x1, y1, x2, y2 = (float(item["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"'{path}' has an object without a name or a readable bndbox ({error!r}). Complete "
            "it, or take it out. An object needs name and bndbox with xmin, ymin, xmax, ymax in pixels."
        ) from None
    # Not <=, since an inclusive box of one pixel has x1 == x2; the negation catches NaN.
    if not (x1 <= x2 and y1 <= y2 and max(x2, y2) < float("inf")):
        raise DataError(
            f"'{path}' has an inverted or non-finite box of {name!r}, "
            f"xmin={x1:g}, ymin={y1:g}, xmax={x2:g}, ymax={y2:g}. Correct it, or take the object out. "
            "xmin up to xmax and ymin up to ymax are allowed."
        )
    return name, (x1 - 1, y1 - 1, x2, y2)


def _read_difficult(path: Path, item: Any) -> bool:
    flag = str(item.get("difficult") or "0").strip().lower()
    if flag not in _DIFFICULT:
        raise DataError(
            f"'{path}' has an object with difficult {flag!r}. Write 0 or 1. "
            f"{', '.join(_DIFFICULT)} are allowed."
        )
    return _DIFFICULT[flag]


def _read_size(tree: Any) -> tuple[int, int] | None:
    try:
        height, width = (int(float(tree["size"][key])) for key in ("height", "width"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def image_files(folder: Path, listed: Collection[str]) -> dict[str, str]:
    """Image id to file name, by one listing instead of a look at every file."""
    files: dict[str, str] = {}
    wanted = set(listed)
    for name in sorted(f.name for f in (folder / "JPEGImages").iterdir()):
        path = Path(name)
        if path.suffix.lower() in IMG_EXTENSIONS and path.stem in wanted:
            if path.stem in files:
                raise DataError(
                    f"'{folder / 'JPEGImages'}' has two images of one id, "
                    f"'{files[path.stem]}' and '{name}'. Leave one. Each id may have one file."
                )
            files[path.stem] = name
    return files


def describe_missing(image_set: str, listed: int, no_image: list[str], no_xml: list[str]) -> str:
    """Say in one line which listed ids lack a file."""
    parts = []
    if no_image:
        parts.append(f"{len(no_image)} without a file in JPEGImages ({short_list(no_image)})")
    if no_xml:
        parts.append(f"{len(no_xml)} without a file in Annotations ({short_list(no_xml)})")
    return f"split {image_set!r} lists {listed} images, {' and '.join(parts)}"
