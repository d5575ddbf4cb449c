"""How much a map changes with small changes of the image, by Captum's own program."""

from __future__ import annotations

from typing import Any

import captum.metrics
import torch
from torch import Tensor

from explainguide.errors import check_number, constructor, method, named
from explainguide.metrics.checks import check_maps
from explainguide.metrics.fills import draw_uniform
from explainguide.metrics.image_mean import ImageMean, mark_broken, mark_undefined
from explainguide.metrics.model_calls import (
    Explain,
    at_a_time,
    check_images,
    check_target,
    explained,
    is_alive,
)
from explainguide.metrics.table import map_metric

__all__ = ["SensitivityMax", "sensitivity_max"]


@named("sensitivity_max")
def sensitivity_max(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    explain: Explain,
    *,
    radius: float = 0.02,
    samples: int = 10,
    chunk: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The largest relative change of a map when the image changes a little.

    .. math::
        \max_{|\delta|_\infty \le r}
        \frac{\lVert A(x + \delta) - A(x) \rVert_2}{\lVert A(x) \rVert_2}

    The maximum is over ``samples`` draws of :math:`\delta`, uniform in the cube, so it grows with
    their number. Undefined for a map that is constant or not finite, or where that of a changed image
    is not finite.

    Costs ``samples`` explanations of every image, ``chunk`` images at a time.

    Args:
        attribution: The maps of the images by ``explain``, ``(N, H, W)`` or ``(N, 1, H, W)``, of any
            scale: they are not computed again.
        images: As the model takes them, ``(N, C, H, W)``.
        target: The class whose map it is, ``(N,)``.
        explain: Any callable from images and targets to maps of the images' size, ``(N, H, W)``.
            Autograd is on when it is called.
        radius: r, in the images' units.
        samples: Changed images for each image.
        chunk: Images that are explained at a time; no fewer than N.
        generator: Of the changes; None is the global one. The draws depend on ``chunk``.

    Returns:
        Sensitivity of each image, ``(N,)``, 0 or more; lower is steadier; NaN where it is undefined. No
        gradient.

    Raises:
        ShapeError: If a shape or dtype differs from the above, that of the changed images' maps too.
        OptionError: If an option does.

    References:
        Yeh et al., 2019, "On the (In)fidelity and Sensitivity of Explanations", Def. 3.1, with
        `captum.metrics.sensitivity_max`.

    Example:
        A map that does not depend on the image is not sensitive.

        >>> images, target = torch.rand(1, 3, 1, 2), torch.tensor([0])
        >>> fixed = torch.tensor([[[2.0, 1.0]]])
        >>> sensitivity_max(
        ...     fixed, images, target, lambda images, target: fixed.expand(len(images), 1, 2)
        ... )
        tensor([0.])
    """
    _check(radius, samples, chunk)
    options = (radius, samples, chunk, generator)
    return mark_undefined(*_scores(attribution, images, target, explain, *options), "exclude")


@map_metric(
    "sensitivity",
    title="Sensitivity",
    needs=("images", "target", "explain"),
    counts_undefined=True,
)
class SensitivityMax(ImageMean):
    """The largest relative change of the maps when the images change a little.

    `sensitivity_max` has the formula and the details, and the scores of each image.

    - ``update(attribution, images, target, explain)``: the maps of the images by ``explain``,
      ``(N, H, W)`` or ``(N, 1, H, W)``; images as the model takes them, ``(N, C, H, W)``; one class
      an image, ``(N,)``; any callable from images and targets to maps of the images' size.
    - ``compute()``: a scalar, 0 or more, lower is steadier; NaN where no map was defined.
    - ``undefined``: after ``compute()``, the number of images whose map is constant or not finite, or
      one of whose changed images has a map that is not finite.

    A map that ignores the image is not sensitive at all: read it beside a metric of what the map
    shows.

    Args:
        radius: How much every value of the image changes at most, in the images' units.
        samples: Changed images for each image; the maximum over them grows with their number.
        chunk: Images that are explained at a time; no fewer than a batch has.
        generator: Of the changes, which goes on from batch to batch; None is the global one.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does.

    References:
        Yeh et al., 2019, "On the (In)fidelity and Sensitivity of Explanations", Def. 3.1, with
        `captum.metrics.sensitivity_max`.
    """

    higher_is_better: bool | None = False
    plot_upper_bound: float | None = None

    kind = "constant"

    @constructor
    def __init__(
        self,
        *,
        radius: float = 0.02,
        samples: int = 10,
        chunk: int = 64,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        _check(radius, samples, chunk)
        super().__init__("exclude", options=f"radius={radius}, samples={samples}", **kwargs)
        self.radius, self.samples = radius, samples
        self.chunk, self.generator = chunk, generator

    @method
    def update(self, attribution: Tensor, images: Tensor, target: Tensor, explain: Explain) -> None:
        """Add the maps, images and classes of a batch, and explain changed images."""
        options = (self.radius, self.samples, self.chunk, self.generator)
        self._add(*_scores(attribution, images, target, explain, *options))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


def _scores(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    explain: Explain,
    radius: float,
    samples: int,
    chunk: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The sensitivity of each image, and which maps are defined."""
    (maps,) = check_maps(attribution)
    check_images(images, like=maps)
    target = check_target(target, images)
    defined = is_alive(maps)
    if not len(maps):  # Captum knows no empty batch
        return maps.new_zeros(0), defined

    def change(shown: Tensor, radius: float) -> Tensor:
        drawn = draw_uniform(tuple(shown.shape), generator, shown).to(maps.dtype)
        return (shown + (2 * drawn - 1) * radius).to(shown.dtype)

    def maps_of(shown: Any, target: Tensor) -> Any:
        # The images themselves come in a tuple, and their maps go back in one.
        if isinstance(shown, tuple):
            return (maps,)
        return explained(explain, shown, target).to(maps.dtype)

    score = captum.metrics.sensitivity_max(
        maps_of,
        images,
        perturb_func=change,
        perturb_radius=radius,
        n_perturb_samples=samples,
        max_examples_per_batch=at_a_time(chunk, len(images), samples),
        target=target,
    )
    # A changed image's map is not finite: of that kind, also where the change is infinite.
    score = torch.where(score.isfinite(), score, torch.nan)
    return mark_broken(score, maps), defined


def _check(radius: float, samples: int, chunk: int) -> None:
    check_number("radius", radius, least=0, above=True)
    check_number("samples", samples, least=1, whole=True)
    check_number("chunk", chunk, least=1, whole=True)
