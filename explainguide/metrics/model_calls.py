"""How a metric asks a model or an explanation: what they are given, what they must return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import GuidanceError, OptionError, ShapeError, first_line
from explainguide.metrics.checks import check_maps
from explainguide.metrics.image_mean import PIXELS

__all__ = [
    "Explain",
    "Model",
    "ask",
    "at_a_time",
    "check_images",
    "check_target",
    "explained",
    "is_alive",
    "says_target",
    "score_of_target",
    "target_probability",
]

Model = Callable[[Tensor], Tensor]
Explain = Callable[[Tensor, Tensor], Tensor]


def is_alive(maps: Tensor) -> Tensor:
    """Whether a map tells pixels apart: all of it is finite, and it is not constant, ``(N,)``."""
    finite = maps.isfinite().flatten(1).all(1)
    return finite & (maps.amax(PIXELS) > maps.amin(PIXELS))


def check_images(images: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Images ``(N, C, H, W)`` as a model takes them, or a `ShapeError`.

    Args:
        images: Floating point.
        like: Maps or masks ``(N, H, W)``, one for each image and of its size.
    """
    if not isinstance(images, Tensor):
        raise ShapeError(
            f"images are a {type(images).__name__}. Stack them: torch.stack([...]). A tensor "
            "(N, C, H, W) is allowed."
        )
    if images.ndim != 4:
        fix = "Add the batch dimension: images[None]." if images.ndim == 3 else "Stack them."
        raise ShapeError(
            f"images have shape {tuple(images.shape)}. {fix} They must be (N, C, H, W)."
        )
    if not images.is_floating_point():
        raise ShapeError(
            f"images have dtype {images.dtype}. Transform them as for the model first. They must be "
            "floating point (N, C, H, W)."
        )
    if like is not None and (len(images), *images.shape[-2:]) != tuple(like.shape):
        fix = (
            "Resize the attribution first: torch.nn.functional.interpolate(attribution, "
            f"{tuple(images.shape[-2:])}, mode='bilinear') on (N, 1, h, w)."
            if len(images) == len(like)
            else "Give one image for each map: images[index] where an image has several."
        )
        raise ShapeError(
            f"images have shape {tuple(images.shape)} but the maps (N, H, W) have shape "
            f"{tuple(like.shape)}. {fix} N, H and W must be the same."
        )
    return images


def ask(model: Model, images: Tensor, target: Tensor) -> Tensor:
    """The logits of images, ``(N, K)``, without a gradient; the target is checked by them.

    Values are looked at on the host alone: nothing waits for a device.

    Args:
        model: Any callable from images to logits.
        images: ``(N, C, H, W)``.
        target: Class indices, ``(N,)``, on the images' device.
    """
    if not callable(model):
        raise OptionError(
            f"model is a {type(model).__name__}, which cannot be called. Pass the classifier itself. A "
            "callable from images (N, C, H, W) to logits (N, K) is allowed."
        )
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise GuidanceError(
            f"{type(model).__name__} is in training mode, in which dropout and the statistics of the "
            "batch decide too. Call model.eval() first. Evaluation mode is allowed."
        )
    with torch.no_grad():
        logits = model(images)
    if not (
        isinstance(logits, Tensor)
        and logits.is_floating_point()
        and logits.ndim == 2
        and len(logits) == len(images)
    ):
        found = type(logits).__name__
        if isinstance(logits, Tensor):
            found = f"tensor of shape {tuple(logits.shape)} and dtype {logits.dtype}"
        raise ShapeError(
            f"the model returns a {found} for {len(images)} images. Wrap it, as in "
            "model=lambda images: model(images).logits. Logits (N, K), before softmax or sigmoid, "
            "are needed."
        )
    _check_target(target, logits)
    if logits.device.type == "cpu" and logits.shape[1] > 1 and len(logits):
        values = logits.double()
        sums = (values.sum(1) - 1).abs() < 1e-4
        if (values >= 0).numpy().all() and sums.numpy().all():
            raise GuidanceError(
                "the model returns probabilities (softmax, rows that sum to 1), not logits. Return the "
                "class scores before them, or pass model=lambda images: model(images).log(). Logits "
                "(N, K) are needed."
            )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def at_a_time(chunk: int, images: int, samples: int) -> int:
    """How many changed images Captum takes at once: one of each or more, and no more than all."""
    return max(images, min(chunk, images * samples))


def explained(explain: Explain, images: Tensor, target: Tensor) -> Tensor:
    """The maps of images, ``(N, H, W)``, detached; whatever the grad mode outside, autograd is on.

    Args:
        explain: Any callable from images and targets to maps of the images' size.
        images: ``(N, C, H, W)``.
        target: Class indices, ``(N,)``.
    """
    if not callable(explain):
        raise OptionError(
            f"explain is a {type(explain).__name__}, which cannot be called. Pass a function, or the "
            "method of an object. A callable (images (N, C, H, W), target (N,)) to maps (N, H, W) is "
            "allowed."
        )
    with torch.inference_mode(False), torch.enable_grad():
        images, target = (one.clone() if one.is_inference() else one for one in (images, target))
        maps = explain(images.detach(), target)  # the caller's own stays without a gradient
    try:
        (maps,) = check_maps(maps)
        check_images(images, like=maps)
    except ShapeError as error:
        raise ShapeError(
            f"explain returned what are no maps of the images: {first_line(error)}."
        ) from error
    return maps.detach()


def says_target(logits: Tensor, target: Tensor, *, multilabel: bool) -> Tensor:
    """Whether the model says the target, ``(N,)``, 0 or 1.

    Args:
        logits: ``(N, K)``; one logit is of class 1 against class 0.
        target: ``(N,)``.
        multilabel: Whether every class is a decision of its own, which a logit from 0 on is a yes to.
    """
    if logits.shape[1] == 1:
        hit = (logits[:, 0] >= 0) == (target == 1)
    elif multilabel:
        hit = score_of_target(logits, target) >= 0
    else:
        hit = logits.argmax(1) == target
    return hit.to(logits.dtype)


def target_probability(logits: Tensor, target: Tensor, *, multilabel: bool) -> Tensor:
    """The probability of the target, ``(N,)``: by softmax, or by sigmoid for classes of their own."""
    if multilabel or logits.shape[1] == 1:
        return score_of_target(logits, target).sigmoid()
    return score_of_target(logits.softmax(1), target)


def score_of_target(logits: Tensor, target: Tensor) -> Tensor:
    """The target's own logit, ``(N,)``; of one logit z class 1 has z and class 0 has -z."""
    if logits.shape[1] == 1:
        return torch.where(target == 1, logits[:, 0], -logits[:, 0])
    return logits.gather(1, target[:, None])[:, 0]


def check_target(target: Any, images: Tensor) -> Tensor:
    """Class indices ``(N,)`` in int64 on the images' device, or a `ShapeError`."""
    if not isinstance(target, Tensor) or target.ndim != 1 or len(target) != len(images):
        shape = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ShapeError(
            f"target is {shape} for {len(images)} images. Give one class an image: "
            "torch.tensor([...]). Class indices (N,) are allowed."
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ShapeError(
            f"target has dtype {target.dtype}. Multi-hot labels are one row for each class: "
            "labels.nonzero(). Class indices (N,), integers, are allowed."
        )
    return target.to(images.device, torch.int64)


def _check_target(target: Tensor, logits: Tensor) -> None:
    if target.device.type != "cpu" or not len(target):
        return
    count = max(logits.shape[1], 2)
    outside = (target < 0) | (target >= count)
    if outside.numpy().any():
        bad = int(target[outside][0])
        raise OptionError(
            f"target holds class {bad}, but the model has {count}. Check the label map. 0 to "
            f"{count - 1} are allowed."
        )
