"""The Oxford-IIIT pets: 37 breeds of cats and dogs, with trimaps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import Transforms
from explainguide.datasets.photos import Objects, Photos, masked_object
from explainguide.datasets.published import find_missing, find_root, read_mask, refuse_values
from explainguide.datasets.text_files import read_text
from explainguide.errors import DataError, check_option, operation

__all__ = ["OxfordPets"]

_SPLITS = ("trainval", "train", "val", "test")
_ANIMAL, _BACKGROUND, _BORDER = 1, 2, 3
_VAL = 10  # one of so many of trainval is for validation


class OxfordPets(Photos):
    """Cats and dogs of 37 breeds, each with its pixels.

    Items are ``(image, label, annotation)``: by default the image is float32 ``(3, H, W)`` in [0, 1] at
    its own size (a batch needs transforms that resize), the label an int, the annotation the box around
    the animal's pixels (and the mask), from the trimap. The boxes in the data set's ``xmls`` are of
    heads, and are not read.

    An image that cannot be decoded, or whose trimap is of another size, gives a warning that names it
    and the item ``None``. Images that are listed and not there are left out, with one warning.

    Args:
        root: The folder that holds ``images`` and ``annotations``.
        image_set: ``"trainval"`` and ``"test"`` as published; ``"train"`` and ``"val"`` are nine tenths
            and one tenth of ``"trainval"``, always the same.
        border: Whether the border that the trimaps leave open is ``"out"`` of the animal or ``"in"``.
        masks: Whether annotations hold ``"masks"``.
        annotated: Fraction of the images that may keep their annotation, in [0, 1].
        seed: Seed of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: Names of the breeds, in the order of the published ids.
        labels: ``(N,)`` int64.
        paths: The image files.
        annotated: ``(N,)`` bool, which images have a trimap and keep it.
        missing: Images that are listed and not there.

    Raises:
        DataError: If the folder or a file is not in the published form.
        OptionError: If an argument is not one of those allowed.

    References:
        Parkhi et al., 2012; Adachi et al., 2022, supplement A, where the border is out.

    Example:
        >>> data = OxfordPets("oxford-iiit-pet", "train", masks=True)  # doctest: +SKIP
        >>> image, label, annotation = data[0]  # doctest: +SKIP
    """

    @operation("OxfordPets")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "trainval",
        *,
        border: str = "out",
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("image_set", image_set, _SPLITS)
        check_option("border", border, ("out", "in"))
        folder = find_root(root, ["images", "annotations"])
        self.with_masks, self.border = masks, border
        published = "test" if image_set == "test" else "trainval"
        file = folder / "annotations" / f"{published}.txt"
        listed = _read_list(file)
        if image_set in ("train", "val"):
            order = np.random.default_rng(0).permutation(len(listed))
            cut = len(listed) // _VAL
            chosen = order[:cut] if image_set == "val" else order[cut:]
            listed = [listed[i] for i in np.sort(chosen)]
        if not listed:
            raise DataError(
                f"split {image_set!r} of '{file}' is empty. Is the archive unpacked whole? Lines of a "
                "name, a class, a species and a breed are allowed."
            )
        ids = {
            number: _breed(name) for name, number in _read_list(folder / "annotations" / "list.txt")
        }
        ids |= {number: _breed(name) for name, number in listed}
        index = {number: place for place, number in enumerate(sorted(ids))}
        paths = [folder / "images" / f"{name}.jpg" for name, _ in listed]
        lost = find_missing(paths, listed_in=f"split {image_set!r}")
        self.missing = [path for path, gone in zip(paths, lost, strict=True) if gone]
        kept = np.flatnonzero(~lost)
        trimaps = folder / "annotations" / "trimaps"
        there = set(os.listdir(trimaps)) if trimaps.is_dir() else set()
        names = [f"{listed[i][0]}.png" for i in kept]
        self._trimaps = [trimaps / name for name in names]
        known = torch.tensor([name in there for name in names])
        super().__init__(
            torch.tensor([index[listed[i][1]] for i in kept]),
            [ids[number] for number in sorted(ids)],
            annotated=draw_annotated(len(kept), annotated, seed) & known,
            transforms=transforms,
            paths=[paths[i] for i in kept],
        )

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        path = self._trimaps[index]
        trimap = read_mask(path, self.paths[index], size)
        if trimap is None:
            return None
        if trimap.ndim != 2:
            refuse_values(path, np.unique(trimap).tolist(), _MEANT)
        found = set(np.unique(trimap).tolist())
        refuse_values(path, sorted(found - {_ANIMAL, _BACKGROUND, _BORDER}), _MEANT)
        animal = trimap == _ANIMAL
        if self.border == "in":
            animal |= trimap == _BORDER
        return masked_object(animal, int(self.labels[index]), masks=self.with_masks)


_MEANT = "1 for the animal, 2 for the background and 3 for the border"


def _read_list(path: Path) -> list[tuple[str, int]]:
    """Names of images and the published ids of their classes."""
    if not path.is_file():
        raise DataError(
            f"'{path}' does not exist. Is annotations.tar.gz unpacked beside images? The published "
            "list.txt, trainval.txt and test.txt are needed."
        )
    listed = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) < 2 or not words[1].isdigit():
            raise DataError(
                f"'{path}', line {number}: {line!r} has no class. Take the published file. Lines of a "
                "name, a class, a species and a breed are allowed."
            )
        listed.append((words[0], int(words[1])))
    return listed


def _breed(name: str) -> str:
    """``english_setter`` of ``english_setter_12``."""
    return name.rpartition("_")[0] or name
