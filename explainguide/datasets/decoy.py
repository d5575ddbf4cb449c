"""digits, and a coloured patch in a corner that gives the answer away."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import tv_tensors

from explainguide.annotations.masks import boxes_around
from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import (
    Annotation,
    Transforms,
    check_transforms,
    make_annotation,
    transform_item,
)
from explainguide.errors import OptionError, check_option, operation

__all__ = ["DecoyDigits"]

# One colour a class, RGB in [0, 1]: saturated, and at least 0.5 apart.
_PALETTE = (
    (1.0, 0.0, 0.0),  # red
    (0.0, 1.0, 0.0),  # green
    (0.0, 0.0, 1.0),  # blue
    (1.0, 1.0, 0.0),  # yellow
    (0.0, 1.0, 1.0),  # cyan
    (1.0, 0.0, 1.0),  # magenta
    (1.0, 0.5, 0.0),  # orange
    (0.5, 0.0, 1.0),  # violet
    (0.0, 0.5, 1.0),  # azure
    (1.0, 0.6, 0.7),  # pink
)
_TEST_IMAGES = 540
_SIZE, _MIN_SIZE = 48, 24
_INK = 0.15  # upscaled ink below this is left out, so that the mask holds all that is painted
_NOISE = 0.1  # background, uniform in [0, this)
# Of the digits. Fainter or smaller patches beside brighter digits make a weaker lure: with patches
# of 8 of 48 pixels and brightness 0.6 to 1, an unguided network keeps two thirds of its accuracy
# when the colours are random; with 10 pixels and 0.4 to 0.8, a tenth.
_BRIGHTNESS = (0.4, 0.8)
_GAP = 1  # free pixels between the patch and the nearest place for a digit


class DecoyDigits(Dataset[tuple[Any, int, Annotation | None]]):
    r"""Handwritten digits beside a coloured patch that tells the class, until it no longer does.

    A grey digit, half the image wide, lies at a random place on a dark, slightly noisy canvas. A
    patch, a fifth of the image wide, fills one of the four corners. In training its colour names
    the class; in the test it is the colour of a class drawn without regard to the digit. A network
    that trusts the colour falls to about chance, one that looks at the digit does not. The digit's
    region never meets the patch's. Without a patch even the former finds most digits: it learned
    them, but lets the colour overrule them, so random colours are the test and no patch is not.

    Everything is embedded (scikit-learn's 1,797 digits of 8 x 8 pixels) and made in memory, in
    well under a second. The split is always the same, stratified, 1,257 for training and 540 for
    the test, so runs with different seeds do not leak. ``seed`` sets places, corners, brightness,
    noise, the test's colours and the choice of annotated images. Datasets that differ only in
    ``decoy`` agree in every pixel outside the patch.

    Items are ``(image, label, annotation)``: the image float32 ``(3, size, size)`` in [0, 1], the
    label an int, the annotation one box (and mask) around the digit's ink, or ``None``.

    Args:
        split: ``"train"`` or ``"test"``.
        size: Height and width of the images in pixels, from 24 on.
        decoy: What the patch's colour says: ``"class"`` (the digit's class), ``"random"`` (a class
            drawn uniformly and independently), ``"none"`` (no patch). ``None``: ``"class"`` for the
            training split, ``"random"`` for the test.
        seed: Seed of everything random, an integer from 0 on.
        annotated: Fraction of the images that keep their annotation, in [0, 1]; the others yield
            ``None``. The choice of a smaller fraction is a subset of that of a larger one.
        masks: Whether annotations hold ``"masks"``, the digit's pixels, beside the boxes.
        transforms: Joint transforms (``torchvision.transforms.v2``), called as
            ``transforms(image, target)``; boxes and masks stay in step.

    Attributes:
        images: ``(N, 3, size, size)`` float32 in [0, 1], before transforms.
        labels: ``(N,)`` int64.
        boxes: ``(N, 4)`` float32, XYXY in pixels, tight around the ink; known for every image.
        masks: ``(N, size, size)`` bool, the pixels with ink; known for every image.
        decoys: ``(N,)`` int64, the class that the patch's colour stands for; -1 without a patch.
        patches: ``(N, 4)`` float32, XYXY in pixels, where the patch is (or would be).
        annotated: ``(N,)`` bool, which images keep their annotation.
        classes: Names of the ten classes.

    Raises:
        OptionError: If an argument is not one of those allowed.

    Example:
        >>> data = DecoyDigits("train", seed=0)
        >>> image, label, annotation = data[0]
        >>> len(data), tuple(image.shape), annotation["boxes"].shape
        (1257, (3, 48, 48), torch.Size([1, 4]))
        >>> bool((data.decoys == data.labels).all())
        True
    """

    multilabel = False

    @operation("DecoyDigits")
    def __init__(
        self,
        split: str = "train",
        *,
        size: int = _SIZE,
        decoy: str | None = None,
        seed: int = 0,
        annotated: float = 1.0,
        masks: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("split", split, ("train", "test"))
        if decoy is None:
            decoy = "class" if split == "train" else "random"
        check_option("decoy", decoy, ("class", "random", "none"))
        if isinstance(size, bool) or not isinstance(size, int) or size < _MIN_SIZE:
            raise OptionError(
                f"size must be an integer from {_MIN_SIZE} pixels on, but got {size!r}."
            )
        self.split, self.size, self.decoy, self.seed = split, size, decoy, seed
        self.with_masks = masks
        self.transforms = check_transforms(transforms)
        self.classes = [str(digit) for digit in range(10)]
        self.num_classes = 10

        ink, self.labels = _load_digits(split)
        self.annotated = draw_annotated(len(ink), annotated, seed)
        self._build(ink)

    def __len__(self) -> int:
        return len(self.labels)

    @operation("DecoyDigits")
    def __getitem__(self, index: int) -> tuple[Any, int, Annotation | None]:
        # A clone, since a transform may work in place and the images are kept for all epochs.
        image = tv_tensors.Image(self.images[index].clone())
        label = int(self.labels[index])
        annotation = None
        if self.annotated[index]:
            annotation = make_annotation(
                self.boxes[index].clone()[None],
                self.labels[index].clone()[None],
                (self.size, self.size),
                self.masks[index].clone()[None] if self.with_masks else None,
            )
        image, annotation = transform_item(self.transforms, image, annotation)
        return image, label, annotation

    def __repr__(self) -> str:
        return (
            f"DecoyDigits({self.split!r}, size={self.size}, decoy={self.decoy!r}, "
            f"seed={self.seed}): {len(self)} images, {int(self.annotated.sum())} annotated"
        )

    def _stream(self, purpose: int) -> np.random.Generator:
        # One stream a purpose, so that an option that draws less does not shift what others draw.
        return np.random.default_rng([self.seed, int(self.split == "test"), purpose])

    def _build(self, ink: Tensor) -> None:
        """Place digits and patches, paint them, and read the boxes off the ink."""
        count, size, digit, patch = len(ink), self.size, self.size // 2, round(self.size / 5)
        strokes = F.interpolate(ink[:, None], (digit, digit), mode="bicubic")[:, 0].clamp(0, 1)
        strokes = strokes * (strokes > _INK)

        # Places are drawn for a patch at the top left, then mirrored into the patch's own corner.
        side = size - digit + 1
        free = (np.arange(side)[:, None] >= patch + _GAP) | (np.arange(side) >= patch + _GAP)
        place = self._stream(0).choice(np.flatnonzero(free), size=count)
        corner = self._stream(1).integers(0, 2, size=(count, 2))  # (bottom, right)
        top_left = np.stack(np.divmod(place, side), axis=1)
        top_left = np.where(corner == 1, size - digit - top_left, top_left)

        position = torch.arange(digit)
        rows = torch.from_numpy(top_left[:, 0])[:, None, None] + position[:, None]
        columns = torch.from_numpy(top_left[:, 1])[:, None, None] + position
        alpha = torch.zeros(count, size, size)
        alpha[torch.arange(count)[:, None, None], rows, columns] = strokes

        noise = torch.from_numpy(
            self._stream(2).random((count, 3, size, size), dtype=np.float32) * _NOISE
        )
        brightness = torch.from_numpy(self._stream(3).uniform(*_BRIGHTNESS, count)).float()
        images = noise * (1 - alpha[:, None]) + (brightness[:, None, None] * alpha)[:, None]

        start = torch.from_numpy(corner * (size - patch))
        where = torch.cat([start.flip(1), start.flip(1) + patch], dim=1)
        self.decoys = self._colours(count)
        if self.decoy != "none":
            line = torch.arange(size)
            down = (line >= where[:, 1:2]) & (line < where[:, 3:4])
            across = (line >= where[:, 0:1]) & (line < where[:, 2:3])
            colour = torch.tensor(_PALETTE)[self.decoys][:, :, None, None]
            covered = (down[:, :, None] & across[:, None, :])[:, None]
            images = torch.where(covered, (colour * (1 - _NOISE)) + noise, images)

        self.images = images
        self.masks = alpha > 0
        self.boxes = boxes_around(self.masks)
        self.patches = where.float()

    def _colours(self, count: int) -> Tensor:
        if self.decoy == "class":
            return self.labels.clone()
        if self.decoy == "none":
            return torch.full((count,), -1)
        return torch.from_numpy(self._stream(4).integers(0, 10, size=count))


def _load_digits(split: str) -> tuple[Tensor, Tensor]:
    """Ink ``(N, 8, 8)`` in [0, 1] and labels ``(N,)`` of one split."""
    # Here and not above: scikit-learn takes a second to import and only this dataset needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    indices = train_test_split(
        np.arange(len(digits.target)),
        test_size=_TEST_IMAGES,
        stratify=digits.target,
        random_state=0,
    )[split == "test"]
    ink = torch.from_numpy(digits.images[indices]).float() / 16
    return ink, torch.from_numpy(digits.target[indices]).long()


def open_data(
    image_set: str, *, size: int = _SIZE, masks: bool = False, decoy: str | None = None
) -> DecoyDigits:
    return DecoyDigits(image_set, size=size, masks=masks, decoy=decoy)
