"""The files of published data sets: the right folder, tables, masks, and what is listed and missing."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from torchvision.datasets.folder import IMG_EXTENSIONS

from explainguide.datasets.items import require_folder, short_list, warn_skipped
from explainguide.datasets.orientation import turn_mask
from explainguide.datasets.pictures import read_header
from explainguide.datasets.text_files import read_text
from explainguide.errors import DataError, OptionError, did_you_mean, warn

__all__ = [
    "as_number",
    "class_folders",
    "find_missing",
    "find_root",
    "pictures_in",
    "read_mask",
    "read_table",
    "refuse_values",
]

_MOST_FOLDERS = 50  # that are looked through for the one that was meant


def find_root(
    root: str | os.PathLike[str],
    parts: Sequence[str],
    *,
    holds: Callable[[Path], bool] | None = None,
    name: str = "root",
) -> Path:
    """The folder of a data set, if it is that; else it is looked for near by, and told.

    Args:
        root: What was given.
        parts: Names that are in the folder.
        holds: Whether a folder is the right one, where the names do not say it.
        name: What the caller calls it, for the message.

    Raises:
        DataError: If it is another, with the right one where it lies above or below.
    """
    root = Path(root)
    require_folder(root, name=name)

    def fits(folder: Path) -> bool:
        if holds is not None:
            return holds(folder)
        return all((folder / part).exists() for part in parts)

    if fits(root):
        return root
    full = root.absolute()
    near = next((f for f in (*_below(root), full.parent, full.parent.parent) if fits(f)), None)
    missing = [part for part in parts if not (root / part).exists()] or parts
    there = short_list(sorted(f.name for f in root.iterdir())) or "nothing"
    fix = f"Give '{near}', which has it." if near is not None else f"It holds {there}."
    raise DataError(
        f"{name} '{root}' has no {' and no '.join(missing)}. {fix} A folder that holds "
        f"{', '.join(parts)} is allowed."
    )


def _below(root: Path) -> Iterator[Path]:
    """Folders one and two levels below, as far as they are few."""
    level = [root]
    for _ in range(2):
        level = [f for folder in level for f in sorted(folder.iterdir()) if f.is_dir()]
        if len(level) > _MOST_FOLDERS:
            return
        yield from level


def find_missing(paths: Sequence[Path], *, listed_in: str) -> np.ndarray:
    """Which of the listed images are not there, by one listing of each folder.

    Args:
        paths: The images.
        listed_in: What lists them, for the message: ``"split 'train'"``.

    Returns:
        ``(N,)`` bool.

    Raises:
        DataError: If none is there.

    Warns:
        ExplainGuideWarning: With how many are not, and the names of the first.
    """
    there: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = np.array([path.name not in there[path.parent] for path in paths], dtype=bool)
    if missing.any():
        names = [str(path) for path, lost in zip(paths, missing, strict=True) if lost]
        text = f"{listed_in} lists {len(paths)} images, {len(names)} of them without a file"
        text = f"{text} ({short_list(names)})"
        if missing.all():
            raise DataError(
                f"{text}. Is the archive unpacked whole? Files under the names that are listed are "
                "allowed."
            )
        warn(f"{text}; they are left out.")
    return missing


def class_folders(folder: Path) -> tuple[list[str], list[Path], np.ndarray]:
    """The images of a folder with one folder a class.

    Returns:
        Names of the classes, sorted; files; and the class of each, ``(N,)``.

    Raises:
        DataError: If there are none.
    """
    require_folder(folder, name="folder")
    classes = sorted(f.name for f in folder.iterdir() if f.is_dir())
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = pictures_in(folder / name)
        paths += found
        labels += [label] * len(found)
    if not paths:
        there = short_list(sorted(f.name for f in folder.iterdir())) or "nothing"
        raise DataError(
            f"'{folder}' holds no images in folders of classes. It holds {there}. One folder of "
            "images a class is allowed."
        )
    return classes, paths, np.array(labels)


def pictures_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted; none where there is no folder."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [
        folder / n for n in names if n.lower().endswith(IMG_EXTENSIONS) and not n.startswith(".")
    ]


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Args:
        path: The file.
        columns: Those that are needed; others may be there.

    Raises:
        DataError: If it is not there, or lacks a column or a value.
    """
    if not path.is_file():
        raise DataError(
            f"'{path}' does not exist. Is the archive unpacked whole? A CSV file with the columns "
            f"{', '.join(columns)} is allowed."
        )
    reader = csv.DictReader(io.StringIO(read_text(path, kind="a CSV file")))
    found = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = found
    for name in columns:
        if name not in found:
            raise DataError(
                f"'{path}' has no column {name!r}.{did_you_mean(name, found)} It has "
                f"{', '.join(found) or 'none'}. The columns {', '.join(columns)} are needed."
            )
    rows = []
    for number, row in enumerate(reader, start=2):
        short = next((name for name in columns if row[name] is None), None)
        if short is not None:
            raise DataError(
                f"'{path}', line {number}: no value of {short!r}. Write it, or leave the line out. "
                f"Lines with {', '.join(columns)} are allowed."
            )
        rows.append({name: row[name].strip() for name in columns})
    return rows


def read_mask(path: Path, picture: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels of a mask file, of the size of its picture; None, after a warning, if they are not.

    Args:
        path: The mask.
        picture: The picture; one that was turned by its EXIF orientation has its mask turned.
        size: (H, W) of the picture, upright.

    Returns:
        ``(H, W)``, or ``(H, W, 3)`` of one in colours.
    """
    try:
        with PILImage.open(path) as file:
            plain = {"RGBA": "RGB", "LA": "RGB", "1": "L"}.get(file.mode, file.mode)
            pixels = np.array(file.convert(plain))
    except Exception as error:  # PIL raises whatever a broken file drives it to
        warn_skipped(path, f"cannot be read as a mask ({type(error).__name__})")
        return None
    if pixels.shape[:2] != size:
        header = read_header(picture)
        if header is not None and header.upright == size and header.stored == pixels.shape[:2]:
            channels = np.atleast_3d(pixels).transpose(2, 0, 1)
            turned = np.stack([turn_mask(one, header.orientation) for one in channels], axis=-1)
            return turned.reshape(size + pixels.shape[2:])
        warn_skipped(path, f"is {pixels.shape[:2]} and its image {size} (height, width)")
        return None
    return pixels


def refuse_values(path: Path, values: Collection[int], meant: str) -> None:
    """Raise for values of a mask that the published ones do not have.

    Args:
        path: The mask.
        values: Those that it should not hold.
        meant: The published values, for the message: ``"0 and 255"``.

    Raises:
        DataError: If there are any.
    """
    if len(values):
        raise DataError(
            f"'{path}' is a mask with the value {next(iter(values))}, which the published masks do not "
            f"have. Was it saved anew, in other colours? Take the published file. {meant} are allowed."
        )


def as_number(option: str, value: float | str) -> float:
    """A number, which the command line gives as text.

    Raises:
        OptionError: If the text is none.
    """
    try:
        return float(value)
    except ValueError:
        raise OptionError(f"{option} is {value!r}. Write 0.5. A number is allowed.") from None
