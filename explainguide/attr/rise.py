"""RISE: which pixels a score needs, by the scores of images under random masks; a black box."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.attr.references import reference
from explainguide.errors import check_number, check_option, operation
from explainguide.hooks.dynamic import wide
from explainguide.hooks.logits import check_logits, class_scores, log_probabilities
from explainguide.hooks.reading import Output, check_reading
from explainguide.host import send

__all__ = ["random_masks", "rise_map"]

_SCORES = ("softmax", "sigmoid", "logit")


@reference("rise")
@operation("rise_map")
def rise_map(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    score: str = "softmax",
    seed: int = 0,
    batch_size: int = 128,
    output: Output | None = None,
) -> Tensor:
    r"""Mean of random masks, each weighted with the score of the image under it.

    .. math:: A = \frac{1}{n\,p} \sum_{i=1}^{n} s_k(x \odot M_i)\, M_i

    Non-negative, in the score's units, unless `score` is ``"logit"``. The masks are the same for every
    image, in every call and on every device. Pixels that are masked become 0, the mean of
    normalised images.

    Costs `masks` forward passes an image, and no backward pass. Half of the masks give about 1.4 times
    the noise.

    Args:
        model: Images to logits ``(N, K)``.
        images: ``(N, C, H, W)``.
        target: Classes, ``(N,)`` integers on the images' device.
        masks: How many, n.
        cells: Cells a side of the coarse grid that is drawn.
        keep: Probability p of a cell to be kept.
        score: ``"softmax"``, as published (with a single logit, its sigmoid); ``"sigmoid"``, for
            several labels an image; or the ``"logit"``.
        seed: Of the draw, which touches no other generator.
        batch_size: Masked images a forward pass.
        output: Which of several things that the model returns are the logits.

    Returns:
        ``(N, H, W)``.

    Raises:
        OptionError: For an option that is not allowed.
        ShapeError: If the model returns no logits.

    References:
        Petsiuk et al., 2018, Eq. 6 and Sec. 3.2: 4000 masks for VGG-16 and 8000 for ResNet-50, of
        7 x 7 cells, p = 0.5.
    """
    check_option("score", score, _SCORES)
    check_number("batch_size", batch_size, least=1, whole=True)
    reading = check_reading(output=output)
    height, width = images.shape[-2:]
    source = _Masks(masks, cells, keep, seed)
    together = max(1, min(batch_size // max(len(images), 1), masks))
    total = wide(images.new_zeros(images.shape[0], height, width))
    with torch.no_grad():
        for start in range(0, masks, together):
            drawn = send(source.at((height, width), start, start + together), images.device)
            masked = (images[:, None] * drawn[:, None].to(images.dtype)).flatten(0, 1)
            classes = target.repeat_interleave(len(drawn))[:, None]
            scores = [
                _scores(check_logits(model(part), reading=reading, images=len(part)), score)
                for part in masked.split(batch_size)
            ]
            found = torch.cat(scores).gather(1, classes).view(len(images), len(drawn))
            total += torch.einsum("nm,mhw->nhw", found.to(total.dtype), drawn.to(total.dtype))
    return total / (masks * keep)


def _scores(logits: Tensor, score: str) -> Tensor:
    if score == "softmax":
        return log_probabilities(logits).exp()
    return class_scores(logits).sigmoid() if score == "sigmoid" else class_scores(logits)


@operation("random_masks")
def random_masks(
    count: int, size: tuple[int, int], *, cells: int = 7, keep: float = 0.5, seed: int = 0
) -> Tensor:
    """The masks of RISE: a coarse grid of zeros and ones, made larger bilinearly and shifted at random.

    A grid of s x s cells becomes (s + 1) times ceil(H / s) pixels high and likewise wide, of which
    a window of the image's size is taken, at most one cell from the corner.

    Args:
        count: How many.
        size: (H, W).
        cells: s.
        keep: Probability of a cell to be one.
        seed: Of the draw.

    Returns:
        ``(count, H, W)``, in [0, 1].

    Raises:
        OptionError: For an option that is not allowed.

    References:
        Petsiuk et al., 2018, Sec. 3.2.
    """
    return _Masks(count, cells, keep, seed).at(size, 0, count)


class _Masks:
    """All draws at once, so that a mask does not depend on how many are made at a time."""

    def __init__(self, count: int, cells: int, keep: float, seed: int) -> None:
        check_number("masks", count, least=1, whole=True)
        check_number("cells", cells, least=2, whole=True)
        check_number("keep", keep, least=0, most=1, above=True)
        check_number("seed", seed, least=0, whole=True)
        generator = torch.Generator().manual_seed(seed)
        self.cells = cells
        self.grids = (torch.rand(count, cells, cells, generator=generator) < keep).float()
        self.shifts = torch.rand(count, 2, generator=generator)

    def at(self, size: tuple[int, int], start: int, stop: int) -> Tensor:
        cell = [-(-side // self.cells) for side in size]
        large: Any = [(self.cells + 1) * side for side in cell]
        grids = self.grids[start:stop, None]
        enlarged = F.interpolate(grids, large, mode="bilinear", align_corners=False)[:, 0]
        corners = (self.shifts[start:stop] * torch.tensor(cell)).long().tolist()
        windows = [
            one[top : top + size[0], left : left + size[1]]
            for one, (top, left) in zip(enlarged, corners, strict=True)
        ]
        return torch.stack(windows)
