"""Which classes of a batch are explained, and with whose region each is compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainguide.annotations.forms import Regions
from explainguide.errors import OptionError
from explainguide.host import send

__all__ = ["Choice", "choose_classes"]


class Choice(NamedTuple):
    """S classes of every image.

    Attributes:
        classes: What is explained, ``(S, N)`` int64.
        regions: Whose region it is compared with, ``(S, N)``; -1 for all objects.
        valid: Whether there is such a class, ``(S, N)`` bool.
    """

    classes: Tensor
    regions: Tensor
    valid: Tensor


def choose_classes(
    mode: str,
    regions: Regions,
    logits: Tensor,
    target: Any,
    *,
    negatives: float,
    generator: torch.Generator | None,
) -> Choice:
    """The classes that are explained, without synchronising with the device.

    Args:
        mode: "sample", "all" or "predicted".
        regions: The batch's annotations.
        logits: ``(N, K)``.
        target: None, class indices ``(N,)`` on the logits' device, or multi-hot labels ``(N, K)``.
        negatives: Probability of a class that the image does not show, against all its objects.
        generator: For the draw.

    Raises:
        OptionError: If the target cannot be used, or is needed and missing.
    """
    annotated = regions.presence(logits.shape[1])
    if mode == "predicted":
        if target is not None:
            raise OptionError(
                "a target is given, but the guide explains the predicted class. Leave it "
                "out. target='sample' takes one."
            )
        classes = logits.detach().argmax(1)[None]
        return Choice(classes, classes, torch.ones_like(classes, dtype=torch.bool))
    if isinstance(target, Tensor) and target.ndim == 1:
        candidates = target[:, None] == torch.arange(logits.shape[1], device=target.device)
        shown = candidates if annotated is None else candidates | annotated
    elif target is not None:
        labels = target > 0
        candidates = labels if annotated is None else labels & annotated
        shown = labels if annotated is None else labels | annotated
    elif annotated is not None:
        candidates = shown = annotated
    else:
        raise OptionError(
            "masks (N, H, W) do not say their class. Pass target. Class indices (N,) or "
            "multi-hot labels (N, K) are allowed."
        )
    if mode == "all":
        slots = logits.shape[1] if annotated is None else regions.most_classes
        if isinstance(target, Tensor) and target.ndim == 1:
            slots = 1
        rank = torch.arange(max(min(slots, logits.shape[1]), 1), device=logits.device)
        classes, valid = _nth(candidates, rank[:, None].expand(-1, len(logits)))
        return Choice(classes, classes, valid)
    draws = _uniform(2, len(logits), logits.device, generator)
    classes, valid = _nth(candidates, _rank(candidates, draws[0])[None])
    absent, possible = _nth(~shown, _rank(~shown, draws[0])[None])
    negative = possible & (draws[1] < negatives)
    return Choice(
        torch.where(negative, absent, classes),
        torch.where(negative, -1, classes),
        valid | negative,
    )


def _uniform(
    rows: int, count: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """On the generator's device, so that one seed means one sequence of draws everywhere."""
    source = device if generator is None else generator.device
    draws = torch.rand(rows, count, generator=generator, device=source)
    return send(draws, device)


def _rank(present: Tensor, uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) to a uniform place among the present classes, ``(N,)``."""
    count = present.sum(1)
    return torch.minimum((uniform * count).long(), (count - 1).clamp(min=0))


def _nth(present: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The class at a place among the present ones: ``(N, K)``, ``(S, N)`` -> twice ``(S, N)``."""
    hit = present & (present.cumsum(1) == rank[..., None] + 1)
    return hit.int().argmax(-1), hit.any(-1)
