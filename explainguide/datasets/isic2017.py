"""ISIC 2017: photographs of skin with a lesion, its outline and its diagnosis."""

from __future__ import annotations

import os

import numpy as np
import torch

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import Transforms
from explainguide.datasets.photos import Objects, Photos, masked_object
from explainguide.datasets.published import (
    find_missing,
    find_root,
    read_mask,
    read_table,
    refuse_values,
)
from explainguide.errors import DataError, check_option, operation

__all__ = ["ISIC2017"]

_NAMES = {"train": "Training", "val": "Validation", "test": "Test_v2"}
_DIAGNOSES = ("melanoma", "seborrheic_keratosis")
_CLASSES = ("nevus", *_DIAGNOSES)


class ISIC2017(Photos):
    """Lesions of the skin: nevus, melanoma or seborrheic keratosis, each with its pixels.

    Items are ``(image, label, annotation)``: by default the image is float32 ``(3, H, W)`` in [0, 1] at
    its own size (a batch needs transforms that resize), the label an int, the annotation the box around
    the lesion's pixels (and the mask).

    An image that cannot be decoded, or whose mask is of another size, gives a warning that names it and
    the item ``None``. Images that are listed and not there are left out, with one warning.

    Args:
        root: The folder that holds the archives of a split, unpacked: for training
            ``ISIC-2017_Training_Data``, ``ISIC-2017_Training_Part1_GroundTruth`` and
            ``ISIC-2017_Training_Part3_GroundTruth.csv``.
        image_set: ``"train"``, ``"val"`` or ``"test"`` (2,000, 150 and 600 images).
        masks: Whether annotations hold ``"masks"``.
        annotated: Fraction of the images that may keep their annotation, in [0, 1].
        seed: Seed of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: Nevus (neither of the others), melanoma, seborrheic_keratosis.
        labels: ``(N,)`` int64.
        paths: The image files.
        annotated: ``(N,)`` bool, which images have a mask and keep it.
        missing: Images that are listed and not there.

    Raises:
        DataError: If the folder or a file is not in the published form.
        OptionError: If an argument is not one of those allowed.

    References:
        Codella et al., 2018; Adachi et al., 2022, supplement A.

    Example:
        >>> data = ISIC2017("isic2017", "train", masks=True)  # doctest: +SKIP
        >>> image, label, annotation = data[0]  # doctest: +SKIP
    """

    @operation("ISIC2017")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train",
        *,
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("image_set", image_set, _NAMES)
        stem = f"ISIC-2017_{_NAMES[image_set]}"
        table = f"{stem}_Part3_GroundTruth.csv"
        folder = find_root(root, [f"{stem}_Data", table])
        self.with_masks = masks
        rows = read_table(folder / table, ("image_id", *_DIAGNOSES))
        if not rows:
            raise DataError(
                f"split {image_set!r} is empty: '{folder / table}' lists no image. Take the published "
                "file. A line for each image is allowed."
            )
        labels = [_diagnosis(row, table) for row in rows]
        paths = [folder / f"{stem}_Data" / f"{row['image_id']}.jpg" for row in rows]
        lost = find_missing(paths, listed_in=f"'{table}'")
        self.missing = [path for path, gone in zip(paths, lost, strict=True) if gone]
        kept = np.flatnonzero(~lost)
        home = folder / f"{stem}_Part1_GroundTruth"
        there = set(os.listdir(home)) if home.is_dir() else set()
        names = [f"{rows[i]['image_id']}_segmentation.png" for i in kept]
        self._masks = [home / name for name in names]
        known = torch.tensor([name in there for name in names])
        super().__init__(
            torch.tensor([labels[i] for i in kept]),
            _CLASSES,
            annotated=draw_annotated(len(kept), annotated, seed) & known,
            transforms=transforms,
            paths=[paths[i] for i in kept],
        )

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        path = self._masks[index]
        pixels = read_mask(path, self.paths[index], size)
        if pixels is None:
            return None
        pixels = pixels if pixels.ndim == 2 else pixels.max(axis=2)
        refuse_values(path, sorted(set(np.unique(pixels).tolist()) - {0, 255}), "0 and 255")
        return masked_object(pixels > 0, int(self.labels[index]), masks=self.with_masks)


def _diagnosis(row: dict[str, str], table: str) -> int:
    """The class of a row; none of the two diagnoses is a nevus."""
    shown = []
    for name in _DIAGNOSES:
        if row[name] not in ("0", "1", "0.0", "1.0"):
            raise DataError(
                f"'{table}' has {name} {row[name]!r} for '{row['image_id']}'. Take the published file. "
                "0.0 and 1.0 are allowed."
            )
        if float(row[name]):
            shown.append(name)
    if len(shown) > 1:
        raise DataError(
            f"'{table}' says that '{row['image_id']}' shows {' and '.join(shown)}. Leave one. One "
            "diagnosis an image, or none for a nevus, is allowed."
        )
    return _CLASSES.index(shown[0]) if shown else 0
