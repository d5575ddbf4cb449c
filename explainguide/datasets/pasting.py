"""Cutting squares out of pictures, and pasting what has a mask on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

__all__ = ["cut_square", "paste"]


def cut_square(
    picture: Tensor, side: int, rng: np.random.Generator, *, whole: bool = False
) -> Tensor:
    """A square at a random place of a picture.

    Args:
        picture: ``(3, H, W)`` uint8. One that is too small is enlarged.
        side: Of the square, in pixels.
        rng: Draws the place.
        whole: Whether the picture is made smaller too, so that its shorter side is the square's.

    Returns:
        ``(3, side, side)`` uint8.
    """
    height, width = picture.shape[-2:]
    if whole or min(height, width) < side:
        factor = side / min(height, width)
        size = [max(side, round(height * factor)), max(side, round(width * factor))]
        picture = functional.resize(picture, size, antialias=True)
    top, left = (int(rng.integers(0, n - side + 1)) for n in picture.shape[-2:])
    return picture[..., top : top + side, left : left + side]


def paste(
    picture: Tensor, mask: Tensor, canvas: Tensor, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Paste what a mask covers on another picture, resized, with soft edges.

    Colours are resized with their mask, so that none of what lay around the object comes along.

    Args:
        picture: ``(3, h, w)`` uint8.
        mask: ``(h, w)`` bool.
        canvas: ``(3, H, W)`` uint8, into which it goes.
        corner: Row and column of the upper left corner in the canvas.
        size: (rows, columns) that the picture is resized to.

    Returns:
        The canvas with the object, ``(3, H, W)`` uint8; and its pixels, ``(H, W)`` bool, those that it
        covers by half or more.
    """
    alpha = mask.float()[None]
    layers = functional.resize(torch.cat([picture * alpha, alpha]), list(size), antialias=True)
    (top, left), (rows, columns) = corner, size
    down, across = slice(top, top + rows), slice(left, left + columns)
    pasted, pixels = canvas.clone(), torch.zeros(canvas.shape[-2:], dtype=torch.bool)
    mixed = layers[:3] + (1 - layers[3:]) * canvas[:, down, across]
    pasted[:, down, across] = mixed.round().clamp(0, 255).to(torch.uint8)
    pixels[down, across] = layers[3] >= 0.5
    return pasted, pixels
