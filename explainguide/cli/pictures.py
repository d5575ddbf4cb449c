"""Pictures on the command line: a size, a file, boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from explainguide.cli.usage import UsageError
from explainguide.datasets.pictures import open_picture, read_header
from explainguide.errors import DataError, ExplainGuideWarning, first_line, warn

__all__ = ["parse_boxes", "parse_size", "read_picture", "tell_turned"]


def parse_size(text: str, *, option: str = "--size") -> tuple[int, int]:
    """Height and width in pixels from ``"224"`` or ``"240x320"``.

    Args:
        text: What was given.
        option: The option that the error names.

    Raises:
        OptionError: If it is neither form, or a side is 0.

    Example:
        >>> parse_size("224"), parse_size("240x320")
        ((224, 224), (240, 320))
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise UsageError(
            f"{option}: {text!r} is no size. Use 224, or 240x320 for height and width. "
            "Whole numbers of pixels are allowed."
        )
    return height, width


def read_picture(path: str, *, told: set[str] | None = None) -> Image.Image:
    """A file as an RGB image, by the rules of :func:`explainguide.datasets.pictures.open_picture`.

    Args:
        path: The file.
        told: What has been said of earlier pictures; None: nothing.

    Raises:
        DataError: If it is damaged or no image, or its black and white cannot be known.
        OSError: If it is not there.
    """
    try:
        return open_picture(path, told=set() if told is None else told)
    except (FileNotFoundError, IsADirectoryError, PermissionError, DataError, ExplainGuideWarning):
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = (
            "not an image, or of an unknown kind" if "identify" in str(error) else first_line(error)
        )
        raise DataError(
            f"'{path}' cannot be read ({reason}). Save it again as PNG or JPEG. "
            "Files that Pillow can read are allowed."
        ) from error


def tell_turned(paths: Sequence[str], boxes: Sequence[Tensor]) -> None:
    """Say once that boxes are those of the upright pictures, where a camera turned them."""
    turned = []
    for path, own_boxes in zip(paths, boxes, strict=True):
        header = read_header(path) if len(own_boxes) else None
        if header is not None and header.orientation != 1:
            height, width = header.upright
            turned.append(f"'{path}' ({height} x {width}, height x width)")
    if turned:
        warn(
            f"{', '.join(turned)} {'is' if len(turned) == 1 else 'are'} turned upright by the EXIF "
            "orientation; --boxes are taken to be in pixels of the upright picture, as viewers show it."
        )


def parse_boxes(
    given: Sequence[str], pictures: Sequence[Image.Image], *, option: str = "--boxes"
) -> list[Tensor]:
    """Boxes from ``"x1,y1,x2,y2"``, several of an image with ';' between them.

    Args:
        given: One text an image; for a single image as many as one likes.
        pictures: The images.
        option: The option that the error names.

    Returns:
        ``(M, 4)`` for each image, in its pixels.

    Raises:
        OptionError: If the number of texts is another, or a box does not lie in its image.

    Example:
        >>> parse_boxes(["1,2,3,4;0,0,5,5"], [Image.new("RGB", (8, 8))])
        [tensor([[1., 2., 3., 4.],
                [0., 0., 5., 5.]])]
    """
    texts = list(given)
    if len(pictures) == 1:
        texts = [";".join(texts)]
    elif not texts:
        texts = [""] * len(pictures)
    if len(texts) != len(pictures):
        raise UsageError(
            f"{option}: given {len(texts)} times for {len(pictures)} images. Give it once an image, "
            "in their order, with ';' between several boxes, '' for none."
        )
    boxes = []
    for text, picture in zip(texts, pictures, strict=True):
        rows = [_parse_box(part, picture, option) for part in text.split(";") if part.strip()]
        boxes.append(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))
    return boxes


def _parse_box(text: str, picture: Image.Image, option: str) -> list[float]:
    try:
        x1, y1, x2, y2 = (float(number) for number in text.split(","))
    except ValueError:
        x1, y1, x2, y2 = 0.0, 0.0, 0.0, 0.0
    width, height = picture.size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise UsageError(
            f"{option}: {text.strip()!r} is no box in an image {width} wide and {height} high. "
            "Use x1,y1,x2,y2 in pixels of the file, such as "
            f"{width // 4},{height // 4},{3 * width // 4},{3 * height // 4}. "
            "x1 < x2 and y1 < y2, inside the image, are allowed."
        )
    return [x1, y1, x2, y2]
