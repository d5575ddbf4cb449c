"""Textured MNIST: digits filled with one texture before another."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import Transforms, read_image
from explainguide.datasets.pasting import cut_square
from explainguide.datasets.photos import Objects, Photos, masked_object
from explainguide.datasets.published import as_number, find_root, pictures_in
from explainguide.errors import (
    DataError,
    OptionError,
    check_number,
    check_option,
    did_you_mean,
    operation,
)

__all__ = ["TexturedMNIST"]

_SPLITS = ("train", "val", "test")
_DIGITS = 10
_SIZE, _MIN_SIZE = 224, 28
_IMAGES, _LABELS = 0x00000803, 0x00000801  # the first four bytes of MNIST's files
_HELD_OUT = 5  # one picture of so many of a texture is for the test alone


class TexturedMNIST(Photos):
    """Handwritten digits, filled with one texture before another that may tell the class.

    Items are ``(image, label, annotation)``: by default the image is float32 ``(3, size, size)`` in
    [0, 1], the label an int, the annotation the box around the digit's pixels (and the mask).

    Each class has a texture of its own for its digit, and textures of its own for the background.
    With the probability `background_randomness` (p of the paper) an image's background is of any
    texture instead, and with `digit_randomness` (q) its digit; digit and background of an image are
    never of one texture. With p = 0 and q = 1 in training and p = q = 1 in the test, as in the
    paper, the background gives the class away in training only.

    Images are made when they are asked for, of MNIST's files and two pictures of textures, and are the
    same each time: the seed sets them. A picture that cannot be decoded gives a warning that names it
    and the item ``None``. Test images are made of other pictures of a texture than training images.

    Args:
        root: The folder of MNIST's four files, packed (``train-images-idx3-ubyte.gz``) or unpacked.
        image_set: ``"train"`` and ``"val"``, nine tenths and one tenth of MNIST's training images,
            always the same; ``"test"``.
        textures: The folder of the Describable Textures Dataset (DTD), which holds ``images`` with one
            folder a texture.
        background_randomness: In [0, 1]. None: 0 in training and validation, 1 in the test.
        digit_randomness: In [0, 1].
        digit_textures: Ten names of textures, for the digits 0 to 9; ``"all"`` of the folder. None: the
            first ten of the folder.
        background_textures: Ten names or more, dealt out to the classes in turn, beginning with
            class 9; ``"all"``. None: all others. They may be the digits' too.
        size: Height and width of the images in pixels, from 28 on.
        digit: Side of the square that the digit is drawn in; a smaller one than `size` lies anywhere in
            the image. None: `size`.
        masks: Whether annotations hold ``"masks"``, the digit's pixels.
        annotated: Fraction of the images that keep their annotation, in [0, 1].
        seed: Seed of textures, places and of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: Names of the ten classes.
        labels: ``(N,)`` int64.
        digit_textures: Names of the digits' textures.
        background_textures: Names of the backgrounds' textures.
        textures_of: ``(N, 2)`` int64, indices of the digit's and the background's texture.
        annotated: ``(N,)`` bool, which images keep their annotation.

    Raises:
        DataError: If a folder or a file is not in the published form, or holds too few textures.
        OptionError: If an argument is not one of those allowed.

    References:
        Adachi et al., 2022, and the supplement, A and C.

    Example:
        >>> data = TexturedMNIST("mnist", "train", textures="dtd")  # doctest: +SKIP
        >>> image, label, annotation = data[0]  # doctest: +SKIP
    """

    @operation("TexturedMNIST")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train",
        *,
        textures: str | os.PathLike[str],
        background_randomness: float | None = None,
        digit_randomness: float = 1.0,
        digit_textures: Sequence[str] | str | None = None,
        background_textures: Sequence[str] | str | None = None,
        size: int = _SIZE,
        digit: float | None = None,
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("image_set", image_set, _SPLITS)
        if background_randomness is None:
            background_randomness = float(image_set == "test")
        check_number("background_randomness", background_randomness, least=0, most=1)
        check_number("digit_randomness", digit_randomness, least=0, most=1)
        check_number("size", size, least=_MIN_SIZE, whole=True)
        digit = size if digit is None else digit
        check_number("digit", digit, least=_MIN_SIZE, most=size, whole=True)
        self.size, self.digit, self.seed, self.with_masks = size, int(digit), seed, masks
        self._split = _SPLITS.index(image_set)

        draw_annotated(1, annotated, seed)  # refuses a wrong fraction or seed before files are read
        self._ink, labels = _read_digits(Path(root), image_set)
        home = find_root(textures, ["images"], name="textures") / "images"
        self.digit_textures, self.background_textures = _choose(
            home, digit_textures, background_textures
        )
        self._pictures = {
            name: _pictures_of(home / name, test=image_set == "test")
            for name in {*self.digit_textures, *self.background_textures}
        }
        self.textures_of = self._deal(labels, background_randomness, digit_randomness)
        kept = draw_annotated(len(labels), annotated, seed)
        super().__init__(
            labels, [str(d) for d in range(_DIGITS)], annotated=kept, transforms=transforms
        )

    def _read(self, index: int) -> tuple[Tensor, Objects | None] | None:
        rng = np.random.default_rng([self.seed, self._split, index])
        names = [
            of[int(place)]
            for of, place in zip(
                (self.digit_textures, self.background_textures),
                self.textures_of[index],
                strict=True,
            )
        ]
        squares = []
        for name in names:
            pictures = self._pictures[name]
            picture = read_image(pictures[int(rng.integers(len(pictures)))], self._told)
            if picture is None:
                return None
            squares.append(cut_square(picture.as_subclass(Tensor), self.size, rng))
        pixels = torch.zeros(self.size, self.size, dtype=torch.bool)
        top, left = rng.integers(0, self.size - self.digit + 1, size=2).tolist()
        ink = torch.from_numpy(self._ink[index].astype(np.float32))[None]
        drawn = functional.resize(ink, [self.digit, self.digit], antialias=True)[0] >= 127.5
        pixels[top : top + self.digit, left : left + self.digit] = drawn
        image = tv_tensors.Image(torch.where(pixels, *squares))
        if not self.annotated[index]:
            return image, None
        return image, masked_object(pixels.numpy(), int(self.labels[index]), masks=self.with_masks)

    def _deal(self, labels: Tensor, p: float, q: float) -> Tensor:
        """The textures of digits and backgrounds, ``(N, 2)``, never one for both."""
        rng, count = np.random.default_rng([self.seed, self._split]), len(labels)
        backgrounds = len(self.background_textures)
        # Class c has backgrounds c + 1, c + 11, ...: not the digit's, where the lists are the same.
        of_class = [np.arange((c + 1) % _DIGITS, backgrounds, _DIGITS) for c in range(_DIGITS)]
        digit = labels.numpy().copy()
        turn = rng.random(count)
        background = np.array(
            [of_class[c][int(t * len(of_class[c]))] for c, t in zip(digit, turn, strict=True)]
        )
        any_background = rng.random(count) < p
        background = np.where(any_background, rng.integers(0, backgrounds, count), background)
        any_digit = rng.random(count) < q
        digit = np.where(any_digit, rng.integers(0, _DIGITS, count), digit)
        names = np.array(self.digit_textures), np.array(self.background_textures)
        same = names[0][digit] == names[1][background]
        other_digit = (digit + rng.integers(1, _DIGITS, count)) % _DIGITS
        other_background = (background + rng.integers(1, backgrounds, count)) % backgrounds
        digit = np.where(same & any_digit, other_digit, digit)
        background = np.where(same & ~any_digit & any_background, other_background, background)
        fixed = np.flatnonzero(same & ~any_digit & ~any_background)
        if len(fixed):
            label = int(labels[fixed[0]])
            raise OptionError(
                f"digit {label} has the texture {self.digit_textures[label]!r} and the same for its "
                "background, so that it would not show. Order the names otherwise. Background j is of "
                "class j - 1 (mod 10)."
            )
        return torch.from_numpy(np.stack([digit, background], axis=1)).long()


def _read_digits(root: Path, image_set: str) -> tuple[np.ndarray, Tensor]:
    """Ink ``(N, 28, 28)`` uint8 and labels ``(N,)``."""
    stem = "t10k" if image_set == "test" else "train"
    names = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]

    def find(folder: Path, name: str) -> Path | None:
        files = (folder / f"{name}{end}" for end in ("", ".gz"))
        return next((file for file in files if file.is_file()), None)

    def holds(folder: Path) -> bool:
        return all(find(folder, name) is not None for name in names)

    folder = find_root(root, names, holds=holds)
    ink = _read_idx(find(folder, names[0]), _IMAGES)
    labels = _read_idx(find(folder, names[1]), _LABELS)
    if len(ink) != len(labels) or not len(ink):
        raise DataError(
            f"'{folder}' has {len(ink)} images and {len(labels)} labels of {stem!r}. Take both files "
            "from one place. One label an image is allowed."
        )
    if labels.max() >= _DIGITS:
        raise DataError(
            f"'{folder}' has a label {labels.max()} of {stem!r}. Take MNIST's files. Labels from 0 to "
            "9 are allowed."
        )
    if image_set != "test":
        order = np.random.default_rng(0).permutation(len(ink))
        cut = len(ink) // 10
        chosen = np.sort(order[:cut] if image_set == "val" else order[cut:])
        ink, labels = ink[chosen], labels[chosen]
    if not len(ink):
        raise DataError(
            f"split {image_set!r} is empty: '{folder}' has few images. Take MNIST's files. Ten "
            "training images or more are allowed."
        )
    return ink, torch.from_numpy(labels.astype(np.int64))


def _read_idx(path: Path | None, kind: int) -> np.ndarray:
    """The numbers of one of MNIST's files: kind and sizes as 32-bit numbers, then bytes."""
    assert path is not None
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dimensions = kind & 0xFF
        found, *shape = np.frombuffer(raw, ">u4", 1 + dimensions).tolist()
        numbers = np.frombuffer(raw, np.uint8, offset=4 * (1 + dimensions))
        if found != kind:
            raise ValueError(f"it begins with {found}, not with {kind}")
        return numbers.reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"'{path}' is not a file of MNIST ({error}). Take it anew. Files in idx form, packed by "
            "gzip or not, are allowed."
        ) from None


def _choose(
    home: Path, digits: Sequence[str] | str | None, backgrounds: Sequence[str] | str | None
) -> tuple[list[str], list[str]]:
    """Names of the textures of digits and of backgrounds."""
    there = sorted(f.name for f in home.iterdir() if f.is_dir())
    given = {"digit_textures": digits, "background_textures": backgrounds}
    named = {
        option: _names(option, value, there) for option, value in given.items() if value is not None
    }
    taken = named.get("digit_textures", there[:_DIGITS])
    others = named.get("background_textures", [name for name in there if name not in taken])
    if len(taken) < _DIGITS or len(others) < _DIGITS:
        raise DataError(
            f"{_DIGITS} textures for digits and {_DIGITS} or more for backgrounds are asked for, but "
            f"there are {len(taken)} and {len(others)} ('{home}' holds {len(there)}). Name those of "
            "digits and backgrounds, which may be the same: digit_textures='all', "
            "background_textures='all' takes every texture for both. Folders of ten textures or more "
            "are allowed."
        )
    return taken[:_DIGITS], others


def _names(option: str, value: Sequence[str] | str, there: list[str]) -> list[str]:
    if value == "all":
        return there
    names = [n.strip() for n in value.split(",")] if isinstance(value, str) else list(value)
    unknown = next((name for name in names if name not in there), None)
    if unknown is not None:
        raise OptionError(
            f"{option} names {unknown!r}, which is no texture of the folder."
            f"{did_you_mean(unknown, there)} {', '.join(there)} are allowed."
        )
    if len(set(names)) < len(names):
        raise OptionError(f"{option} names a texture twice: {names}. Name each once.")
    if option == "digit_textures" and len(names) != _DIGITS:
        raise OptionError(
            f"{option} names {len(names)} textures. Name one a digit. Ten names, or 'all', are allowed."
        )
    return names


def _pictures_of(folder: Path, *, test: bool) -> list[Path]:
    """The pictures of a texture that a split is made of."""
    pictures = pictures_in(folder)
    if not pictures:
        raise DataError(
            f"texture '{folder}' holds no picture. Is the archive unpacked whole? Folders of pictures "
            "are allowed."
        )
    held_out = pictures[_HELD_OUT - 1 :: _HELD_OUT]
    rest = [path for place, path in enumerate(pictures) if (place + 1) % _HELD_OUT]
    return (held_out or pictures) if test else rest


def open_data(
    image_set: str,
    root: str,
    *,
    textures: str,
    size: int = _SIZE,
    masks: bool = False,
    background_randomness: str | None = None,
    digit_randomness: str = "1",
    digit_textures: str | None = None,
    background_textures: str | None = None,
    digit: str | None = None,
) -> TexturedMNIST:
    # The background of the test is always random: it is the question whether that matters.
    p = None
    if background_randomness is not None and image_set != "test":
        p = as_number("background_randomness", background_randomness)
    side = None if digit is None else as_number("digit", digit)
    return TexturedMNIST(
        root,
        image_set,
        textures=textures,
        size=size,
        masks=masks,
        background_randomness=p,
        digit_randomness=as_number("digit_randomness", digit_randomness),
        digit_textures=digit_textures,
        background_textures=background_textures,
        digit=int(side) if side is not None and side.is_integer() else side,
    )
