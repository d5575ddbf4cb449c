"""The localization loss of one forward pass: regions, classes, scores, maps, comparison, reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explainguide.annotations.class_choice import Choice, choose_classes
from explainguide.annotations.forms import as_regions
from explainguide.annotations.labels import as_labels, check_multi_hot, mark_soft
from explainguide.attr import LayerMap
from explainguide.attr.evidence import explain, usable
from explainguide.errors import OptionError, warn
from explainguide.guidance.comparison import Chosen, compare
from explainguide.guidance.options import GuideOptions
from explainguide.guidance.part import explained_part
from explainguide.guidance.refusals import check_devices, tell_overflow
from explainguide.hooks.derivatives import check_derivatives
from explainguide.hooks.logits import (
    class_scores,
    count_classes,
    ends_in_log_softmax,
    log_probabilities,
    target_tensor,
)
from explainguide.hooks.sharded import from_logits
from explainguide.hooks.tap import ForwardPass, Tap
from explainguide.losses.table import StagedLoss

__all__ = ["Objective", "localize"]


@dataclass(frozen=True)
class Objective:
    """What a guide computes: its options, resolved for its model.

    Attributes:
        options: As they were given.
        attribution: Built for the model.
        loss: In its two stages.
        layer_weights: One a layer.
        generator: For the draw of classes.
        group: The processes whose annotated images a mean is over.
    """

    options: GuideOptions
    attribution: LayerMap
    loss: StagedLoss
    layer_weights: list[float]
    generator: torch.Generator | None
    group: Any


def localize(
    objective: Objective,
    tap: Tap,
    passed: ForwardPass,
    annotations: Any,
    target: Any,
    *,
    alone: bool = False,
    examine: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The localization loss of one forward pass, and the maps that it is made of.

    Args:
        objective: What the guide computes.
        tap: Reads the model, for attributions that run it again.
        passed: The forward pass.
        annotations: As `ExplanationGuidance.loss_loc` takes them.
        target: Likewise.
        alone: Whether the other processes of a distributed run make no such call.
        examine: Whether to look, without computing anything, for operations that cannot be
            differentiated twice, and for log-probabilities in place of logits.

    Returns:
        A scalar, or ``(N,)`` with reduction="none"; and ``{layer: (N, h, w)}``, detached.
    """
    method, options = objective.attribution, objective.options
    logits = method.logits(passed)
    check_devices(logits, passed.features)
    tell_overflow(logits)
    scores = class_scores(logits)
    labels = _labels(target, logits)
    targets = target_tensor(labels, logits)
    regions = as_regions(
        annotations,
        scores,
        passed.image_size,
        target=None if options.target == "predicted" else labels,
        first_label=options.first_label,
    )
    choice = choose_classes(
        options.target,
        regions,
        scores,
        targets,
        negatives=options.negatives,
        generator=objective.generator,
    )
    chosen = Chosen(regions, choice.regions, passed.image_size)
    annotated = choice.valid & chosen.have_pixels()
    with explained_part(method, tap, passed, logits, annotated, regions, fast=options.fast) as part:
        asked = choice._replace(classes=part.take(choice.classes, 1))
        shown, chosen = part.take(annotated, 1), chosen.of(part.rows)
        maps, evidence = explain(
            method,
            part.tap,
            part.passed,
            score=lambda z: _score(z, options.score, asked, shown),
            create_graph=True,
        )
    detached = {}
    dtype = next(iter(maps.values())).dtype
    share = shown.to(dtype) / shown.sum(0).clamp(min=1)  # of a class in its image
    total = torch.zeros(shown.shape[1], dtype=dtype, device=logits.device)
    for (name, layer_maps), weight in zip(maps.items(), objective.layer_weights, strict=True):
        averaged = (layer_maps.detach() * share[..., None, None]).sum(0)
        detached[name] = part.spread(averaged, len(logits))
        losses = compare(
            objective.loss,
            options.names()[1],
            layer_maps,
            chosen,
            non_negative=method.non_negative,
        )
        total = total + weight * torch.where(shown, losses * share, 0).sum(0)
    total = mark_soft(part.spread(total, len(logits)), targets)
    if options.reduction != "none":
        total = total.sum()
    if options.reduction == "mean":
        total = total * _per_image(annotated.any(0).sum().to(dtype), objective, alone)
    total = from_logits(total, logits, method.model)
    if examine:
        check_derivatives(total, evidence.logits, evidence.features.values(), model=method.model)
        if options.score == "logit" and ends_in_log_softmax(logits):
            warn(
                "the model returns log-probabilities, so score='logit' explains log p of "
                "class k. Pass score='log_prob' to say so."
            )
    return total, detached


def _per_image(count: Tensor, objective: Objective, alone: bool) -> Tensor:
    """What makes a sum over this process's annotated images a mean.

    DistributedDataParallel averages the gradients of W processes, so that a sum times W over the
    number of annotated images in all of them is the mean over those images.
    """
    world = 1
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together and objective.options.sync_dist and not alone:
        world = torch.distributed.get_world_size(objective.group)
        torch.distributed.all_reduce(count, group=objective.group)
    return world / count.clamp(min=1)


def _score(logits: Tensor, kind: str, choice: Choice, annotated: Tensor) -> Tensor:
    """``(S, N)``, zero where there is nothing to explain."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    scores = class_scores(scores) if kind == "logit" else log_probabilities(scores)
    if kind == "sum_log_probs":
        chosen = scores.sum(1).expand(choice.classes.shape)
    else:
        chosen = scores.gather(1, choice.classes.T).T
    return torch.where(annotated, chosen, 0)


def _labels(target: Any, logits: Tensor) -> Tensor | None:
    """Class indices, or multi-hot labels ``(N, K)``; one logit has two classes."""
    if target is None:
        return None
    if isinstance(target, str):
        raise OptionError(
            f"target is {target!r}. Give class indices or multi-hot labels; a guide that is "
            "built with target='predicted' explains the predicted class. (N,) or (N, K) is allowed."
        )
    labels: Tensor = usable(as_labels(target))
    if logits.shape[1] == 1:
        column = labels.shape == (len(logits), 1)
        if column or (labels.shape == (len(logits),) and labels.is_floating_point()):
            shown = labels.reshape(-1, 1).to(logits.dtype)  # labels as BCEWithLogitsLoss takes them
            labels = torch.cat([1 - shown, shown], 1)
    if labels.ndim == 2:
        check_multi_hot(labels, (len(logits), count_classes(logits)))
    return labels
