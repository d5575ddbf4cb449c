"""The sanity check of explanations: what is left of a map when the model's weights are random."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from explainguide.errors import (
    GuidanceError,
    OptionError,
    ShapeError,
    check_number,
    first_line,
    operation,
)
from explainguide.evaluation.random_weights import (
    named_stages,
    order_of_calls,
    planned_stages,
    randomise,
)
from explainguide.evaluation.similarity import rank_correlation, structural_similarity
from explainguide.hooks.sharded import check_whole
from explainguide.metrics.model_calls import check_images, check_target, explained, is_alive

__all__ = ["SanityStage", "sanity_check"]

_SMALLEST = 11  # pixels, of the Gaussian window of SSIM


@dataclass(frozen=True)
class SanityStage:
    """How alike the maps are to those of the model as it was, after one more stage is random.

    Attributes:
        stage: Name of the module whose parameters were drawn, with those of all stages before.
        reset: Its parameters that were drawn by their modules' ``reset_parameters``, by name, and the
            buffers that it reset, as the running statistics of a norm.
        redrawn: Those that were drawn from a normal of their own mean and standard deviation.
        rank_correlation: Mean over images of Spearman's correlation of the signed maps, in [-1, 1].
        rank_correlation_absolute: The same of their magnitudes.
        ssim: Mean over images of the structural similarity of the signed maps, at most 1.
        ssim_absolute: The same of their magnitudes.
        undefined: Images left out of the means, whose map, before or now, is constant in magnitude or
            not finite. NaN where no image is left.
    """

    stage: str
    reset: tuple[str, ...]
    redrawn: tuple[str, ...]
    rank_correlation: float
    rank_correlation_absolute: float
    ssim: float
    ssim_absolute: float
    undefined: int


@operation("sanity_check")
def sanity_check(
    method: Any,
    images: Tensor,
    target: Tensor,
    *,
    model: nn.Module | None = None,
    explain: Callable[[Any, Tensor, Tensor], Tensor] | None = None,
    stages: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> list[SanityStage]:
    """Randomise a model from its last layer to its first, and see whether its explanations change.

    A map that stays as it was while the weights go explains the image, not the model. The stages add
    up: after the second, both are random. The method is copied together with its model, and the copy
    is randomised: the user's model is never changed. It is explained in evaluation mode. Costs an
    explanation of all images for each stage, and one before. In a distributed run each process checks
    the images that it is given.

    A parameter is drawn by its module's own ``reset_parameters``. Where a module has none, or it leaves
    the parameter as it was (as of a parametrised weight), it is drawn from a normal of the
    parameter's own mean and standard deviation; a constant one stays. `SanityStage` says which.

    Args:
        method: An attribution that holds its model and can be deep-copied with it: one of
            `explainguide.attr`, one of Captum; or a callable object ``(images, target) -> maps``. No
            function: those are not copied.
        images: As the model takes them, ``(N, C, H, W)``, 11 pixels or more on each side. Some dozens
            are enough.
        target: The class to explain, ``(N,)``, the same at every stage.
        model: That of the method, where it is none of its attributes ``model`` and ``forward_func``.
        explain: How the method is called, ``(method, images, target)``; by default
            ``method.attribute(images, target=target)``. Maps ``(N, C, h, w)`` are summed over channels
            and interpolated (bilinear) to the image.
        stages: Names of modules in the order in which they are randomised, each with all that is in
            it; by default every module that has parameters of its own, the one that runs last first.
        batch_size: Images that are explained at a time.
        seed: Of the draws. The global generators stay as they were.
        progress: Whether to show a bar.

    Returns:
        One `SanityStage` a stage, in the order of randomisation.

    Raises:
        GuidanceError: If the method cannot be copied, or does not run the copy of its model.
        LayerError: If a stage is no module of the model.
        OptionError: If the model cannot be found, or another option is not allowed.
        ShapeError: If a shape or dtype differs from the above.

    References:
        Adebayo et al., 2018, "Sanity Checks for Saliency Maps", Sec. 4.1: cascading randomisation, with
        Spearman's rank correlation and SSIM.

    Example:
        >>> from explainguide.attr import InputXGradient
        >>> from explainguide.models import small_cnn
        >>> method = InputXGradient(small_cnn(10))
        >>> found = sanity_check(method, torch.rand(2, 3, 32, 32), torch.tensor([1, 2]))
        >>> found[0].stage, found[0].reset
        ('head', ('head.weight', 'head.bias'))
    """
    check_number("batch_size", batch_size, least=1, whole=True)
    check_number("seed", seed, least=0, whole=True)
    check_images(images)
    target = check_target(target, images)
    if not len(images) or min(images.shape[-2:]) < _SMALLEST:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}. Take some dozens, or resize them: structural "
            f"similarity looks through a window of {_SMALLEST} x {_SMALLEST} pixels. One image or "
            "more, of that size or larger, is allowed."
        )
    found = _model_of(method) if model is None else model
    check_whole(found, remedy="Load its full state dict in a model of its own.")
    method, copied = _copied(method, found)
    copied.eval()

    def maps() -> list[Tensor]:
        return [
            _maps(method, explain, part, classes)
            for part, classes in zip(
                images.split(batch_size), target.split(batch_size), strict=True
            )
        ]

    with order_of_calls(copied) as called:
        before = maps()
    if "" not in called:
        raise GuidanceError(
            f"the copy of {type(method).__name__} does not run the copy of the model, as a function, "
            "which is not copied, or a method that asks no model. Pass an object that holds the model, "
            "or the model that it holds as model=. An attribution whose model is copied with it is "
            "allowed."
        )
    plan = planned_stages(copied, called) if stages is None else named_stages(copied, stages)
    rows = []
    for number, (stage, modules) in enumerate(tqdm(plan.items(), "sanity", disable=not progress)):
        reset, redrawn = randomise(modules, seed=seed, stage=number)
        name = stage or type(copied).__name__
        rows.append(SanityStage(name, reset, redrawn, *_compare(before, maps())))
    return rows


def _model_of(method: Any) -> nn.Module:
    for name in ("model", "forward_func"):
        held = getattr(method, name, None)
        if isinstance(held, nn.Module):
            return held
    raise OptionError(
        f"{type(method).__name__} has no model in its attributes 'model' and 'forward_func'. Pass the "
        "model that it holds as model=. An attribution with its model is allowed."
    )


def _copied(method: Any, model: nn.Module) -> tuple[Any, nn.Module]:
    """Both at once, so that the copy of the method holds the copy of the model."""
    try:
        copies: tuple[Any, nn.Module] = copy.deepcopy((method, model))
    except Exception as error:
        raise GuidanceError(
            f"{type(method).__name__} cannot be copied with its model ({first_line(error)}). Build it "
            "anew on a model that holds no graph. What copy.deepcopy copies is allowed."
        ) from error
    return copies


def _maps(
    method: Any,
    explain: Callable[[Any, Tensor, Tensor], Tensor] | None,
    images: Tensor,
    target: Tensor,
) -> Tensor:
    """The maps of some images at their size, ``(N, H, W)``."""

    def call(images: Tensor, target: Tensor) -> Tensor:
        if explain is not None:
            found = explain(method, images, target)
        elif hasattr(method, "attribute"):
            # Captum warns where it has to ask for the gradient itself.
            found = method.attribute(images.requires_grad_(), target=target)
        else:
            found = method(images, target)
        if not isinstance(found, Tensor) or found.ndim not in (3, 4):
            return found  # refused by who asked
        found = found.sum(1) if found.ndim == 4 else found
        if found.shape[-2:] != images.shape[-2:]:
            size = tuple(images.shape[-2:])
            found = F.interpolate(found[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return found

    return explained(call, images, target)


def _compare(before: list[Tensor], now: list[Tensor]) -> tuple[float, float, float, float, int]:
    """The four means, and how many images are left out of them."""
    parts, count = [], 0
    for first, second in zip(before, now, strict=True):
        # A magnitude that is not constant is of a map that is not.
        alive = is_alive(first.abs()) & is_alive(second.abs())
        count += len(alive)
        first, second = first[alive], second[alive]
        if not len(first):
            continue
        absolute = first.abs(), second.abs()
        scores = [
            rank_correlation(first, second),
            rank_correlation(*absolute),
            structural_similarity(first, second, lowest=-1),
            structural_similarity(*absolute, lowest=0),
        ]
        parts.append(torch.stack([score.double().cpu() for score in scores], 1))
    table = torch.cat(parts) if parts else torch.zeros(0, 4)
    one, two, three, four = table.mean(0).tolist()
    return one, two, three, four, count - len(table)
