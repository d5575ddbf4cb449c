"""Whether a map tells what a change of the image does to the logit, by Captum's own program."""

from __future__ import annotations

from typing import Any, Literal

import captum.metrics
import torch
from torch import Tensor

from explainguide.errors import (
    OptionError,
    check_flag,
    check_number,
    check_option,
    constructor,
    method,
    named,
)
from explainguide.metrics.checks import check_maps
from explainguide.metrics.fills import draw_normal
from explainguide.metrics.image_mean import ImageMean, mark_broken, mark_undefined
from explainguide.metrics.model_calls import (
    Model,
    ask,
    at_a_time,
    check_images,
    check_target,
    is_alive,
    score_of_target,
)
from explainguide.metrics.table import map_metric

__all__ = ["Infidelity", "infidelity"]

Perturbation = Literal["fade", "add"]


@named("infidelity")
def infidelity(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    *,
    perturbation: Perturbation = "fade",
    sd: float = 0.2,
    samples: int = 10,
    normalize: bool = True,
    chunk: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How far a map is from telling what a change of the image does to the class's logit.

    .. math:: E_n \left(\beta \sum_p n_p A_p - (z(x) - z(x_n))\right)^2

    The noise n is Gaussian, one number a pixel, the same in all its channels; Captum, which computes
    the mean, is given :math:`A_p / C` for each of them, so that a pixel counts once. What the noise
    does to the image depends on what a map means. ``"fade"``:
    :math:`x_n = x (1 - n)`, a pixel loses the share n of itself, for maps that are contributions, as
    of input x gradient, integrated gradients or B-cos. ``"add"``: :math:`x_n = x - n`, for maps that
    are sensitivities, as the sum over channels of a gradient. With the right one and a linear model
    both are exactly 0.

    Undefined for a map that is constant or not finite. Costs ``samples`` forward passes of every
    image, and one more for each ``chunk``.

    Args:
        attribution: Signed maps, ``(N, H, W)`` or ``(N, 1, H, W)``; of any scale with
            ``normalize=True``, else in the units of the logit.
        images: As the model takes them, ``(N, C, H, W)``.
        target: The class whose map it is, ``(N,)``.
        model: Any callable from images to logits ``(N, K)``; a module must be in evaluation mode.
        perturbation: What the noise does: ``"fade"`` or ``"add"``.
        sd: Standard deviation of the noise: of a share of the pixel, or in the images' units.
        samples: Draws of the noise for each image; 2 or more with ``normalize=True``.
        normalize: Whether :math:`\beta` is the factor that fits the map best; else it is 1.
        chunk: Images in a forward pass; no fewer than N.
        generator: Of the noise; None is the global one. The draws depend on ``chunk``.

    Returns:
        Infidelity of each image in squared logits, ``(N,)``, 0 or more; lower is better; NaN for an
        undefined map. No gradient.

    Raises:
        ShapeError: If a shape or dtype differs from the above, that of the logits too.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Yeh et al., 2019, "On the (In)fidelity and Sensitivity of Explanations", Def. 2.1, with
        `captum.metrics.infidelity`.

    Example:
        The logit is 2 x1 + x2; so are the contributions.

        >>> images = torch.tensor([[[[1.0, 3.0]]]])
        >>> def model(images):
        ...     return 2 * images[:, :, 0, 0] + images[:, :, 0, 1]
        >>> contributions = torch.tensor([[[2.0, 3.0]]])
        >>> score = infidelity(contributions, images, torch.tensor([1]), model, normalize=False)
        >>> float(score) < 1e-10
        True
    """
    _check(perturbation, sd, samples, normalize, chunk)
    options = (perturbation, sd, samples, normalize, chunk, generator)
    return mark_undefined(*_scores(attribution, images, target, model, *options), "exclude")


@map_metric(
    "infidelity",
    title="Infidelity",
    needs=("images", "target", "model"),
    counts_undefined=True,
)
class Infidelity(ImageMean):
    """How far the maps are from telling what a change of the image does to the class's logit.

    `infidelity` has the formula and the details, and the scores of each image.

    - ``update(attribution, images, target, model)``: signed maps, ``(N, H, W)`` or
      ``(N, 1, H, W)``; images as the model takes them, ``(N, C, H, W)``; one class an image,
      ``(N,)``; any callable from images to logits ``(N, K)``.
    - ``compute()``: a scalar in squared logits, 0 or more, lower is better; NaN where no map was
      defined. Models whose logits have different scales do not compare.
    - ``undefined``: after ``compute()``, the number of maps that are constant or not finite.

    Args:
        perturbation: ``"fade"``, a pixel loses a random share of itself, for maps that are
            contributions (input x gradient, integrated gradients, B-cos); ``"add"``, a pixel gets a
            random number in all channels, for maps that are sensitivities (gradients).
        sd: Standard deviation of the noise: of that share, or in the images' units.
        samples: Draws of the noise for each image.
        normalize: Whether a map is multiplied by the factor that fits it best, so that scale does not
            count.
        chunk: Images in a forward pass; no fewer than a batch has.
        generator: Of the noise, which goes on from batch to batch; None is the global one.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above.
        OptionError: If an option does, or a target is no class of the model (looked at on the CPU).
        GuidanceError: If the model is in training mode, or returns probabilities (on the CPU).

    References:
        Yeh et al., 2019, "On the (In)fidelity and Sensitivity of Explanations", Def. 2.1, with
        `captum.metrics.infidelity`.
    """

    higher_is_better: bool | None = False
    plot_upper_bound: float | None = None

    kind = "constant"

    @constructor
    def __init__(
        self,
        *,
        perturbation: Perturbation = "fade",
        sd: float = 0.2,
        samples: int = 10,
        normalize: bool = True,
        chunk: int = 64,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        _check(perturbation, sd, samples, normalize, chunk)
        options = f"perturbation={perturbation!r}, sd={sd}, samples={samples}"
        options += "" if normalize else ", normalize=False"
        super().__init__("exclude", options=options, **kwargs)
        self.perturbation, self.sd, self.samples = perturbation, sd, samples
        self.normalize, self.chunk, self.generator = normalize, chunk, generator

    @method
    def update(self, attribution: Tensor, images: Tensor, target: Tensor, model: Model) -> None:
        """Add the maps, images and classes of a batch, and run the model on changed images."""
        options = (self.perturbation, self.sd, self.samples, self.normalize, self.chunk)
        self._add(*_scores(attribution, images, target, model, *options, self.generator))

    def compute(self) -> Tensor:
        """The mean over all images so far, in all processes."""
        return self._mean()


def _scores(
    attribution: Tensor,
    images: Tensor,
    target: Tensor,
    model: Model,
    perturbation: Perturbation,
    sd: float,
    samples: int,
    normalize: bool,
    chunk: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The infidelity of each image, and which maps are defined."""
    (maps,) = check_maps(attribution)
    check_images(images, like=maps)
    target = check_target(target, images)
    defined = is_alive(maps)
    if not len(maps):  # Captum knows no empty batch
        return maps.new_zeros(0), defined

    def change(shown: Tensor) -> tuple[Tensor, Tensor]:
        drawn = draw_normal((len(shown), 1, *shown.shape[2:]), generator, shown)
        noise = sd * drawn.to(maps.dtype)
        by = noise * shown if perturbation == "fade" else noise
        return noise.expand_as(shown), (shown - by).to(shown.dtype)

    def logit(shown: Tensor, target: Tensor) -> Tensor:
        return score_of_target(ask(model, shown, target), target).to(maps.dtype)

    score = captum.metrics.infidelity(
        logit,
        change,
        images,
        (maps / images.shape[1])[:, None].expand(images.shape),
        additional_forward_args=(target,),  # expanded with the images, and read by no one else
        n_perturb_samples=samples,
        max_examples_per_batch=at_a_time(chunk, len(images), samples),
        normalize=normalize,
    )
    # The difference of two large numbers, where the map fits.
    return mark_broken(score.to(maps.dtype).clamp(min=0), maps), defined


def _check(
    perturbation: Perturbation, sd: float, samples: int, normalize: bool, chunk: int
) -> None:
    check_option("perturbation", perturbation, ("fade", "add"))
    check_number("sd", sd, least=0, above=True)
    check_flag("normalize", normalize)
    check_number("samples", samples, least=1, whole=True)
    if normalize and samples == 1:
        raise OptionError(
            "samples is 1 with normalize=True, which fits the one number exactly whatever the map. Use "
            "samples=10. 2 or more are allowed, or normalize=False."
        )
    check_number("chunk", chunk, least=1, whole=True)
