"""Animals of PASCAL VOC with their masks, in memory, and the same animals in front of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from explainguide.datasets import VOC_CLASSES

CLASSES = ("cat", "dog", "horse", "sheep", "cow")
MARGIN = 0.15  # of the object's longer side, left and right, above and below
_VOID = 127  # masks are resized as grey images


@dataclass(frozen=True)
class Animals:
    """Images ``(N, 3, S, S)`` uint8, masks ``(N, S, S)`` bool of the labelled class, labels."""

    images: Tensor
    masks: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Animals:
        """Some of them."""
        return Animals(self.images[rows], self.masks[rows], self.labels[rows])

    def before(self, scenes: Tensor, *, seed: int = 0) -> Animals:
        """The same animals, each cut out by its mask and put in front of a scene drawn at random."""
        drawn = torch.randint(
            len(scenes), (len(self),), generator=torch.Generator().manual_seed(seed)
        )
        images = torch.where(self.masks[:, None], self.images, scenes[drawn])
        return Animals(images, self.masks, self.labels)

    def hidden(self) -> Animals:
        """The surroundings alone: the box around the mask is grey, so that no outline is left."""
        rows, columns = self.masks.any(2), self.masks.any(1)
        box = _filled(rows)[:, :, None] & _filled(columns)[:, None]
        return Animals(self.images.masked_fill(box[:, None], 128), self.masks, self.labels)


def read_animals(root: str, split: str, side: int) -> Animals:
    """Squares around the objects of a split whose lines are an id and a class."""
    folder = Path(root)
    images, masks, labels = [], [], []
    for line in (folder / "ImageSets" / f"{split}.txt").read_text().splitlines():
        name, kind = line.split()
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as file:
            mask = np.array(file) == VOC_CLASSES.index(kind) + 1
        box = window(mask)
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as file:
            images.append(_resized(file.convert("RGB"), side, box))
        grey = _resized(Image.fromarray(mask.astype(np.uint8) * 255), side, box)
        masks.append(grey > _VOID)
        labels.append(CLASSES.index(kind))
    channels_first = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Animals(channels_first, torch.from_numpy(np.stack(masks)), torch.tensor(labels))


def read_scenes(root: str, side: int) -> Tensor:
    """All images of a folder of folders, ``(N, 3, S, S)`` uint8."""
    images = []
    for path in sorted(Path(root).glob("*/*.jpg")):
        with Image.open(path) as file:
            images.append(_resized(file.convert("RGB"), side, None))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def made_up(count: int, side: int, seed: int) -> tuple[Animals, Tensor]:
    """Bright squares on noise, and scenes of noise, for a trial without data."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, side, side)
    noise, scenes = (
        torch.randint(0, 90, shape, generator=generator, dtype=torch.uint8) for _ in range(2)
    )
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    masks[:, side // 4 : side // 2, side // 3 : side // 4 * 3] = True
    labels = torch.arange(count) % len(CLASSES)
    bright = (labels[:, None] * 30 + torch.tensor([100, 60, 20]))[:, :, None, None]
    images = torch.where(masks[:, None], bright.to(torch.uint8), noise)
    return Animals(images, masks, labels), scenes


def augmentation(side: int) -> v2.Transform:
    """Random crops and flips, of image and mask alike."""
    crop = v2.RandomResizedCrop(side, (0.4, 1.0), (0.8, 1.25), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def augmented(data: Animals, rows: Tensor, transform: v2.Transform) -> Animals:
    """A batch, each image changed on its own."""
    pairs = [transform(data.images[i], tv_tensors.Mask(data.masks[i])) for i in rows.tolist()]
    images, masks = (torch.stack(part) for part in zip(*pairs, strict=True))
    return Animals(images, masks.as_subclass(torch.Tensor), data.labels[rows])


def window(mask: np.ndarray) -> tuple[float, float, float, float]:
    """A square around the object, with a margin, as far as the image reaches: x1, y1, x2, y2."""
    spans = []
    sides = [(np.flatnonzero(mask.any(axis)), mask.shape[1 - axis]) for axis in (0, 1)]
    wanted = max(found[-1] + 1 - found[0] for found, _ in sides) * (1 + 2 * MARGIN)
    for found, size in sides:
        length = min(wanted, size)
        start = (found[0] + found[-1] + 1 - length) / 2
        start = min(max(start, 0), size - length)
        spans.append((float(start), float(start + length)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _resized(image: Image.Image, side: int, box: tuple[float, ...] | None) -> np.ndarray:
    method = Image.Resampling.BILINEAR
    return np.array(image.resize((side, side), method, box, reducing_gap=3))


def _filled(line: Tensor) -> Tensor:
    """True from the first to the last True of each row."""
    return (line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0)
