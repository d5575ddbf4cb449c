"""Only some images keep their annotation: which ones, and a dataset in which it is so."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from explainguide.errors import OptionError, operation
from explainguide.host import host_array

__all__ = ["LimitedAnnotations", "draw_annotated"]


def draw_annotated(count: int, fraction: float, seed: int, *, option: str = "annotated") -> Tensor:
    """Choose which images keep their annotation.

    The choice depends on the seed and the number of images alone, and a smaller fraction is a
    subset of a larger one, so that a curve over fractions compares like with like.

    Args:
        count: Number of images.
        fraction: In [0, 1]; ``round(fraction * count)`` images, at least one above 0.
        seed: From 0 on.
        option: What the caller calls the fraction, for the message.

    Returns:
        ``(count,)`` bool.

    Raises:
        OptionError: For a fraction outside [0, 1], or a seed that is none.

    Example:
        >>> draw_annotated(1000, 0.1, 0).sum()
        tensor(100)
    """
    if isinstance(fraction, bool) or not isinstance(fraction, Real):
        raise OptionError(f"{option} must be a number in [0, 1], but got {fraction!r}.")
    if not 0 <= fraction <= 1:  # NaN neither
        percent = float(fraction) if 1 < fraction <= 100 else 10.0
        raise OptionError(
            f"{option} is {fraction}. For {percent:g}% write {option}={percent / 100:g}. The share of "
            "images that keep their annotation, in [0, 1], is allowed."
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise OptionError(f"seed must be an integer from 0 on, but got {seed!r}.")
    keep = max(round(fraction * count), min(count, 1) if fraction > 0 else 0)
    order = np.random.default_rng([seed, count]).permutation(count)
    annotated = torch.zeros(count, dtype=torch.bool)
    annotated[torch.from_numpy(order[:keep])] = True
    return annotated


class LimitedAnnotations(Dataset):
    """A dataset in which only a fixed random fraction of the images keeps its annotation.

    The choice is that of `draw_annotated`, and so that of ``annotated=`` of this package's datasets.

    Args:
        dataset: Items ``(image, labels, annotation)``, or with a group behind.
        fraction: In [0, 1]; at least one image keeps its annotation when it is above 0.
        seed: Chooses the images.

    Attributes:
        kept: ``(len(dataset),)`` bool.
    """

    @operation("LimitedAnnotations")
    def __init__(self, dataset: Any, fraction: float, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.kept = draw_annotated(len(dataset), fraction, seed, option="fraction")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if item is None or host_array(self.kept)[index]:
            return item
        image, labels, _, *group = item
        return image, labels, None, *group
