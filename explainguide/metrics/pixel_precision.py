"""Pixel average precision: the area under the precision-recall curve of all pixels of all maps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from explainguide.errors import OptionError, check_number, check_option, constructor, method, named
from explainguide.metrics.checks import check_maps
from explainguide.metrics.left_out import PIXELS, LeavesOut, are_finite
from explainguide.metrics.precision_recall import (
    Bounded,
    average_precision,
    bin_of,
    binned_precision,
    bins,
    bounded_precision,
)
from explainguide.metrics.table import map_metric

__all__ = ["PixelAveragePrecision", "pixel_average_precision"]

Definition = Literal["standard", "choe", "comet"]
_STEPS = {"choe": 1000, "comet": 20}
_BITS = 18  # 512 bins between a score and its double


@named("pixel_average_precision")
def pixel_average_precision(
    attribution: Tensor,
    mask: Tensor,
    *,
    definition: Definition = "standard",
    steps: int | None = None,
    normalize: Literal["minmax"] | None = None,
) -> Tensor:
    r"""Area under the precision-recall curve of all pixels of all maps, pooled (PxAP).

    .. math:: \mathrm{AP} = \sum_n (R_n - R_{n-1})\, P_n

    with precision P and recall R of the pixels that score at least as high as the n-th distinct score.
    A map as a whole may lie above another, since the pixels of all are ranked together; with
    ``normalize="minmax"`` the scale of a map plays no part.

    With ``normalize="minmax"`` constant maps are left out. NaN where any map or mask is not finite, or,
    with ``definition="choe"`` or ``"comet"``, a map leaves [0, 1]: `PixelAveragePrecision` leaves
    these out and counts them.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        mask: The object, same shape, bool or in [0, 1]; above 0.5 is foreground.
        definition: ``"standard"`` counts every pixel and every distinct score, as scikit-learn's
            ``average_precision_score``. ``"choe"`` is the program of Choe et al.: thresholds 0, 1/1000,
            ... 1 on maps in [0, 1]. ``"comet"`` is the program of COMET: thresholds 0.05, 0.1, ... 0.95
            on maps in [0, 1]; pixels below the first are dropped, also from the recall's denominator,
            and the curve begins with an artificial point of precision 1 and recall 1/10001.
        steps: The thresholds lie 1 / steps apart; None for 1000 (Choe et al.) and 20 (COMET).
        normalize: ``"minmax"`` brings each signed map to [0, 1] by its minimum and maximum, as the
            program of Choe et al.; None ranks raw values.

    Returns:
        A scalar in [0, 1], higher is better; NaN where no pixel is in a mask. No gradient. Maps at
        random score the share of the pixels that are in masks. The cost is a sort of all pixels.

    Raises:
        ShapeError: If a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Choe et al., 2020, "Evaluating Weakly Supervised Object Localization Methods Right", where
        scores are percentages. Zhang et al., 2024 (COMET).

    Example:
        In falling order the pixels are in the mask, not, in, not: precision 1 at the first, 2/3 at the
        third.

        >>> attribution = torch.tensor([[[4.0, 1.0], [2.0, -3.0]]])
        >>> mask = torch.tensor([[[True, True], [False, False]]])
        >>> pixel_average_precision(attribution, mask)
        tensor(0.8333)
    """
    steps = _check(definition, steps, normalize)
    attribution, mask = check_maps(attribution, mask=mask)
    scores, undefined = _scores(attribution.detach(), mask, steps, normalize)
    counted = ~torch.stack(undefined).any(0)[:, None, None].expand_as(scores)
    pixels = (scores.flatten(), (mask > 0.5).flatten(), counted.flatten())
    if steps is None:
        value = average_precision(*pixels)
    else:
        nothing = _no_counts(steps).to(scores.device)
        value = _of_steps(_add_pixels(nothing, *pixels, steps), definition, scores.dtype)
    # What may be left out is a constant map; the rest is a mistake.
    mistaken = torch.stack(undefined[:1] if normalize else undefined).any()
    return torch.where(mistaken, torch.nan, value)


@map_metric("pxap", title="PxAP")
class PixelAveragePrecision(LeavesOut):
    r"""Area under the precision-recall curve of all pixels of all maps, pooled (PxAP).

    `pixel_average_precision` has the definitions.

    - ``update(attribution, mask)``: signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``,
      and masks of the same shape, bool or in [0, 1]; above 0.5 is foreground. Images may have
      different sizes from batch to batch; every pixel counts alike.
    - ``compute()``: a scalar in [0, 1], higher is better; NaN where no pixel is in a mask.
    - ``error``: after ``compute()``, how far the value may be from the exact one. ``bounds``: the
      lowest and the highest value that the exact one can have.
    - ``undefined``, ``undefined_kinds``: after ``compute()``, the number of images that were left out:
      map or mask ``"not_finite"``; with ``normalize="minmax"`` ``"constant"`` maps; with
      ``definition="choe"`` or ``"comet"``, not normalised, maps ``"outside_0_1"``.

    Memory does not grow with the images. Up to ``exact_pixels`` pixels a process are kept, and the
    value is exact, ``error`` 0, as long as no process saw more. After that it is computed of counts in
    bins, a bin taken for one score, and ``error`` says how far the order within bins can move it:
    0.0001 to 0.0024 on maps of noise with some signal, in bins of 18 bits. Zero has a bin of its own.
    A constant map is defined, as are maps of one sign.

    Args:
        definition: ``"standard"``, or ``"choe"`` or ``"comet"``, which are bins by definition and have
            no error.
        steps: Of these two, the thresholds lie 1 / steps apart; None for 1000 and 20.
        normalize: ``"minmax"`` brings each signed map to [0, 1] first; None ranks raw values.
        exact_pixels: How many pixels to keep, 9 bytes each; a million are 20 images of 224 x 224.
        bits: How many bits of a score tell its bin, 10 to 24. One more doubles the memory, 4 MB with
            18, and halves the error.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    Note:
        ``forward`` computes the value of the batch, which waits for the device; ``update`` does not.

    References:
        Choe et al., 2020, "Evaluating Weakly Supervised Object Localization Methods Right", where
        scores are percentages. Zhang et al., 2024 (COMET).

    Example:
        >>> import torch
        >>> metric = PixelAveragePrecision()
        >>> attribution = torch.tensor([[[4.0, 1.0], [2.0, -3.0]]])
        >>> metric.update(attribution, torch.tensor([[[True, True], [False, False]]]))
        >>> metric.compute(), metric.error
        (tensor(0.8333), 0.0)
    """

    # The pixels that are kept of a batch and of all before it are not a sum.
    full_state_update: bool | None = True

    @constructor
    def __init__(
        self,
        *,
        definition: Definition = "standard",
        steps: int | None = None,
        normalize: Literal["minmax"] | None = None,
        exact_pixels: int = 2**20,
        bits: int = _BITS,
        **kwargs: Any,
    ) -> None:
        self._steps = _check(definition, steps, normalize)
        check_number("exact_pixels", exact_pixels, least=0, whole=True)
        check_number("bits", bits, least=10, most=24, whole=True)
        options = f"definition={definition!r}, normalize={normalize!r}, "
        if self._steps is None:
            options += f"exact_pixels={exact_pixels}, bits={bits}"
        else:
            options += f"steps={self._steps}"
        super().__init__(options=options, kinds=_kinds(self._steps, normalize), **kwargs)
        self.definition: Definition = definition
        self.normalize: Literal["minmax"] | None = normalize
        self.exact_pixels, self.bits = exact_pixels, bits
        self._counts = self._state("pixels in bins", _no_counts(self._steps, bits))
        if self._steps is None:
            # The last place takes what is not kept.
            kept = torch.zeros(exact_pixels + 1, dtype=torch.float64)
            self._kept = self._state("kept scores", kept, reduce=None)
            places = torch.zeros(exact_pixels + 1, dtype=torch.uint8)
            self._kept_inside = self._state("kept masks", places, reduce=None)
            self._stored = self._state("kept pixels", torch.tensor(0), reduce=None)
        # Pixels, as the host knows without asking the device, or fewer: `forward` begins anew.
        self._given = 0
        self._dtype_out = torch.get_default_dtype()
        self._bounded = Bounded(torch.nan, torch.nan, torch.nan)

    @method
    def update(self, attribution: Tensor, mask: Tensor) -> None:
        """Add the maps and masks of a batch."""
        attribution, mask = check_maps(attribution, mask=mask)
        scores, undefined = _scores(attribution.detach(), mask, self._steps, self.normalize)
        defined = ~torch.stack(undefined).any(0)
        scores, inside = scores.flatten(1), (mask > 0.5).flatten(1)
        counted = defined[:, None].expand_as(scores)
        counts = getattr(self, self._counts)
        flat = (scores.flatten(), inside.flatten(), counted.flatten())
        setattr(self, self._counts, _add_pixels(counts, *flat, self._steps, self.bits))
        self._given += scores.numel()
        if self._steps is None and self._given <= self.exact_pixels:
            self._keep(scores, inside, defined)
        self._count(*undefined)
        self._dtype_out = scores.dtype

    def _keep(self, scores: Tensor, inside: Tensor, defined: Tensor) -> None:
        """Write the pixels of the defined maps ``(N, P)`` where those before them end."""
        pixels = scores.shape[1]
        stored = getattr(self, self._stored)
        before = (defined.cumsum(0) - 1) * pixels + stored
        places = before[:, None] + torch.arange(pixels, device=scores.device)
        places = places.masked_fill(~defined[:, None], self.exact_pixels)
        places = places.clamp(max=self.exact_pixels).flatten()
        for name, values in ((self._kept, scores), (self._kept_inside, inside)):
            kept = getattr(self, name)
            setattr(self, name, kept.scatter(0, places, values.flatten().to(kept.dtype)))
        setattr(self, self._stored, stored + defined.sum() * pixels)

    def compute(self) -> Tensor:
        """The value over all images so far, in all processes."""
        self._note_undefined()
        counts = getattr(self, self._counts)
        self._bounded = self._exact(counts) or self._binned(counts.cpu())
        return torch.tensor(self._bounded.value, dtype=self._dtype_out, device=counts.device)

    def _exact(self, counts: Tensor) -> Bounded | None:
        """The value of the pixels that were kept, if these are all."""
        if self._steps is not None:
            return None
        stored = getattr(self, self._stored).reshape(-1, 1).cpu()  # of each process
        if stored.sum() != counts.sum().cpu() or (stored > self.exact_pixels).any():
            return None  # a process saw more than it keeps
        places = torch.arange(self.exact_pixels + 1)
        kept, inside = (getattr(self, name).cpu() for name in (self._kept, self._kept_inside))
        counted = (places < stored).flatten()
        kept, inside = kept.flatten()[counted], inside.flatten()[counted] > 0
        value = float(average_precision(kept, inside, torch.ones_like(inside)))
        return Bounded(value, value, value)

    def _binned(self, counts: Tensor) -> Bounded:
        """The value of the counts."""
        if self._steps is None:
            return bounded_precision(*counts, equal=2 ** (self.bits - 1))  # the bin of zero
        value = float(_of_steps(counts, self.definition, torch.float64))
        return Bounded(value, value, value)

    @property
    @method
    def error(self) -> float:
        """How far the value that `compute` returned may be from the exact one; NaN where it is NaN."""
        self._of_compute("error")
        return self._bounded.error

    @property
    @method
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value that the exact one can have."""
        self._of_compute("bounds")
        return self._bounded.lowest, self._bounded.highest

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._given = 0


def _check(definition: str, steps: int | None, normalize: str | None) -> int | None:
    """Refuse options that do not exist; the number of steps, or None where there are none."""
    check_option("definition", definition, ("standard", "choe", "comet"))
    if normalize is not None:
        check_option("normalize", normalize, ("minmax",), also="None")
    if steps is None:
        return _STEPS.get(definition)
    if definition == "standard":
        raise OptionError(
            f"steps is {steps!r} with definition='standard', where every distinct score is a "
            "threshold. Use definition='choe' or 'comet', or leave steps out. None is allowed."
        )
    check_number("steps", steps, least=2, most=10**6, whole=True)
    return steps


def _kinds(steps: int | None, normalize: str | None) -> tuple[str, ...]:
    """Why a map may be undefined besides not being finite, in the order of `_scores`."""
    if normalize is not None:
        return ("constant",)
    return () if steps is None else ("outside_0_1",)


def _scores(
    attribution: Tensor, mask: Tensor, steps: int | None, normalize: str | None
) -> tuple[Tensor, list[Tensor]]:
    """The maps to rank, and which images are undefined, by kind, not finite ones first."""
    sound = are_finite(attribution, mask)
    if attribution.numel() == 0 or (steps is None and normalize is None):
        others = [torch.zeros_like(sound) for _ in _kinds(steps, normalize)]
        return attribution, [~sound, *others]
    lowest, highest = attribution.amin(PIXELS), attribution.amax(PIXELS)
    if normalize is None:
        return attribution, [~sound, sound & ((lowest < 0) | (highest > 1))]
    spread = highest - lowest
    sound = sound & spread.isfinite()  # not so where it is beyond the range of the dtype
    spread = torch.where(spread == 0, 1.0, spread)
    unit = (attribution - lowest[:, None, None]) / spread[:, None, None]
    return unit, [~sound, sound & (lowest == highest)]


def _no_counts(steps: int | None, bits: int = _BITS) -> Tensor:
    """Pixels outside and inside of masks in each bin, from the lowest to the highest."""
    return torch.zeros(2, bins(bits) if steps is None else steps + 1, dtype=torch.int64)


def _add_pixels(
    counts: Tensor,
    scores: Tensor,
    inside: Tensor,
    counted: Tensor,
    steps: int | None,
    bits: int = _BITS,
) -> Tensor:
    """The counts with the pixels ``(P,)`` added."""
    if steps is None:
        place = bin_of(scores, bits)
    else:  # the last bin is 1 itself
        edges = torch.arange(1, steps + 1, device=scores.device, dtype=scores.dtype) / steps
        place = torch.bucketize(scores, edges, right=True)
    place = place + inside * counts.shape[1]
    return counts.flatten().scatter_add(0, place, counted.long()).reshape(counts.shape)


def _of_steps(counts: Tensor, definition: str, dtype: torch.dtype) -> Tensor:
    """The value that one of the programs makes of its bins."""
    outside, inside = counts
    if definition == "choe":
        return binned_precision(outside, inside, dtype)
    # COMET: the lowest bin is dropped, and the last but one holds 1, too.
    outside, inside = (torch.cat([c[1:-2], c[-2:].sum()[None]]) for c in (outside, inside))
    right, wrong = (c.flip(0).cumsum(0).to(dtype) for c in (inside, outside))
    recall = right / right[-1]
    first = torch.full_like(recall[:1], 1 / 10001)
    # Above a threshold that no pixel reaches there is no precision.
    return (right / (right + wrong).clamp(min=1) * torch.cat([first, recall]).diff()).sum()
