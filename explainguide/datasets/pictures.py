"""Picture files as 8-bit RGB, upright: the one reader of the data sets and of the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags
from PIL import Image as PILImage

from explainguide.errors import DataError, warn

__all__ = ["Header", "open_picture", "read_header"]

_TURNS = {  # EXIF's orientation: what makes the stored pixels upright
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
_EIGHT_BITS = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_PNG_MARKS = (b"eXIf", b"Raw profile type exif", b"com.adobe.xmp")
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339  # tags of TIFF
_SIGNED, _WHITE_IS_ZERO = 2, 0
_ROUNDING = 1e-4  # by which floats in [0, 1] may leave it


class Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    stored: tuple[int, int]  # (H, W) of the pixels in the file
    orientation: int  # EXIF's, 1 to 8; 1: they are upright

    @property
    def upright(self) -> tuple[int, int]:
        """``(H, W)`` of the picture as it is shown, and as :func:`open_picture` gives it."""
        return self.stored if self.orientation < 5 else (self.stored[1], self.stored[0])


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """Size and orientation of a picture, without decoding it; ``None`` if it cannot be read."""
    try:
        with PILImage.open(path) as image:
            tags = _tiff_tags(image)  # of which Pillow gives the size of the upright picture
            stored = (tags.get(_LENGTH, image.height), tags.get(_WIDTH, image.width))
            # Pillow decodes a whole PNG to look for a tag after the pixels. Few have one.
            if image.format == "PNG" and not any(m in Path(path).read_bytes() for m in _PNG_MARKS):
                return Header(stored, 1)
            return Header(stored, _orientation(image))
    except Exception:  # a damaged file can raise anything
        return None


def open_picture(path: str | os.PathLike[str], *, told: set[str]) -> PILImage.Image:
    """Decode a file to 8-bit RGB, turned upright as its EXIF orientation says.

    Unsigned 16-bit values are scaled by the range of their type, floats in [0, 1] by 255. Whole
    numbers in [0, 255] stay, whatever their type. Transparent pixels are laid on white. Of several
    frames the first is taken.

    Args:
        path: The file.
        told: What this reader has been told already; what is assumed is added, and said once.

    Raises:
        DataError: For numbers whose black and white cannot be known.
        Exception: Whatever Pillow raises for a file that is damaged or no picture.
    """
    with PILImage.open(path) as image:
        # A phone's MPO holds previews and depth beside the photo, and a PSD layers beside the whole.
        if getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD"):
            _say_once(
                f"'{path}' holds several frames; the first is taken. So it is of every "
                "other such picture. Save the frames as files of their own to use them.",
                key="frames",
                told=told,
            )
        image.load()  # which makes a TIFF upright already; Pillow 10 leaves its tag all the same
        turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))
        if not _has_alpha(image):
            rgb = _to_rgb(image, path)
        else:
            rgba = image.convert("RGBA")
            if rgba.getchannel("A").getextrema() != (255, 255):
                _say_once(
                    f"'{path}' has transparent pixels, which are laid on white. So are "
                    "those of every other picture. Save pictures without transparency for other "
                    "colours.",
                    key="transparent",
                    told=told,
                )
            white = PILImage.new("RGBA", rgba.size, "white")
            rgb = PILImage.alpha_composite(white, rgba).convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _say_once(text: str, *, key: str, told: set[str]) -> None:
    if key not in told:
        told.add(key)
        warn(text)


def _orientation(image: PILImage.Image) -> int:
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing; the picture beside it may be whole
        return 1
    return int(tag) if tag in _TURNS else 1


def _tiff_tags(image: PILImage.Image) -> Any:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _has_alpha(image: PILImage.Image) -> bool:
    return image.mode in _WITH_ALPHA or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    )


def _to_rgb(image: PILImage.Image, path: str | os.PathLike[str]) -> PILImage.Image:
    tags = _tiff_tags(image)
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    if image.mode in _EIGHT_BITS and not signed:
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "L":  # which Pillow makes of signed 8-bit numbers too
        values = values.view(np.int8)
    # PNG and PGM know no other numbers beyond 8 bits; older Pillow calls their mode "I".
    sixteen = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if sixteen:
        top = float(2 ** max(tags.get(_BITS, (16,))) - 1)  # a TIFF may hold 12 of 16 bits
    else:
        top = _known_top(values, image.mode, path)
    scaled = values.astype(np.float64).clip(0, top) / top
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts those of 8 bits only
        scaled = 1 - scaled
    return PILImage.fromarray((scaled * 255).round().astype(np.uint8)).convert("RGB")


def _known_top(values: np.ndarray, mode: str, path: str | os.PathLike[str]) -> float:
    """The value of white, 1 or 255, where the numbers leave no doubt."""
    if values.ndim == 2 and values.size:
        low, high = values.min(), values.max()
        if mode == "F" and low >= -_ROUNDING and high <= 1 + _ROUNDING:
            return 1.0
        if low >= 0 and high <= 255 and (values == values.round()).all():
            return 255.0
        kind = "floats" if mode == "F" else "signed or 32-bit integers"
        what = f"{kind} from {low:g} to {high:g}, of which black and white cannot be known"
    else:
        what = f"mode {mode}"
    raise DataError(
        f"'{path}' is a picture of {what}. Save it with 8 or 16 bits, or as floats in "
        "[0, 1]. Unsigned integers of 8 or 16 bits, floats in [0, 1] and whole numbers in "
        "[0, 255] are allowed."
    )
