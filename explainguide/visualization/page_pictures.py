"""Pictures within a page: images, maps on them, and boxes, with words for who cannot see them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import ShapeError
from explainguide.visualization.overlays import (
    Box,
    Look,
    Sign,
    blend,
    checked_boxes,
    checked_image,
    checked_map,
)
from explainguide.visualization.page import safe

__all__ = [
    "as_image",
    "as_map",
    "colour_ramp",
    "map_alone",
    "map_on",
    "outlines",
    "picture",
    "shrink",
    "where",
]

_LONGEST = 320  # pixels; a page with 50 images and their maps stays near a megabyte
_QUALITY = 82
_ALONE = 160  # pixels a side, of a map without an image


def _look(sign: Sign) -> Look:
    """How maps lie on images in a page: on grey, as in `panel`."""
    return Look(sign, 0.9, 99.5, grey=True).checked()


def as_image(name: str, image: Any) -> Tensor:
    """A PIL image, an array ``(H, W, 3)`` or a tensor ``(3, H, W)`` as a tensor in [0, 1].

    Raises:
        ShapeError: For another shape or type.
        OptionError: For values outside of [0, 1], or of 0 to 255 for whole numbers.
    """
    if isinstance(image, PIL.Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ShapeError(
                f"{name} has shape {image.shape}. {_array_fix(image)}. An array must be (H, W, 3)."
            )
        whole = image.dtype == np.uint8
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        image = image.float() / 255 if whole else image
    return checked_image(name, image)


def _array_fix(image: np.ndarray) -> str:
    if image.ndim == 3 and image.shape[0] == 3:
        return "Pass image.transpose(1, 2, 0)"
    if image.ndim == 3 and image.shape[-1] == 4:
        return "Pass image[..., :3]"
    return "Pass PIL.Image.fromarray(image)"


def as_map(name: str, attribution: Any) -> Tensor:
    """An array or a tensor ``(h, w)`` as a finite tensor in float64.

    Raises:
        ShapeError: For another shape or type.
        OptionError: For a value that is not finite.
    """
    if isinstance(attribution, np.ndarray):
        attribution = torch.from_numpy(np.array(attribution))
    return checked_map(name, attribution)


def shrink(image: Tensor) -> Tensor:
    """The image with at most 320 pixels a side."""
    height, width = image.shape[-2:]
    scale = _LONGEST / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    small = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
    return small[0].clamp(0, 1)


def outlines(name: str, boxes: Any, image: Tensor) -> list[Box]:
    """The boxes of an image, as `panel` checks them."""
    if isinstance(boxes, np.ndarray):
        boxes = torch.from_numpy(np.array(boxes))
    return checked_boxes(name, boxes, image)


def picture(
    image: Tensor, alt: str, *, boxes: list[Box] | None = None, size: tuple[int, int] | None = None
) -> str:
    """An image with boxes on it, as HTML.

    Args:
        image: ``(3, h, w)`` in [0, 1].
        alt: Its text alternative.
        boxes: In pixels of `size`.
        size: Height and width of the image that the boxes lie in; by default those of `image`.
    """
    height, width = size or (int(image.shape[-2]), int(image.shape[-1]))
    html = f'<img src="{_data(image)}" alt="{safe(alt)}" width="{width}" height="{height}">'
    rects = "".join(
        f'<rect class="{side}" x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"/>'
        for x1, y1, x2, y2 in boxes or ()
        # A light line inside a dark one: one of the two is seen on any background.
        for side in ("dark", "light")
    )
    if rects:
        view = f'viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
        html += f'<svg class="boxes" aria-hidden="true" {view}>{rects}</svg>'
    return f'<div class="shot">{html}</div>'


def _data(image: Tensor) -> str:
    pixels = (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    form = "webp" if PIL.features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form, quality=_QUALITY)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def map_on(image: Tensor, attribution: Tensor, sign: Sign) -> Tensor:
    """A map on an image, ``(3, h, w)``, both checked."""
    return blend(image, attribution, _look(sign))


def map_alone(attribution: Tensor, sign: Sign) -> Tensor:
    """A map without an image, on light grey, large enough to see."""
    height, width = attribution.shape
    scale = _ALONE / max(height, width)
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    return blend(torch.full((3, *size), 0.9), attribution, _look(sign)._replace(grey=False))


def colour_ramp(sign: Sign) -> str:
    """The colours of maps from their least to their greatest value, as HTML."""
    ramp = torch.linspace(-1.0 if sign == "signed" else 0.0, 1, 160, dtype=torch.float64)
    image = blend(
        torch.full((3, 12, 160), 0.8), ramp.expand(12, -1), _look(sign)._replace(grey=False)
    )
    words = (
        "Colours from against the class, through none, to for it."
        if sign == "signed"
        else "Colours from no attribution to the most."
    )
    return f'<img class="ramp" src="{_data(image)}" alt="{words}" width="160" height="12">'


def where(attribution: Tensor, sign: Sign) -> str:
    """In words, where a map is strongest."""
    strength = attribution.abs() if sign == "signed" else attribution.clamp(min=0)
    if float(strength.max()) == 0:
        return "no attribution" if sign == "signed" else "no positive attribution"
    height, width = strength.shape
    row, column = divmod(int(strength.argmax()), width)
    down = ("upper", "", "lower")[3 * row // height]
    across = ("left", "", "right")[3 * column // width]
    return f"strongest at the {' '.join(filter(None, (down, across))) or 'centre'}"
