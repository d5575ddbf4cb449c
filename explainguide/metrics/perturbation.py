"""Perturbation: whether a model says a class without the pixels that a map names, or with them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from explainguide.errors import (
    OptionError,
    check_flag,
    constructor,
    method,
    named,
    operation,
    warn,
)
from explainguide.metrics.checks import check_maps
from explainguide.metrics.fills import Fill, filling, shown
from explainguide.metrics.image_mean import ImageMean, mark_broken, mark_undefined
from explainguide.metrics.model_calls import (
    Model,
    ask,
    check_images,
    check_target,
    is_alive,
    says_target,
)
from explainguide.metrics.perturbed import (
    Mode,
    check_perturbation,
    replaced_at,
    share_without_ties,
    thresholds,
)
from explainguide.metrics.table import map_metric

__all__ = ["PixelPerturbation", "pixel_perturbation"]

FRACTIONS = (0.05, 0.1, 0.2)
# Equal values go together. So much more than was asked for makes it another score.
_SLACK = 0.01


@named("pixel_perturbation")
def pixel_perturbation(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    *,
    fractions: Sequence[float] = FRACTIONS,
    mode: Mode = "remove",
    fill: Fill = "mean",
    multilabel: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Whether the model says the class on images without the highest pixels, or with them alone.

    `perturb` makes the images. Undefined for a map that is constant or not finite. Costs a forward
    pass of the batch for each fraction.

    Args:
        attribution: Signed maps of any scale, ``(N, H, W)`` or ``(N, 1, H, W)``.
        images: As the model takes them, ``(N, C, H, W)``.
        target: The class whose map it is, ``(N,)``; for accuracy, the image's label.
        model: Any callable from images to logits ``(N, K)``; a module must be in evaluation mode.
        fractions: Shares of the pixels, each in (0, 1).
        mode: ``"remove"`` (lower is better) or ``"keep"`` (higher is better).
        fill: As of `perturb`.
        multilabel: Whether the class is said by a logit from 0 on; by default by the highest logit.
        generator: Of the noise; None is the global one.

    Returns:
        1 where the class is said and 0 where it is not, ``(N, F)``; NaN for an undefined map. No
        gradient.

    Raises:
        ShapeError: If a shape or dtype differs from the above, that of the logits too.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).
    """
    for fraction in _fractions(fractions):
        check_perturbation(fraction, mode, fill, generator)
    check_flag("multilabel", multilabel)
    said, _, _, defined = _scores(
        attribution, images, target, model, fractions, mode, fill, multilabel, generator
    )
    return mark_undefined(said, defined[:, None], "exclude")


@map_metric(
    "perturbation",
    title="Perturbation",
    needs=("images", "target", "model"),
    options=("multilabel",),
    counts_undefined=True,
)
class PixelPerturbation(ImageMean):
    """Accuracy without the pixels that the maps name as the most important, or with them alone.

    `perturb` says which pixels, and what stands there instead. With ``mode="remove"`` lower is
    better: without what it looks at the model should no longer know the class. With ``"keep"``
    higher is better.

    - ``update(attribution, images, target, model)``: signed maps of any scale, ``(N, H, W)`` or
      ``(N, 1, H, W)``; images as the model takes them, ``(N, C, H, W)``; one class an image,
      ``(N,)``; any callable from images to logits ``(N, K)``. For several classes an image, one
      row for each (image, class) pair.
    - ``compute()``: a dict of scalars in [0, 1], ``"remove_5"``, ``"remove_10"``, ``"remove_20"``
      or ``"keep_5"`` and so on, by the per cent of the pixels; NaN where no map was defined.
    - ``undefined``: after ``compute()``, the number of maps that are constant or not finite.
    - ``shares``: after ``compute()``, the shares of the pixels that were really the highest, by the
      same names. A map that is zero on most of the image has no exact highest 20%, and its pixels of
      equal value go together; ``compute()`` warns where that adds over 0.01 to a mean share.

    Costs a forward pass of the batch for each fraction. What is left of an image is none that the
    model was trained on, so that some of what is lost would be lost with any pixels: compare with
    maps at random.

    Args:
        fractions: Shares of the pixels, each in (0, 1).
        mode: ``"remove"`` takes the highest pixels away, ``"keep"`` all others.
        fill: What stands there instead: ``"mean"``, the image's own mean colour; ``"blur"``;
            ``"noise"``; a number or a colour ``(C,)`` in the images' units; or a callable from
            images to images.
        multilabel: Whether a class is said by a logit from 0 on, so that the score is the share of
            the (image, class) pairs that are; by default the class of the highest logit is.
        generator: Of the noise. It goes on from batch to batch, so the noise on an image depends on
            those before it. None is the global one.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Zhang et al., 2024, "Comprehensive Attribution: Inherently Explainable Vision Model with
        Feature Detector" (COMET); its program has ``fill=0.0`` on normalised images.

    Example:
        The model sums the rows. The first map names the pixel that makes the upper row win, the
        second does not.

        >>> import torch
        >>> metric = PixelPerturbation(fractions=(0.25,), fill=0.0)
        >>> images = torch.tensor([[[[5.0, 1.0], [2.0, 2.0]]]]).expand(2, 1, 2, 2)
        >>> maps = torch.tensor([[[3.0, 2.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 3.0]]])
        >>> metric.update(maps, images, torch.tensor([0, 0]), lambda images: images.sum((1, 3)))
        >>> metric.compute()
        {'remove_25': tensor(0.5000)}
    """

    higher_is_better: bool | None = False

    kind = "constant"

    @constructor
    def __init__(
        self,
        *,
        fractions: Sequence[float] = FRACTIONS,
        mode: Mode = "remove",
        fill: Fill = "mean",
        multilabel: bool = False,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        fractions = _fractions(fractions)
        for fraction in fractions:
            check_perturbation(fraction, mode, fill, generator)
        check_flag("multilabel", multilabel)
        options = f"fractions={fractions}, mode={mode!r}, fill={shown(fill)}"
        options += ", multilabel=True" if multilabel else ""
        super().__init__("exclude", options=options, width=3 * len(fractions), **kwargs)
        self.fractions, self.mode, self.fill = fractions, mode, fill
        self.multilabel, self.generator = multilabel, generator
        self._shares: Tensor | None = None
        # torchmetrics takes the direction for one of the class, and refuses it to an instance.
        self.__dict__["higher_is_better"] = mode == "keep"

    @property
    def names(self) -> list[str]:
        """The keys of what `compute` returns, in the order of the fractions."""
        return [_name(self.mode, fraction) for fraction in self.fractions]

    @method
    def update(self, attribution: Tensor, images: Tensor, target: Tensor, model: Model) -> None:
        """Add the maps, images and classes of a batch, and run the model on what is left of them."""
        options = (self.fractions, self.mode, self.fill, self.multilabel, self.generator)
        *scores, defined = _scores(attribution, images, target, model, *options)
        self._add(mark_broken(torch.cat(scores, dim=1), *check_maps(attribution)), defined)

    def compute(self) -> dict[str, Tensor]:
        """The accuracies over all images so far, in all processes, by the names of the fractions."""
        said, self._shares, tied = self._mean().chunk(3)
        rows = zip(self.names, self.fractions, self._shares.tolist(), tied.tolist(), strict=True)
        for name, fraction, share, more in rows:
            if more > _SLACK:
                with operation(type(self).__name__):
                    warn(
                        f"the highest {fraction:g} of the pixels were {share:.3g} of them on the mean "
                        f"over the maps, since pixels of equal value go together. {name!r} is of them."
                    )
        return dict(zip(self.names, said, strict=True))

    @property
    @method
    def shares(self) -> dict[str, float]:
        """The shares of the pixels that were the highest, on the mean over the maps, at `compute`."""
        self._of_compute("shares")
        assert self._shares is not None  # noted by the same call
        return dict(zip(self.names, self._shares.tolist(), strict=True))


def _scores(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    fractions: Sequence[float],
    mode: Mode,
    fill: Fill,
    multilabel: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether the class is said, the share of highest pixels, and how much of it is due to ties.

    Each ``(N, F)``; and which maps are defined.
    """
    (maps,) = check_maps(attribution)
    check_images(images, like=maps)
    target = check_target(target, images)
    defined = is_alive(maps)
    nothing = maps.new_zeros(len(maps), len(fractions))
    if not len(maps):
        return nothing, nothing, nothing, defined
    filled = filling(images, fill, generator)
    said, shares, tied = [], [], []
    cuts = thresholds(maps, fractions).unbind(1)
    for fraction, threshold in zip(fractions, cuts, strict=True):
        replaced = replaced_at(maps, threshold, mode)
        logits = ask(model, torch.where(replaced[:, None], filled, images), target)
        said.append(says_target(logits, target, multilabel=multilabel).to(maps.dtype))
        highest = replaced if mode == "remove" else ~replaced
        shares.append(highest.to(maps.dtype).mean((1, 2)))
        tied.append(shares[-1] - share_without_ties(maps[0].numel(), fraction))
    return torch.stack(said, 1), torch.stack(shares, 1), torch.stack(tied, 1), defined


def _name(mode: Mode, fraction: float) -> str:
    return f"{mode}_{fraction * 100:g}"


def _fractions(fractions: Any) -> tuple[float, ...]:
    if isinstance(fractions, Real | str) or not isinstance(fractions, Sequence) or not fractions:
        raise OptionError(
            f"fractions is {fractions!r}. Use (0.05, 0.1, 0.2). One number in (0, 1), or several, in a "
            "list or tuple are allowed."
        )
    names = [_name("remove", float(f)) for f in fractions if isinstance(f, Real)]
    if len(set(names)) < len(names):
        raise OptionError(
            f"fractions is {fractions!r}, in which two are the same per cent. Leave one out. "
            "Fractions that differ are allowed."
        )
    return tuple(fractions)
