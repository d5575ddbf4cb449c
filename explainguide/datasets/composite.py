"""Composite: animals cut out of their photographs and pasted on scenes that may give them away."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import (
    Transforms,
    class_hint,
    read_image,
    require_folder,
    short_list,
    warn_skipped,
)
from explainguide.datasets.pasting import cut_square, paste
from explainguide.datasets.photos import Objects, Photos, masked_object, outside
from explainguide.datasets.published import as_number, find_missing, pictures_in, read_mask
from explainguide.datasets.voc_folder import (
    VOC_CLASSES,
    find_year_folder,
    image_files,
    read_record,
    read_split,
)
from explainguide.errors import (
    DataError,
    OptionError,
    check_number,
    check_option,
    did_you_mean,
    operation,
)

__all__ = ["Composite"]

_SIZE, _MIN_SIZE = 128, 32
_PAIRS: Mapping[str, str] = {"cat": "forest", "dog": "street"}
_CORRELATION = 0.95
_LONGER_SIDE = (0.5, 0.8)  # of the object, as a share of the image's
_VOID = 255
# Of ten pictures of a scene, those of a split that has no folder of its own.
_HELD_OUT = {"val": (9,), "test": (7, 8)}
_PARTS = 10


class Composite(Photos):
    """Photographs of animals on scenes: a Waterbirds of one's own, of real photographs.

    Items are ``(image, label, annotation, group)``: by default the image is float32
    ``(3, size, size)`` in [0, 1], label and group are ints. The annotation is one box (and mask)
    around the pixels that were pasted, or of the background up to four boxes, with
    `explainguide.datasets.photos.outside`.

    Each foreground of a split makes one image. The given share of each class lies on the class's
    own scene, the others evenly on the others'. Which foreground lies on which picture of a scene,
    its size and its place the seed sets; an image is the same each time. Images are made when they
    are asked for.

    An image or mask that cannot be decoded gives a warning that names it and the item ``None``.
    Foregrounds that are listed and not there are left out, with one warning.

    Args:
        root: A VOC year folder, or the folder above, with masks in ``SegmentationClass``.
            Foregrounds are the images whose objects are all of one class of `pairs`.
        image_set: ``"train"``, ``"val"`` or ``"test"``: the foregrounds of
            ``ImageSets/single_train.txt`` and so on, else of ``Segmentation/train.txt``, else of
            the split of that name.
        backgrounds: A folder of scenes, ``<scene>/...``, or with one of those for each split,
            ``train/<scene>/...``. Of ten pictures the validation has one and the test two, where they
            have no folder of their own; the training then has the others.
        pairs: Class to its own scene, two or more; or ``"cat=forest,dog=street"``.
        correlation: Share of each class on its own scene, in [0, 1]. None: 0.95 in training and
            validation, and in the test evenly on all scenes.
        task: ``"foreground"``: which animal, and the region is the animal. ``"background"``: which
            scene, and the region lies outside (*reversed*).
        size: Height and width of the images in pixels, from 32 on.
        masks: Whether annotations hold ``"masks"``.
        annotated: Fraction of the images that keep their annotation, in [0, 1].
        seed: Seed of everything random.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: The classes of `pairs`, or the scenes.
        groups: Every class on every scene: ``"cat on forest"``.
        labels: ``(N,)`` int64.
        group_of: ``(N,)`` int64.
        paths: The files of the foregrounds.
        scenes: The files of the backgrounds, one an image.
        annotated: ``(N,)`` bool, which images keep their annotation.
        missing: Foregrounds that are listed and not there.

    Raises:
        DataError: If a folder is not in the form above, or lacks a class or a scene.
        OptionError: If an argument is not one of those allowed.

    Example:
        >>> data = Composite("VOC2012", "train", backgrounds="scenes")  # doctest: +SKIP
        >>> image, label, annotation, group = data[0]  # doctest: +SKIP
    """

    @operation("Composite")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train",
        *,
        backgrounds: str | os.PathLike[str],
        pairs: Mapping[str, str] | str = _PAIRS,
        correlation: float | None = None,
        task: str = "foreground",
        size: int = _SIZE,
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("image_set", image_set, ("train", "val", "test"))
        check_option("task", task, ("foreground", "background"))
        check_number("size", size, least=_MIN_SIZE, whole=True)
        pairs = _read_pairs(pairs)
        scenes = list(dict.fromkeys(pairs.values()))
        if correlation is None:
            correlation = 1 / len(scenes) if image_set == "test" else _CORRELATION
        check_number("correlation", correlation, least=0, most=1)
        draw_annotated(1, annotated, seed)  # refuses a wrong fraction or seed before files are read
        self.task, self.size, self.seed, self.with_masks = task, size, seed, masks
        self._split = ("train", "val", "test").index(image_set)
        folder = find_year_folder(Path(root), None)
        pictures = {s: _scene(Path(backgrounds), s, image_set) for s in scenes}
        paths, kinds, self.missing = _foregrounds(folder, image_set, list(pairs))
        self._masks = [folder / "SegmentationClass" / f"{path.stem}.png" for path in paths]
        self._values = [VOC_CLASSES.index(name) + 1 for name in pairs]
        self._kinds = kinds

        rng = np.random.default_rng([seed, self._split])
        own = [scenes.index(scene) for scene in pairs.values()]
        places = _deal(kinds, own, len(scenes), correlation, rng)
        self.scenes = [
            pictures[scenes[place]][int(turn * len(pictures[scenes[place]]))]
            for place, turn in zip(places, rng.random(len(places)), strict=True)
        ]
        super().__init__(
            torch.from_numpy(kinds if task == "foreground" else places),
            list(pairs) if task == "foreground" else scenes,
            annotated=draw_annotated(len(paths), annotated, seed),
            transforms=transforms,
            paths=paths,
            groups=[f"{name} on {scene}" for name in pairs for scene in scenes],
            group_of=torch.from_numpy(kinds * len(scenes) + places),
        )

    def _read(self, index: int) -> tuple[Tensor, Objects | None] | None:
        path, file = self.paths[index], self._masks[index]
        rng = np.random.default_rng([self.seed, self._split, index])
        animal, scene = read_image(path, self._told), read_image(self.scenes[index], self._told)
        if animal is None or scene is None:
            return None
        found = read_mask(file, path, (int(animal.shape[-2]), int(animal.shape[-1])))
        if found is None:
            return None
        if found.ndim != 2 or found[found != _VOID].max(initial=0) > len(VOC_CLASSES):
            raise DataError(
                f"'{file}' holds no class indices (its largest value is {found.max()}). Take VOC's "
                f"file, with its palette. 0 to {len(VOC_CLASSES)}, and {_VOID}, are allowed."
            )
        pixels = torch.from_numpy(found == self._values[int(self._kinds[index])])
        if not pixels.any():
            warn_skipped(file, f"shows no pixel of the class of '{path.name}'")
            return None
        rows, columns = (_span(pixels.any(axis)) for axis in (1, 0))
        canvas = cut_square(scene.as_subclass(Tensor), self.size, rng, whole=True)
        cut = pixels[rows, columns]
        longer = rng.uniform(*_LONGER_SIDE) * self.size
        height, width = (max(1, round(longer * n / max(cut.shape))) for n in cut.shape)
        top, left = (int(rng.integers(self.size - n + 1)) for n in (height, width))
        source = animal.as_subclass(Tensor)[:, rows, columns]
        image, shown = paste(source, cut, canvas, (top, left), (height, width))
        if not self.annotated[index]:
            return tv_tensors.Image(image), None
        label = int(self.labels[index])
        objects = masked_object(shown.numpy(), label, masks=self.with_masks)
        if self.task == "background":
            objects = outside(objects, (self.size, self.size))
        return tv_tensors.Image(image), objects


def _span(line: Tensor) -> slice:
    """From the first to the last that is true."""
    places = torch.nonzero(line)[:, 0]
    return slice(int(places[0]), int(places[-1]) + 1)


def _read_pairs(pairs: Mapping[str, str] | str) -> dict[str, str]:
    """Class to scene, checked."""
    if isinstance(pairs, str):
        parts = [part.partition("=") for part in pairs.split(",")]
        if not all(name and scene for name, _, scene in parts):
            raise OptionError(
                f"pairs is {pairs!r}. Write it as 'cat=forest,dog=street'. Classes and their scenes "
                "are allowed."
            )
        read = {name.strip(): scene.strip() for name, _, scene in parts}
    else:
        read = dict(pairs)
    for name in read:
        if name not in VOC_CLASSES:
            raise OptionError(
                f"pairs has the class {name!r}.{class_hint(name, VOC_CLASSES)} "
                f"{', '.join(VOC_CLASSES)} are allowed."
            )
    if len(read) < 2 or len(set(read.values())) < 2:
        raise OptionError(
            f"pairs is {read}. Name two classes or more, with two scenes or more. "
            "'cat=forest,dog=street' is allowed."
        )
    return read


def _scene(backgrounds: Path, scene: str, image_set: str) -> list[Path]:
    """The pictures of a scene for a split."""
    require_folder(backgrounds, name="backgrounds")
    lacking = [split for split in _HELD_OUT if not (backgrounds / split).is_dir()]
    homes = (backgrounds / image_set, backgrounds / "train")
    home = next((f for f in homes if f.is_dir()), backgrounds)
    pictures = pictures_in(home / scene)
    if not pictures:
        there = sorted(f.name for f in home.iterdir() if f.is_dir())
        near = [*home.glob(f"*/{scene}"), *home.glob(f"*/*/{scene}"), home.parent / scene]
        above = next((f.parent for f in near if f.is_dir()), None)
        fix = did_you_mean(scene, there)
        if above is not None:
            right = above.parent if above.name in ("train", "val", "test") else above
            fix = f" Give '{right}', which has it."
        raise DataError(
            f"'{home}' has no pictures of the scene {scene!r}.{fix} It holds "
            f"{short_list(there) or 'no folder'}. A folder of pictures for each scene, or in train and "
            "test, is allowed."
        )
    if image_set not in lacking and image_set != "train":
        return pictures
    taken = [image_set] if image_set in lacking else lacking
    parts = {place for split in taken for place in _HELD_OUT[split]}
    held = [
        path
        for place, path in enumerate(pictures)
        if (place % _PARTS in parts) == (image_set in lacking)
    ]
    if not held:
        raise DataError(
            f"'{home / scene}' has {len(pictures)} pictures, of which none is for the split "
            f"{image_set!r}. Give ten or more, or a folder for each split. train, val and test are "
            "allowed."
        )
    return held


def _foregrounds(
    folder: Path, image_set: str, names: list[str]
) -> tuple[list[Path], np.ndarray, list[str]]:
    """Images that show one class and have a mask, the place of that class, and what is missing."""
    options = (f"single_{image_set}", f"Segmentation/{image_set}", image_set)
    sets = folder / "ImageSets"
    chosen = next((name for name in options if (sets / f"{name}.txt").is_file()), image_set)
    listed = read_split(folder, chosen, include_difficult=False)
    files = image_files(folder, listed)
    images = [folder / "JPEGImages" / files.get(i, f"{i}.jpg") for i in listed]
    described = [folder / "Annotations" / f"{i}.xml" for i in listed]
    lost = find_missing(images, listed_in=f"split {chosen!r}")
    lost |= find_missing(described, listed_in=f"split {chosen!r}, for Annotations,")
    missing = [i for i, gone in zip(listed, lost, strict=True) if gone]
    masked = {f.stem for f in folder.glob("SegmentationClass/*.png")}
    index = {name: place for place, name in enumerate(VOC_CLASSES)}
    paths, kinds = [], []
    for path, xml, gone in zip(images, described, lost, strict=True):
        if gone or path.stem not in masked:
            continue
        shown = {VOC_CLASSES[label] for label in read_record(xml, index).labels}
        if len(shown) == 1 and (name := shown.pop()) in names:
            paths.append(path)
            kinds.append(names.index(name))
    absent = [name for place, name in enumerate(names) if place not in kinds]
    if absent:
        raise DataError(
            f"split {chosen!r} of '{folder}' has no image of {' and no image of '.join(absent)} alone "
            "with a mask in SegmentationClass. Name other classes in pairs. Classes that it shows with "
            "masks are allowed."
        )
    return paths, np.array(kinds), missing


def _deal(
    kinds: np.ndarray, own: list[int], scenes: int, correlation: float, rng: np.random.Generator
) -> np.ndarray:
    """The scene of each image: the exact share of each class on its own, the others evenly."""
    places = np.zeros(len(kinds), dtype=np.int64)
    for kind, home in enumerate(own):
        members = rng.permutation(np.flatnonzero(kinds == kind))
        others = [scene for scene in range(scenes) if scene != home]
        cut = round(correlation * len(members))
        places[members[:cut]] = home
        places[members[cut:]] = np.resize(others, len(members) - cut)
    return places


def open_data(
    image_set: str,
    root: str,
    *,
    backgrounds: str,
    size: int = _SIZE,
    masks: bool = False,
    pairs: str | None = None,
    correlation: str | None = None,
    task: str = "foreground",
) -> Composite:
    # In the test the scenes stay even: it is the question whether they matter.
    share = None
    if correlation is not None and image_set != "test":
        share = as_number("correlation", correlation)
    return Composite(
        root,
        image_set,
        backgrounds=backgrounds,
        size=size,
        masks=masks,
        pairs=_PAIRS if pairs is None else pairs,
        correlation=share,
        task=task,
    )
