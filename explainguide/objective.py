"""The localization loss of one forward pass: regions, classes, scores, maps, comparison, reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.attr import Evidence, LayerMap
from explainguide.attr.base import read_features, rerun
from explainguide.errors import LayerError, ShapeError
from explainguide.labels import FirstLabel, as_labels, check_multi_hot, mark_soft
from explainguide.logits import as_targets, check_logits
from explainguide.regions import Choice, as_regions, choose_classes
from explainguide.staging import StagedLoss
from explainguide.tap import ForwardPass, Tap

__all__ = ["Settings", "localize"]


@dataclass(frozen=True)
class Settings:
    """What an `ExplanationGuidance` was built with, checked and resolved."""

    model: nn.Module
    modules: dict[str, nn.Module | None]
    attribution: LayerMap
    loss: StagedLoss
    target: str
    score: str
    negatives: float
    layer_weights: list[float]
    reduction: str
    generator: torch.Generator | None
    first_label: FirstLabel
    names: tuple[str, str]  # attribution and loss, for repr and errors


def localize(
    settings: Settings,
    tap: Tap,
    passed: ForwardPass,
    annotations: Any,
    target: Any,
    *,
    caller: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The localization loss of one forward pass, and the maps that it is made of.

    Args:
        settings: What the guide was built with.
        tap: Reads the model, for attributions that run it again.
        passed: The forward pass.
        annotations: As `ExplanationGuidance.loss_loc` takes them.
        target: Likewise.
        caller: The public callable that errors name.

    Returns:
        A scalar, or ``(N,)`` with reduction="none"; and ``{layer: (N, h, w)}``, detached.
    """
    logits = check_logits(passed.logits, caller=caller)
    features, layouts = read_features(
        settings.model,
        settings.modules,
        passed,
        reading=settings.attribution.reading,
        caller=caller,
    )
    if not logits.requires_grad:
        first = next(iter(settings.modules))
        raise LayerError(
            f"{caller}: the logits do not depend on layer {first!r}, or were detached. "
            "Choose a layer between the image and the logits. `check` shows the gradients."
        )
    targets = _target_tensor(target, logits, caller)
    regions = as_regions(
        annotations,
        logits,
        passed.image_size,
        target=None if settings.target == "predicted" else target,
        first_label=settings.first_label,
        caller=caller,
    )
    choice = choose_classes(
        settings.target,
        regions,
        logits,
        targets,
        negatives=settings.negatives,
        generator=settings.generator,
        caller=caller,
    )
    masks = regions.region(choice.regions, passed.image_size)
    annotated = choice.valid & (masks > 0).flatten(2).any(2)
    evidence = Evidence(
        features,
        layouts,
        logits,
        score=lambda z: _score(z, settings.score, choice, annotated),
        images=passed.images,
        rerun=lambda substitutes: rerun(settings.model, tap, passed, substitutes),
        create_graph=True,
        caller=caller,
        attentions=passed.attentions,
    )
    maps, detached = settings.attribution.maps(evidence), {}
    dtype = next(iter(maps.values())).dtype
    share = annotated.to(dtype) / annotated.sum(0).clamp(min=1)  # of a class in its image
    total = torch.zeros(len(logits), dtype=dtype, device=logits.device)
    for (name, found), weight in zip(maps.items(), settings.layer_weights, strict=True):
        detached[name] = (found.detach() * share[..., None, None]).sum(0)
        losses = _compare(settings, found, masks.to(found.dtype), caller)
        total = total + weight * torch.where(annotated, losses * share, 0).sum(0)
    total = mark_soft(total, targets)
    if settings.reduction == "none":
        return total, detached
    if settings.reduction == "sum":
        return total.sum(), detached
    return total.sum() / annotated.any(0).sum().clamp(min=1), detached


def _compare(settings: Settings, maps: Tensor, masks: Tensor, caller: str) -> Tensor:
    """``(S, N, h, w)`` and ``(S, N, H, W)`` to ``(S, N)``: prepare, upsample, compare."""
    size = masks.shape[-2:]
    flat = settings.loss.prepare(maps.flatten(0, 1))
    if flat.shape[-2:] != size:
        flat = F.interpolate(flat[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    losses = settings.loss.compare(flat, masks.flatten(0, 1))
    if not isinstance(losses, Tensor) or losses.shape != flat.shape[:1]:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ShapeError(
            f"{caller}: the loss {settings.names[1]!r} returned {got} for {len(flat)} maps. Do not "
            "reduce over images. (attribution (N, H, W), mask (N, H, W)) -> (N,) is allowed."
        )
    return losses.unflatten(0, maps.shape[:2])


def _score(logits: Tensor, kind: str, choice: Choice, annotated: Tensor) -> Tensor:
    """``(S, N)``, zero where there is nothing to explain."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if kind != "logit":
        scores = scores.log_softmax(1)
    if kind == "sum_log_probs":
        chosen = scores.sum(1).expand(choice.classes.shape)
    else:
        chosen = scores.gather(1, choice.classes.T).T
    return torch.where(annotated, chosen, 0)


def _target_tensor(target: Any, logits: Tensor, caller: str) -> Tensor | None:
    """Class indices ``(N,)`` or multi-hot labels ``(N, K)``."""
    if target is None:
        return None
    target = as_labels(target, caller=caller)
    if target.ndim == 2:
        check_multi_hot(target, (logits.shape[0], logits.shape[1]), caller=caller)
        return target.to(logits.device, non_blocking=True)
    return as_targets(target, logits, caller=caller)
