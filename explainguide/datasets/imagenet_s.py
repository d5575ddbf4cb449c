"""ImageNet-S: images of ImageNet with their pixels' classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from explainguide.annotations.masks import boxes_around
from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import Transforms
from explainguide.datasets.photos import Objects, Photos
from explainguide.datasets.published import class_folders, find_root, read_mask, refuse_values
from explainguide.errors import DataError, did_you_mean, operation

__all__ = ["ImageNetS"]

_OTHER, _IGNORED = 0, 1000


class ImageNetS(Photos):
    """Images of 50, 300 or 919 classes of ImageNet, some with the class of every pixel.

    Items are ``(image, label, annotation)``: by default the image is float32 ``(3, H, W)`` in [0, 1] at
    its own size (a batch needs transforms that resize), the label an int. The annotation has one object
    for each class in the image, most often the image's own alone: the box around its pixels (and the
    mask). Images without a mask have none.

    A mask is a PNG whose pixels are of class ``R + 256 * G``: 0 is anything else, 1000 is left open and
    belongs to nothing, and 1 is the first class.

    An image that cannot be decoded, or whose mask is of another size, gives a warning that names it and
    the item ``None``.

    Args:
        root: ``ImageNetS50``, ``ImageNetS300`` or ``ImageNetS919``.
        image_set: The name of a folder: ``"train-semi"`` (ten images a class, with masks),
            ``"validation"`` (with masks), ``"train"`` (all images; those of ``"train-semi"`` have
            masks).
        masks: Whether annotations hold ``"masks"``.
        annotated: Fraction of the images that may keep their annotation, in [0, 1].
        seed: Seed of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: The tags of WordNet, sorted, as ``"n01443537"``.
        labels: ``(N,)`` int64.
        paths: The image files.
        annotated: ``(N,)`` bool, which images have a mask and keep it.

    Raises:
        DataError: If the folder is not in the published form.
        OptionError: If an argument is not one of those allowed.

    References:
        Gao et al., 2022, Large-scale Unsupervised Semantic Segmentation.

    Example:
        >>> data = ImageNetS("ImageNetS50", "train-semi", masks=True)  # doctest: +SKIP
        >>> image, label, annotation = data[0]  # doctest: +SKIP
    """

    @operation("ImageNetS")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "train-semi",
        *,
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        folder = find_root(root, ["validation"])
        self.with_masks = masks
        home = folder / image_set
        names = [f.name for f in folder.iterdir() if f.is_dir()]
        splits = sorted(name for name in names if not name.endswith("-segmentation"))
        if image_set not in splits:
            raise DataError(
                f"'{folder}' has no split {image_set!r}.{did_you_mean(image_set, splits)} "
                f"{', '.join(map(repr, splits))} are allowed."
            )
        classes, paths, labels = class_folders(home)
        # The masks of train are those of train-semi.
        sources = ["train-semi", image_set] if image_set == "train" else [image_set]
        masked = [folder / f"{source}-segmentation" for source in sources]
        there = {
            f"{path.name}/{mask}": path / mask
            for source in masked
            if source.is_dir()
            for path in source.iterdir()
            if path.is_dir()
            for mask in os.listdir(path)
        }
        self._masks: list[Path | None] = [
            there.get(f"{path.parent.name}/{path.stem}.png") for path in paths
        ]
        known = torch.tensor([mask is not None for mask in self._masks])
        super().__init__(
            torch.from_numpy(labels),
            classes,
            annotated=draw_annotated(len(paths), annotated, seed) & known,
            transforms=transforms,
            paths=paths,
        )

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        path = self._masks[index]
        assert path is not None
        pixels = read_mask(path, self.paths[index], size)
        if pixels is None:
            return None
        count = self.num_classes
        meant = f"R + 256 * G from 0 to {count}, and {_IGNORED},"
        if pixels.ndim != 3:
            raise DataError(
                f"'{path}' is a mask without colours, but its classes are R + 256 * G. Take the "
                "published file. PNG files in RGB are allowed."
            )
        ids = pixels[..., 0].astype(np.int64) + 256 * pixels[..., 1].astype(np.int64)
        found = np.unique(ids)
        refuse_values(path, found[(found > count) & (found != _IGNORED)].tolist(), meant)
        shown = found[(found != _OTHER) & (found != _IGNORED)]
        objects: Tensor = torch.from_numpy(ids == shown[:, None, None])
        boxes = boxes_around(objects) if len(shown) else torch.zeros(0, 4)
        return Objects(boxes, torch.from_numpy(shown - 1), objects if self.with_masks else None)
