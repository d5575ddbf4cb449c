"""What others return as maps, read as ``(N, h, w)``; the rest is refused with the remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import ShapeError
from explainguide.hooks.dynamic import wide

__all__ = ["at_image_size", "read_maps"]

_ALLOWED = "Maps (N, H, W) or (N, 1, H, W) are allowed, or smaller ones of the same proportions."


def read_maps(found: Any, images: Tensor, *, name: str, placed: bool) -> Tensor:
    """The maps of a batch as ``(N, h, w)``, floating point, on the images' device; values as they are.

    Args:
        found: What was returned: a tensor or a numpy array.
        images: ``(N, C, H, W)``.
        name: Who returned it, for the message.
        placed: Whether it is known that the maps cover the image, of whatever proportions they are.

    Raises:
        ShapeError: If it is something else, of another count, with channels, or of other proportions.
    """
    count, (height, width) = len(images), images.shape[-2:]
    maps = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
    if not isinstance(maps, Tensor) or maps.is_complex():
        kind = maps.dtype if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
        raise ShapeError(
            f"{name} returns {kind}, not maps. Return one tensor, or a numpy array, of real numbers. "
            f"{_ALLOWED}"
        )
    shape = tuple(maps.shape)
    if maps.ndim == 4 and shape[1] == 1:
        maps = maps[:, 0]
    elif maps.ndim == 4:
        last = shape[3] == 1
        fix = "Return maps.squeeze(-1)" if last else "Sum over the channels first: maps.sum(1)"
        raise ShapeError(
            f"{name} returns shape {shape} for {count} images, with a channel dimension. {fix}. "
            f"{_ALLOWED}"
        )
    if maps.ndim != 3:
        fix = "Keep the dimension of the images" if maps.ndim == 2 else "Return one map an image"
        raise ShapeError(f"{name} returns shape {shape} for {count} images. {fix}. {_ALLOWED}")
    if len(maps) != count:
        raise ShapeError(
            f"{name} returns {len(maps)} maps for {count} images. Return one map an image. {_ALLOWED}"
        )
    h, w = maps.shape[-2:]
    if (h, w) == (1, 1) != (height, width):
        raise ShapeError(
            f"{name} returns one value an image, shape {shape}, which has no place. Take a layer with "
            f"a height and a width. {_ALLOWED}"
        )
    same = abs(h * width - w * height) < min(height, width)  # up to the rounding of both sides
    if not placed and not (h <= height and w <= width and same):
        raise ShapeError(
            f"{name} returns maps of {h} x {w} for images of {height} x {width}, so that no pixel's "
            f"place is known. Resize them to the image's size. {_ALLOWED}"
        )
    maps = maps if maps.is_floating_point() else maps.float()
    return wide(maps).to(images.device)


def at_image_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``(N, h, w)`` at an image's resolution, bilinearly."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
