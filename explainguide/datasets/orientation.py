"""Boxes and masks of pictures that a camera turned: in which frame they are, and how to turn them.

A camera that is held upright stores the pixels as they lie on its sensor, and an orientation tag
beside them. Pictures here are read upright. A file of annotations may mean either: the stored
pixels, or the upright picture, as viewers and browsers show it.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from explainguide.datasets.pictures import Header
from explainguide.errors import warn

__all__ = ["TOLERANCE", "Claim", "find_stored", "turn_boxes", "turn_mask"]

TOLERANCE = 1.0  # pixels by which a rounded box may leave its image; it is clipped

_FLIPS = {  # orientation: flip x, flip y (both in the stored frame), then swap x and y
    1: (False, False, False),
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}
_Key = TypeVar("_Key", bound=Hashable)


class Claim(NamedTuple):
    """What a file of annotations says of one picture."""

    path: str | os.PathLike[str]
    header: Header
    size: tuple[int, int] | None  # (H, W) as the file gives it, None where it does not
    boxes: np.ndarray  # (M, 4) XYXY in pixels, in the frame that is asked for


def turn_boxes(boxes: np.ndarray, header: Header) -> np.ndarray:
    """XYXY boxes ``(M, 4)`` of the stored pixels to those of the upright picture."""
    flip_x, flip_y, swap = _FLIPS[header.orientation]
    height, width = header.stored
    x1, y1, x2, y2 = boxes.T
    if flip_x:
        x1, x2 = width - x2, width - x1
    if flip_y:
        y1, y2 = height - y2, height - y1
    return np.stack([y1, x1, y2, x2] if swap else [x1, y1, x2, y2], axis=1)


def turn_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """A mask ``(H, W)`` of the stored pixels to that of the upright picture."""
    flip_x, flip_y, swap = _FLIPS[orientation]
    flipped = mask[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(flipped.T if swap else flipped)


def find_stored(claims: Mapping[_Key, Claim], *, source: str) -> set[_Key]:
    """Which of the pictures have boxes of the stored pixels; the others' are upright already.

    The size that the file gives tells, or boxes that fit in one of the two frames only. Where
    neither does (a half turn, a mirror, a square picture, no size), the frame is that of all the
    other turned pictures of the file, else the upright one; this is said once.
    """
    turned = {key: c for key, c in claims.items() if c.header.orientation != 1 and len(c.boxes)}
    answers = {key: _is_stored(claim) for key, claim in turned.items()}
    unknown = [turned[key].path for key, answer in answers.items() if answer is None]
    usual = bool(answers) and {a for a in answers.values() if a is not None} == {True}
    if unknown:
        names = ", ".join(f"'{path}'" for path in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        frame = (
            "of the stored pixels, as those of the other turned pictures"
            if usual
            else "of the turned picture, as viewers show it"
        )
        several = f"{len(unknown)} annotated pictures are turned by their EXIF orientation"
        if len(unknown) == 1:
            several = "1 annotated picture is turned by its EXIF orientation"
        warn(
            f"{several} ({names}{more}), and {source} cannot tell whether the boxes are those of the "
            f"turned picture or of the stored pixels. They are taken to be those {frame}. If they are "
            "not, remove the orientation or turn the boxes."
        )
    return {key for key, answer in answers.items() if (usual if answer is None else answer)}


def _is_stored(claim: Claim) -> bool | None:
    """Whether boxes are those of the stored pixels; ``None`` where they may be either."""
    stored, upright = (
        claim.size in (None, size) and _fits(claim.boxes, size)
        for size in (claim.header.stored, claim.header.upright)
    )
    return None if stored and upright else stored  # neither: refused where boxes are checked


def _fits(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    limit = np.array([size[1], size[0]]) + TOLERANCE
    return bool((boxes[:, :2] >= -TOLERANCE).all() and (boxes[:, 2:] <= limit).all())
