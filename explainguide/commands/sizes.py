"""The size of an image, as it is written on the command line."""

from __future__ import annotations

import re

from explainguide.errors import OptionError

__all__ = ["parse_size"]


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
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not height or not width:
        raise OptionError(
            f"{option}: {text!r} is no size. Use 224, or 240x320 for height and width. "
            "Whole numbers of pixels are allowed."
        )
    return height, width
