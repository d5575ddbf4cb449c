"""Insertion and deletion: the class's probability as the pixels come or go, the highest first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from explainguide.errors import check_flag, check_number, constructor, method, named
from explainguide.metrics.checks import check_maps
from explainguide.metrics.fills import Fill, check_fill, filling, shown
from explainguide.metrics.image_mean import ImageMean, mark_broken, mark_undefined
from explainguide.metrics.model_calls import (
    Model,
    ask,
    check_images,
    check_target,
    is_alive,
    target_probability,
)
from explainguide.metrics.table import map_metric

__all__ = ["DeletionCurve", "InsertionCurve", "deletion_curve", "insertion_curve"]

STEPS, CHUNK = 50, 64


@named("insertion_curve")
def insertion_curve(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    *,
    steps: int = STEPS,
    fill: Fill = "blur",
    multilabel: bool = False,
    chunk: int = CHUNK,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The class's probability while pixels come into an empty image, those of the highest map first.

    At step s of S, the round(s / S * H * W) highest pixels of the map are the image's, and the others
    the fill's. Pixels of equal value come in reading order. Undefined for a map that is constant or
    not finite. Costs S + 1 forward passes of every image, ``chunk`` of them at a time.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        images: As the model takes them, ``(N, C, H, W)``.
        target: The class whose map it is, ``(N,)``.
        model: Any callable from images to logits ``(N, K)``; a module must be in evaluation mode.
        steps: S. RISE puts in 224 pixels of 224 x 224 at a time, which is 224.
        fill: The empty image, as of `perturb`: ``"blur"`` as RISE has it, ``"mean"``, ``"noise"``, a
            number, a colour ``(C,)``, or a callable from images to images.
        multilabel: Whether probabilities are of the sigmoid; by default of the softmax.
        chunk: Images in a forward pass.
        generator: Of the noise; None is the global one.

    Returns:
        Probabilities in [0, 1], ``(N, S + 1)``, of the empty image first; NaN for an undefined map.
        No gradient.

    Raises:
        ShapeError: If a shape or dtype differs from the above, that of the logits too.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Petsiuk et al., 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        Sec. 4.3.
    """
    _check(steps, fill, multilabel, chunk, generator)
    options = (steps, fill, multilabel, chunk, generator)
    values, defined = _curve(attribution, images, target, model, True, *options)
    return mark_undefined(values, defined[:, None], "exclude")


@named("deletion_curve")
def deletion_curve(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    *,
    steps: int = STEPS,
    fill: Fill = "mean",
    multilabel: bool = False,
    chunk: int = CHUNK,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The class's probability while pixels leave an image, those of the highest map first.

    As `insertion_curve`, the other way: at step s of S the round(s / S * H * W) highest pixels are the
    fill's.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        images: As the model takes them, ``(N, C, H, W)``.
        target: The class whose map it is, ``(N,)``.
        model: Any callable from images to logits ``(N, K)``; a module must be in evaluation mode.
        steps: S.
        fill: What is left behind, as of `perturb`. RISE has ``fill=0.0`` on normalised images.
        multilabel: Whether probabilities are of the sigmoid; by default of the softmax.
        chunk: Images in a forward pass.
        generator: Of the noise; None is the global one.

    Returns:
        Probabilities in [0, 1], ``(N, S + 1)``, of the whole image first; NaN for an undefined map.
        No gradient.

    Raises:
        ShapeError: If a shape or dtype differs from the above, that of the logits too.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Petsiuk et al., 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        Sec. 4.3.
    """
    _check(steps, fill, multilabel, chunk, generator)
    options = (steps, fill, multilabel, chunk, generator)
    values, defined = _curve(attribution, images, target, model, False, *options)
    return mark_undefined(values, defined[:, None], "exclude")


class _Curve(ImageMean):
    """What the two curves share: one score an image and step."""

    inserts: bool
    kind = "constant"

    def __init__(
        self,
        steps: int,
        fill: Fill,
        multilabel: bool,
        chunk: int,
        generator: torch.Generator | None,
        **kwargs: Any,
    ) -> None:
        _check(steps, fill, multilabel, chunk, generator)
        options = f"steps={steps}, fill={shown(fill)}" + (", multilabel=True" if multilabel else "")
        super().__init__("exclude", options=options, width=steps + 1, **kwargs)
        self.steps, self.fill, self.multilabel = steps, fill, multilabel
        self.chunk, self.generator = chunk, generator

    @method
    def update(self, attribution: Tensor, images: Tensor, target: Tensor, model: Model) -> None:
        """Add the maps, images and classes of a batch, and run the model along their curves."""
        options = (self.steps, self.fill, self.multilabel, self.chunk, self.generator)
        self._add(*_curve(attribution, images, target, model, self.inserts, *options))

    def compute(self) -> dict[str, Tensor]:
        """The mean curve over all images so far, in all processes, and the area below it."""
        values = self._mean()
        shares = torch.linspace(0, 1, self.steps + 1, dtype=values.dtype, device=values.device)
        area = (values[:-1] + values[1:]).mean() / 2
        return {"shares": shares, "values": values, "area": area}


@map_metric(
    "insertion",
    title="Insertion",
    needs=("images", "target", "model"),
    options=("multilabel",),
    counts_undefined=True,
)
class InsertionCurve(_Curve):
    """The class's probability while pixels come into an empty image, the map's highest first.

    `insertion_curve` has the details, and the curve of each image.

    - ``update(attribution, images, target, model)``: signed maps of any scale, ``(N, H, W)`` or
      ``(N, 1, H, W)``; images as the model takes them, ``(N, C, H, W)``; one class an image,
      ``(N,)``; any callable from images to logits ``(N, K)``.
    - ``compute()``: a dict. ``"shares"``: the shares of the pixels that are there, ``(S + 1,)``.
      ``"values"``: the mean probabilities, ``(S + 1,)``. ``"area"``: the area below, by the trapezoid
      rule, a scalar in [0, 1]; higher is better. NaN where no map was defined.
    - ``undefined``: after ``compute()``, the number of maps that are constant or not finite.

    Args:
        steps: S, how many times pixels come.
        fill: The empty image: ``"blur"`` as RISE has it, ``"mean"``, ``"noise"``, a number, a colour
            ``(C,)``, or a callable from images to images.
        multilabel: Whether probabilities are of the sigmoid; by default of the softmax.
        chunk: Images in a forward pass.
        generator: Of the noise, which goes on from batch to batch; None is the global one.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Petsiuk et al., 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        Sec. 4.3.

    Example:
        The first class's logit is the sum over the image, the other's is 0. The pixel of log 3 comes
        first and makes the class 3 times as probable as the other; the second changes nothing.

        >>> import math, torch
        >>> metric = InsertionCurve(steps=2, fill=0.0)
        >>> images = torch.tensor([[[[math.log(3), 0.0]]]])
        >>> def model(images):
        ...     total = images.sum((1, 2, 3))
        ...     return torch.stack([total, 0 * total], 1)
        >>> metric.update(torch.tensor([[[2.0, 1.0]]]), images, torch.tensor([0]), model)
        >>> curve = metric.compute()
        >>> curve["values"], curve["area"]
        (tensor([0.5000, 0.7500, 0.7500]), tensor(0.6875))
    """

    inserts = True

    @constructor
    def __init__(
        self,
        *,
        steps: int = STEPS,
        fill: Fill = "blur",
        multilabel: bool = False,
        chunk: int = CHUNK,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(steps, fill, multilabel, chunk, generator, **kwargs)


@map_metric(
    "deletion",
    title="Deletion",
    needs=("images", "target", "model"),
    options=("multilabel",),
    counts_undefined=True,
)
class DeletionCurve(_Curve):
    """The class's probability while pixels leave an image, the map's highest first.

    As `InsertionCurve`, the other way, and lower is better: ``"shares"`` are those of the pixels that
    are gone. `deletion_curve` has the details, and the curve of each image.

    Args:
        steps: S, how many times pixels go.
        fill: What is left behind: ``"mean"``, the image's own mean colour, ``"blur"``, ``"noise"``, a
            number, a colour ``(C,)``, or a callable from images to images. RISE has ``fill=0.0`` on
            normalised images.
        multilabel: Whether probabilities are of the sigmoid; by default of the softmax.
        chunk: Images in a forward pass.
        generator: Of the noise, which goes on from batch to batch; None is the global one.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Petsiuk et al., 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        Sec. 4.3.
    """

    higher_is_better: bool | None = False
    inserts = False

    @constructor
    def __init__(
        self,
        *,
        steps: int = STEPS,
        fill: Fill = "mean",
        multilabel: bool = False,
        chunk: int = CHUNK,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(steps, fill, multilabel, chunk, generator, **kwargs)


def _check(
    steps: int, fill: Fill, multilabel: bool, chunk: int, generator: torch.Generator | None
) -> None:
    check_number("steps", steps, least=1, whole=True)
    check_number("chunk", chunk, least=1, whole=True)
    check_flag("multilabel", multilabel)
    check_fill(fill, generator)


def _curve(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    inserts: bool,
    steps: int,
    fill: Fill,
    multilabel: bool,
    chunk: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The probabilities, ``(N, S + 1)``, and which maps are defined."""
    (maps,) = check_maps(attribution)
    check_images(images, like=maps)
    target = check_target(target, images)
    count, pixels, points = len(maps), maps[0].numel() if len(maps) else 0, steps + 1
    if not count:
        return maps.new_zeros(0, points), is_alive(maps)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(pixels, device=maps.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places).view(maps.shape)
    filled = filling(images, fill, generator).expand_as(images)
    first, last = (filled, images) if inserts else (images, filled)
    parts = []
    for begin in range(0, count * points, chunk):
        at = torch.arange(begin, min(begin + chunk, count * points), device=maps.device)
        image, step = at // points, at % points
        taken = (2 * step * pixels + steps) // (2 * steps)  # s / S of the pixels, rounded
        gone = rank[image] < taken[:, None, None]
        mixed = torch.where(gone[:, None], last[image], first[image])
        logits = ask(model, mixed, target[image])
        parts.append(target_probability(logits, target[image], multilabel=multilabel))
    values = torch.cat(parts).view(count, points).to(maps.dtype)
    return mark_broken(values, maps), is_alive(maps)
