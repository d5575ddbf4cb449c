"""How maps are compared with regions: at their own resolution where that is exact."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from explainguide.annotations.boxes import spans
from explainguide.annotations.cells import Cells, ChosenBoxes, between_edges, have_pixels
from explainguide.annotations.forms import Regions, boxes_of
from explainguide.attr.evidence import usable
from explainguide.errors import ShapeError
from explainguide.losses.sums import Sums
from explainguide.losses.table import StagedLoss

__all__ = ["Chosen", "compare"]

_FINER = 4  # times as many pixels as there are places, or cells, before it pays to do without them


class Chosen:
    """The regions of the chosen classes, each form of them made when it is first asked for.

    Args:
        regions: The batch's annotations.
        classes: ``(S, N)``; -1 for all objects.
        size: (H, W) of the images.
        images: Indices of those that are compared, ``(n,)`` int64; None for all. N is their number
            below.

    Attributes:
        boxes: Whose union they are, or None where they are not made of boxes.
    """

    def __init__(
        self,
        regions: Regions,
        classes: Tensor,
        size: tuple[int, int],
        images: Tensor | None = None,
    ) -> None:
        self.regions, self.classes, self.size = regions, classes, size
        self.images = images
        self.boxes = boxes_of(regions, classes)
        if self.boxes is not None and images is not None:
            boxes, chosen = self.boxes
            self.boxes = ChosenBoxes(boxes[images], chosen.index_select(-2, images))
        self._spans = None if self.boxes is None else spans(self.boxes.boxes, size)
        self._cells: Cells | None = None
        self._masks: Tensor | None = None

    def of(self, images: Tensor | None) -> Chosen:
        """Those of some images; of all for None."""
        if images is None:
            return self
        part = Chosen(self.regions, self.classes, self.size, images)
        part._masks = None if self._masks is None else self._masks.index_select(1, images)
        return part

    def have_pixels(self) -> Tensor:
        """Which of them are not empty, ``(S, N)`` bool."""
        if self.boxes is not None and self._spans is not None:
            return have_pixels(*self._spans, self.boxes.chosen)
        return (self.masks() > 0).flatten(2).any(2)

    def masks(self) -> Tensor:
        """``(S, N, H, W)``."""
        if self._masks is None:
            masks = usable(self.regions.region(self.classes, self.size))
            self._masks = masks if self.images is None else masks.index_select(1, self.images)
        return self._masks

    def cells(self) -> Cells:
        """Of the boxes."""
        assert self.boxes is not None
        assert self._spans is not None
        if self._cells is None:
            self._cells = between_edges(*self._spans, self.boxes.chosen, self.size)
        return self._cells


def compare(
    loss: StagedLoss, name: str, maps: Tensor, chosen: Chosen, *, non_negative: bool
) -> Tensor:
    """Prepare, upsample, compare; or prepare, and what comes to the same.

    Args:
        loss: In its stages.
        name: The loss's, for a message.
        maps: ``(S, N, h, w)``.
        chosen: What they are compared with.
        non_negative: Whether the attribution says so of its maps.

    Returns:
        ``(S, N)``.

    Raises:
        ShapeError: If the loss returns anything but one value a map.
    """
    flat = loss.prepare(maps.flatten(0, 1))
    losses = None
    if loss.coarse is not None and _is_worth_it(flat, chosen):
        sums = Sums(chosen.cells, (flat.shape[-2], flat.shape[-1]), chosen.size, non_negative)
        losses = loss.coarse(flat, sums)
    if losses is None:
        losses = _at_full_resolution(loss, flat, chosen)
    if not isinstance(losses, Tensor) or losses.shape != flat.shape[:1]:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ShapeError(
            f"the loss {name!r} returned {got} for {len(flat)} maps. Do not "
            "reduce over images. (attribution (N, H, W), mask (N, H, W)) -> (N,) is allowed."
        )
    return losses.unflatten(0, maps.shape[:2])


def _is_worth_it(maps: Tensor, chosen: Chosen) -> bool:
    """Whether pixels are many enough; both ways come to the same."""
    if chosen.boxes is None:
        return False
    places, cells = maps.shape[-2] * maps.shape[-1], (2 * chosen.boxes.boxes.shape[1] + 1) ** 2
    return _FINER * max(places, cells) <= chosen.size[0] * chosen.size[1]


def _at_full_resolution(loss: StagedLoss, maps: Tensor, chosen: Chosen) -> Tensor:
    if maps.shape[-2:] != chosen.size:
        maps = F.interpolate(maps[:, None], chosen.size, mode="bilinear", align_corners=False)[:, 0]
    return loss.compare(maps, chosen.masks().to(maps.dtype).flatten(0, 1))
