"""Robustness: any metric of maps, of the explanations of changed images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from explainguide.errors import OptionError, ShapeError, check_number, constructor, method, named
from explainguide.metrics.checks import check_maps
from explainguide.metrics.fills import Fill, check_fill, draw_uniform, filling
from explainguide.metrics.model_calls import Explain, check_images, check_target, explained

__all__ = ["Change", "Robustness", "drop_pixels", "replace_background"]

Change = Callable[[Tensor, Tensor], Tensor]


@named("drop_pixels")
def drop_pixels(
    images: Tensor,
    *,
    share: float = 0.2,
    fill: Fill = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images of which a share of the pixels, drawn at random, is taken away.

    Every image loses round(share * H * W) pixels of its own, each with all its channels.

    Args:
        images: ``(N, C, H, W)``, of any scale.
        share: In (0, 1).
        fill: What stands there instead, as of `perturb`.
        generator: Of the pixels, and of the noise; None is the global one. With one of the CPU the same
            pixels go on every device.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ShapeError: If the images are not ``(N, C, H, W)``, floating point.
        OptionError: If an option differs from the above.

    References:
        Zhang et al., 2024, "Comprehensive Attribution: Inherently Explainable Vision Model with
        Feature Detector" (COMET), which measures PxAP on images without 20% of their pixels.

    Example:
        >>> images = torch.ones(1, 3, 4, 5)
        >>> holes = drop_pixels(images, fill=0.0, generator=torch.Generator().manual_seed(0))
        >>> holes.sum((2, 3))
        tensor([[16., 16., 16.]])
    """
    _check_share(share)
    check_fill(fill, generator if fill == "noise" else None)
    check_images(images)
    count, _, height, width = images.shape
    drawn = draw_uniform((count, height * width), generator, images)
    rank = drawn.argsort(1).argsort(1).view(count, 1, height, width)
    gone = rank < round(share * height * width)
    return torch.where(gone, filling(images, fill, generator), images)


@named("replace_background")
def replace_background(
    images: Tensor,
    mask: Tensor,
    backgrounds: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images whose objects stand before other backgrounds.

    Every image gets one of the backgrounds, drawn at random; where the mask is between 0 and 1 the
    two are mixed.

    Args:
        images: ``(N, C, H, W)``, of any scale.
        mask: The object, ``(N, H, W)`` or ``(N, 1, H, W)``, bool or in [0, 1]; it stays.
        backgrounds: ``(B, C, H, W)`` in the images' units, to draw from; with one, every image gets
            it.
        generator: Of the draw; None is the global one.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ShapeError: If a shape or dtype differs from the above.

    References:
        Xiao et al., 2021, "Noise or Signal: The Role of Image Backgrounds in Object Recognition".

    Example:
        >>> images = torch.tensor([[[[1.0, 2.0]]]])
        >>> mask = torch.tensor([[[True, False]]])
        >>> replace_background(images, mask, torch.full((1, 1, 1, 2), 9.0))
        tensor([[[[1., 9.]]]])
    """
    check_images(images)
    # As a map the first channel has the size and the dtype that the mask is compared with.
    inside = check_maps(images[:, 0], mask=mask)[1]
    if not isinstance(backgrounds, Tensor) or not backgrounds.is_floating_point():
        kind = backgrounds.dtype if isinstance(backgrounds, Tensor) else type(backgrounds).__name__
        raise ShapeError(
            f"backgrounds are {kind}. Transform them as the images. A floating point tensor "
            f"{('B', *images.shape[1:])} is allowed.".replace("'", "")
        )
    if backgrounds.ndim != 4 or backgrounds.shape[1:] != images.shape[1:] or not len(backgrounds):
        raise ShapeError(
            f"backgrounds have shape {tuple(backgrounds.shape)} but the images have "
            f"{tuple(images.shape)}. Resize them, or add the first dimension: backgrounds[None]. One "
            "background or more, of the images' channels and size, are allowed."
        )
    backgrounds = backgrounds.to(images)
    drawn = (draw_uniform((len(images),), generator, images) * len(backgrounds)).long()
    # In float32 a number just below 1, times B, can be B.
    chosen = backgrounds[drawn.clamp(max=len(backgrounds) - 1)]
    inside = inside[:, None].to(images.dtype)
    return torch.where(inside == 1, images, inside * images + (1 - inside) * chosen)


class Robustness(WrapperMetric):
    """Any metric of maps, of the explanations of changed images.

    The maps of a model that looks at the object still lie on it when other pixels change. Compare
    with the same metric on the images as they are.

    - ``update(images, target, mask, explain)``: images as the model takes them, ``(N, C, H, W)``;
      one class an image, ``(N,)``; where the object is, ``(N, H, W)``; any callable from images and
      targets to maps of the images' size, ``(N, H, W)``. Autograd is on when it is called. Costs one
      explanation of every image.
    - ``compute()``: what the metric returns.
    - ``metric``: the metric, for what else it has to say, as ``undefined``.

    Args:
        metric: Whose ``update`` takes maps and masks.
        change: From images and masks to changed images; random only by a generator of its own.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        OptionError: If the metric is none of torchmetrics, or the change cannot be called.
        ShapeError: In ``update``, if a shape or dtype differs from the above.

    References:
        Zhang et al., 2024, "Comprehensive Attribution: Inherently Explainable Vision Model with
        Feature Detector" (COMET).

    Example:
        The map is the image. Its highest pixel is in the mask, and behind the mask comes a higher one.

        >>> import torch
        >>> from explainguide.metrics import PointingGame, replace_background
        >>> images, mask = torch.tensor([[[[5.0, 1.0]]]]), torch.tensor([[[True, False]]])
        >>> bright = torch.full((1, 1, 1, 2), 9.0)
        >>> metric = Robustness(
        ...     PointingGame(), change=lambda images, mask: replace_background(images, mask, bright)
        ... )
        >>> metric.update(images, torch.tensor([0]), mask, lambda images, target: images[:, 0])
        >>> metric.compute()
        tensor(0.)
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False

    @constructor
    def __init__(self, metric: Metric, *, change: Change, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(metric, Metric):
            named = isinstance(metric, type)
            fix = (
                f"Build it: {metric.__name__}()." if named else "Pass one of explainguide.metrics."
            )
            raise OptionError(f"metric is {metric!r}. {fix} A metric of torchmetrics is allowed.")
        if not callable(change):
            raise OptionError(
                f"change is {change!r}. Use change=lambda images, mask: drop_pixels(images). A "
                "callable from images and masks to images is allowed."
            )
        self.metric, self.change = metric, change
        self.__dict__["higher_is_better"] = metric.higher_is_better

    @method
    def update(self, images: Tensor, target: Tensor, mask: Tensor, explain: Explain) -> None:
        """Change the images of a batch, explain them, and add the maps and masks."""
        self.metric.update(self._maps(images, target, mask, explain), mask)

    def compute(self) -> Any:
        """What the metric says of all images so far, in all processes."""
        return self.metric.compute()

    @method
    def forward(self, images: Tensor, target: Tensor, mask: Tensor, explain: Explain) -> Any:
        """Add a batch and return the metric of that batch alone."""
        return self.metric(self._maps(images, target, mask, explain), mask)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self.metric.reset()

    def _maps(self, images: Tensor, target: Tensor, mask: Tensor, explain: Explain) -> Tensor:
        check_images(images)
        target = check_target(target, images)
        changed = self.change(images, mask)
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            shape = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ShapeError(
                f"change returned {shape} for images {tuple(images.shape)}. Return the changed images. "
                "The same shape is allowed."
            )
        return explained(explain, changed, target)


def _check_share(share: float) -> None:
    check_number("share", share, least=0, most=1, above=True)
    if share == 1:
        raise OptionError("share is 1. Use 0.2. A number in (0, 1) is allowed.")
