"""ImageNet-9 of the backgrounds challenge: objects and backgrounds, taken apart and put together."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import Transforms, warn_skipped
from explainguide.datasets.photos import Objects, Photos, masked_object
from explainguide.datasets.published import class_folders, find_root, refuse_values
from explainguide.errors import DataError, check_option, first_line, operation

__all__ = ["ImageNet9"]

_WITH_OBJECT = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")
_VARIANTS = (*_WITH_OBJECT, "no_fg", "only_bg_b", "only_bg_t")


class ImageNet9(Photos):
    """Nine kinds of things before their own background, another's, or none.

    Items are ``(image, label, annotation)``: by default the image is float32 ``(3, H, W)`` in
    [0, 1] (224 wide and high as published), the label an int. There are no boxes. The images of
    ``original/val`` have published masks, ``fg_mask/val/<class>/<image>.npy``; they hold for
    whatever else shows the same object in the same place, by its file name. With them the
    annotation is the box around the object's pixels (and the mask), else None.

    An image or mask that cannot be read gives a warning that names it and the item ``None``.

    Args:
        root: The folder of the variants, ``bg_challenge``.
        image_set: ``"val"``, the benchmark, or ``"train"``, of the archives for training.
        variant: ``"original"``; ``"mixed_same"``, ``"mixed_rand"``, ``"mixed_next"``: the object before
            the background of an image of its class, of any class, of the next class; ``"only_fg"``:
            the object on black; ``"no_fg"``: the object blackened; ``"only_bg_b"``,
            ``"only_bg_t"``: its box blackened, or filled with background.
        masks: Whether annotations hold ``"masks"``.
        annotated: Fraction of the images that may keep their annotation, in [0, 1].
        seed: Seed of that choice.
        transforms: Joint transforms, called as ``transforms(image, target)`` on a uint8 image.

    Attributes:
        classes: Names of the folders without their numbers: dog, bird, vehicle, ...
        labels: ``(N,)`` int64.
        paths: The image files.
        annotated: ``(N,)`` bool, which images have a mask and keep it.

    Raises:
        DataError: If the folder is not in the published form.
        OptionError: If an argument is not one of those allowed.

    References:
        Xiao et al., 2020, Noise or Signal.

    Example:
        >>> data = ImageNet9("bg_challenge", variant="mixed_rand")  # doctest: +SKIP
        >>> image, label, annotation = data[0]  # doctest: +SKIP
    """

    @operation("ImageNet9")
    def __init__(
        self,
        root: str | os.PathLike[str],
        image_set: str = "val",
        *,
        variant: str = "original",
        masks: bool = False,
        annotated: float = 1.0,
        seed: int = 0,
        transforms: Transforms | None = None,
    ) -> None:
        check_option("image_set", image_set, ("train", "val"))
        check_option("variant", variant, _VARIANTS)
        folder = find_root(root, [variant])
        self.variant, self.with_masks = variant, masks
        home = folder / variant / image_set
        if not home.is_dir():
            there = sorted(f.name for f in (folder / variant).iterdir() if f.is_dir())
            raise DataError(
                f"'{folder / variant}' has no split {image_set!r}. The archive of the benchmark holds "
                f"'val' alone, those for training 'train' too. {', '.join(map(repr, there)) or 'None'} "
                "of this folder are allowed."
            )
        folders, paths, labels = class_folders(home)
        self._masks: list[Path | None] = [None] * len(paths)
        if variant in _WITH_OBJECT:
            published = folder / "fg_mask" / image_set
            there_is = {
                name: set(os.listdir(published / name))
                for name in folders
                if (published / name).is_dir()
            }
            for place, path in enumerate(paths):
                file = f"{_of_object(path.stem)}.npy"
                if file in there_is.get(path.parent.name, ()):
                    self._masks[place] = published / path.parent.name / file
        known = torch.tensor([mask is not None for mask in self._masks])
        super().__init__(
            torch.from_numpy(labels),
            [name.partition("_")[2] if name[:2].isdigit() else name for name in folders],
            annotated=draw_annotated(len(paths), annotated, seed) & known,
            transforms=transforms,
            paths=paths,
        )

    def _objects(self, index: int, size: tuple[int, int]) -> Objects | None:
        path = self._masks[index]
        assert path is not None
        try:
            mask = np.load(path, allow_pickle=False)
        except Exception as error:  # numpy raises whatever a broken file drives it to
            warn_skipped(path, f"cannot be read as a mask ({first_line(error)})")
            return None
        if mask.shape != size:
            warn_skipped(path, f"is {mask.shape} and its image {size} (height, width)")
            return None
        refuse_values(path, sorted(set(np.unique(mask).tolist()) - {0, 1}), "0 and 1")
        return masked_object(mask > 0, int(self.labels[index]), masks=self.with_masks)


def _of_object(stem: str) -> str:
    """The image that an object was taken from: mixed images are called ``fg_<image>_bg_<image>``."""
    if not stem.startswith("fg_"):
        return stem
    return stem.removeprefix("fg_").partition("_bg_")[0]
