"""Outlines of objects as COCO has them, polygons and run lengths, drawn by pycocotools."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explainguide.errors import AnnotationError, first_line
from explainguide.host import host_array

__all__ = [
    "as_outlines",
    "check_beside_boxes",
    "draw_outlines",
    "draw_segmentation",
    "segmentation_box",
    "segmentation_size",
]

Size = tuple[int, int]
Box = tuple[float, float, float, float]

_FARTHEST = 1e6  # pixels; pycocotools walks along every edge, and crashes on the longest
_ALLOWED = (
    "An object is a list of polygons [x1, y1, x2, y2, x3, y3, ...] in pixels, or run lengths "
    "{'size', 'counts'}."
)


def draw_segmentation(segmentation: Any, size: Size) -> np.ndarray:
    """One object as a mask, exactly as pycocotools draws it.

    Args:
        segmentation: A list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, or run lengths
            ``{"size", "counts"}``, compressed or not.
        size: (H, W) of the image. Compressed run lengths keep their own.

    Returns:
        ``(H, W)`` uint8, 0 or 1.

    Raises:
        AnnotationError: If pycocotools is not installed.
        Exception: With the reason, if it cannot be drawn; pycocotools raises no better one.
    """
    mask = _mask_tools()
    with warnings.catch_warnings():  # its compiled part predates numpy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(mask.decode(_encode(segmentation, size)))


def segmentation_size(segmentation: Any) -> Size | None:
    """(H, W) of the image that it was made for, which only run lengths tell."""
    size = segmentation.get("size") if isinstance(segmentation, Mapping) else None
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def segmentation_box(segmentation: Any) -> Box:
    """XYXY in pixels: what the polygons span, or the box around the run lengths' pixels."""
    if not isinstance(segmentation, Mapping):
        polygons = _as_polygons(segmentation)
        x = [v for polygon in polygons for v in polygon[0::2]]
        y = [v for polygon in polygons for v in polygon[1::2]]
        return min(x), min(y), max(x), max(y)
    encoded = _encode(segmentation, _size_of_runs(segmentation))
    x1, y1, width, height = _mask_tools().toBbox(encoded).tolist()
    return x1, y1, x1 + width, y1 + height


def _mask_tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise AnnotationError(
            "polygons and run lengths are drawn by pycocotools, which is not installed. "
            "`pip install explainguide[coco]`. 'masks' (M, H, W) need nothing."
        ) from None
    return mask


def _encode(segmentation: Any, size: Size) -> Any:
    mask = _mask_tools()
    if not isinstance(segmentation, Mapping):
        return mask.merge(mask.frPyObjects(_as_polygons(segmentation), *size))
    _size_of_runs(segmentation)
    if isinstance(segmentation["counts"], list):
        total = sum(segmentation["counts"])
        if total != size[0] * size[1]:
            raise ValueError(f"its counts sum to {total}, not to {size[0]} x {size[1]}")
        return mask.frPyObjects(segmentation, *size)
    return segmentation


def _size_of_runs(segmentation: Mapping[str, Any]) -> Size:
    size = segmentation_size(segmentation)
    if size is None or "counts" not in segmentation:
        raise ValueError("run lengths without 'size' [H, W] or without 'counts'")
    return size


def _as_polygons(segmentation: Any) -> list[list[float]]:
    """Polygons as lists of numbers; refuse what pycocotools takes for something else, or dies of."""
    if not isinstance(segmentation, list | tuple):
        raise ValueError(f"it is a {type(segmentation).__name__}, not a list of polygons")
    if not segmentation:
        raise ValueError("it has no polygon; leave out what has no outline")
    return [_as_numbers(polygon) for polygon in segmentation]


def _as_numbers(polygon: Any) -> list[float]:
    array = np.asarray(polygon.cpu() if isinstance(polygon, Tensor) else polygon, dtype=np.float64)
    if array.ndim == 0:
        raise ValueError("its numbers are not in a polygon's list; write [[x1, y1, x2, y2, ...]]")
    if array.ndim > 1:
        raise ValueError(f"a polygon of shape {array.shape}; write points one after another")
    if array.size < 6 or array.size % 2:  # four numbers would be x, y, width, height
        raise ValueError(f"a polygon of {array.size} numbers; it needs 6, 8, 10, ...")
    if not np.isfinite(array).all() or abs(array).max() > _FARTHEST:
        worst = array[~(abs(array) <= _FARTHEST)][0]
        raise ValueError(f"a polygon with a coordinate of {worst:g}")
    numbers: list[float] = array.tolist()
    return numbers


def as_outlines(target: Mapping[str, Any], where: str) -> list[Any] | None:
    """The objects under "segmentation", each known to be polygons or run lengths; None without.

    Raises:
        AnnotationError: For what is neither, and where there are masks too.
    """
    objects = target.get("segmentation")
    if objects is None:
        return None
    if target.get("masks") is not None:
        raise AnnotationError(
            f"{where} has 'segmentation' and 'masks'. Leave one out; transforms move masks only. "
            "Either is allowed."
        )
    if not isinstance(objects, list | tuple):
        fix = (
            "Did you mean 'masks'?"
            if isinstance(objects, Tensor | np.ndarray)
            else "Wrap it in []."
        )
        raise AnnotationError(
            f"{where} has a segmentation that is a {type(objects).__name__}, not a list with one entry "
            f"an object. {fix} {_ALLOWED}"
        )
    return [_as_outline(entry, f"{where}, object {j},") for j, entry in enumerate(objects)]


def _as_outline(entry: Any, where: str) -> Any:
    try:
        if not isinstance(entry, Mapping):
            return _as_polygons(entry)
        _size_of_runs(entry)
        return entry
    except (TypeError, ValueError) as error:
        raise _undrawable(where, error) from None


def _undrawable(where: str, reason: Exception) -> AnnotationError:
    return AnnotationError(
        f"{where} has a segmentation that cannot be drawn: {first_line(reason)}. {_ALLOWED}"
    )


def draw_outlines(
    outlines: list[Any], count: int, many: str, where: str, canvas: Size | None
) -> Tensor:
    """The objects of an image, from `as_outlines`, as ``(M, H, W)`` bool.

    Args:
        outlines: One an object.
        count: Number of objects.
        many: The same in words.
        where: Begins the errors.
        canvas: (H, W) of the model's input, where it is known.

    Raises:
        AnnotationError: If the canvas is not known, or the outlines cannot be meant for it.
    """
    if len(outlines) != count:
        raise AnnotationError(
            f"{where} has {many} but {len(outlines)} segmentations. Give one an object. {_ALLOWED}"
        )
    canvas = next((s for s in (canvas, *map(segmentation_size, outlines)) if s is not None), None)
    if canvas is None:
        raise AnnotationError(
            f"{where} has polygons, but the size of the image that they are drawn in is not known. "
            "Pass canvas=(H, W) of the model's input; `collate` and `loss_loc` know it. Masks, run "
            "lengths and tv_tensors say their size."
        )
    _check_pixels(outlines, where, canvas)
    drawn = [_draw(entry, f"{where}, object {j},", canvas) for j, entry in enumerate(outlines)]
    return torch.from_numpy(np.stack(drawn)).bool()


def _draw(outline: Any, where: str, canvas: Size) -> np.ndarray:
    size = segmentation_size(outline)
    if size not in (None, canvas):
        raise AnnotationError(
            f"{where} has run lengths of {size[0]} x {size[1]}, but the model's input is {canvas[0]} x "
            f"{canvas[1]}. Draw them as masks, and resize these with the image. Run lengths have the "
            "size of the model's input."
        )
    try:
        return draw_segmentation(outline, canvas)
    except AnnotationError:
        raise
    except Exception as error:  # pycocotools raises bare Exception, among others
        raise _undrawable(where, error) from None


def _check_pixels(outlines: list[Any], where: str, canvas: Size) -> None:
    polygons = [p for outline in outlines if isinstance(outline, list) for p in outline]
    numbers = np.concatenate([*map(np.asarray, polygons), np.zeros(0)])
    if polygons and min(canvas) > 2 and bool(((numbers >= 0) & (numbers <= 1)).all()):
        raise AnnotationError(
            f"{where} has polygons in [0, 1]: {[round(v, 3) for v in polygons[0][:6]]}. Multiply x by "
            f"{canvas[1]} and y by {canvas[0]}. Polygons are in pixels."
        )


def check_beside_boxes(boxes: Tensor, outlines: list[Any], where: str, canvas: Size) -> None:
    """Refuse outlines that stayed where they were while a transform moved their boxes.

    Args:
        boxes: ``(M, 4)`` xyxy on the host.
        outlines: From `as_outlines`.
        where: Begins the error.
        canvas: (H, W).
    """
    limit = boxes.new_tensor([canvas[1], canvas[0]] * 2)
    spans = boxes.new_tensor([segmentation_box(outline) for outline in outlines])
    inside, drawn = (corners.clamp(min=0).minimum(limit) for corners in (boxes, spans))

    def area(corners: Tensor) -> Tensor:
        return (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)

    shared = torch.cat(
        [inside[:, :2].maximum(drawn[:, :2]), inside[:, 2:].minimum(drawn[:, 2:])], 1
    )
    apart = area(shared) < 0.5 * (area(inside) + area(drawn) - area(shared))
    apart &= (inside - drawn).abs().amax(1) > 2  # pixels: small objects may be drawn roughly
    if host_array(apart).any():
        box, span = (
            [round(v, 3) for v in corners[apart][0].tolist()] for corners in (boxes, spans)
        )
        raise AnnotationError(
            f"{where} has a box {box} whose segmentation spans {span}. Transforms move boxes and "
            "masks, not polygons: draw masks before them, or leave 'segmentation' out. Both are of the "
            "same object, in pixels of the model's input."
        )
