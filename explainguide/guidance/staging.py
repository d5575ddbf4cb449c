"""A loss in two stages: at the layer's resolution, and at the mask's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainguide.errors import OptionError, did_you_mean
from explainguide.losses import (
    LOSSES,
    Loss,
    l1_loss,
    positive_part,
    ppce_loss,
    rrr_loss,
    scale_by_max,
)

__all__ = ["StagedLoss", "resolve_loss", "with_options"]


class StagedLoss(NamedTuple):
    """A loss as the guide applies it to a hidden layer: before and after the map is upsampled.

    Attributes:
        prepare: ``(N, h, w) -> (N, h, w)`` at the layer's resolution.
        compare: ``(N, H, W), (N, H, W) -> (N,)`` at the mask's.
    """

    prepare: Callable[[Tensor], Tensor]
    compare: Loss


def resolve_loss(loss: str | Loss) -> StagedLoss:
    """A name, a loss of this module (also as a `functools.partial`), or any callable.

    The losses that normalise do so at the layer's own resolution, as the authors' program does; the
    maximum of an upsampled map may then be below 1. Other callables get the upsampled raw map.

    Raises:
        OptionError: If the name is unknown.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise OptionError(
                f"unknown loss {loss!r}.{did_you_mean(loss, LOSSES)} "
                f"{', '.join(map(repr, LOSSES))}, or a callable, are allowed."
            )
        loss = LOSSES[loss]
    if not callable(loss):
        raise OptionError(
            f"loss is a {type(loss).__name__}. Use loss='energy'. A name or a callable "
            "(attribution (N, H, W), mask (N, H, W)) -> (N,) is allowed."
        )
    function, options = loss, {}
    if isinstance(loss, partial) and not loss.args:
        function, options = loss.func, dict(loss.keywords)
    normalize: Any = options.get("normalize", True)
    if function in (l1_loss, ppce_loss):
        prepare: Callable[[Tensor], Tensor] = partial(positive_part, normalize=normalize)
    elif function is rrr_loss and normalize:
        prepare = scale_by_max
    else:
        return StagedLoss(lambda maps: maps, loss)
    return StagedLoss(prepare, partial(function, **{**options, "normalize": False}))


def with_options(loss: str, options: Mapping[str, Any]) -> str | Loss:
    """A loss of the table with options of its own; the name itself where there are none.

    Args:
        loss: A name in `LOSSES`.
        options: Keyword arguments of that function.

    Raises:
        OptionError: If the loss has no such option, or refuses its value.
    """
    if not options:
        return loss
    parameters = signature(LOSSES[loss]).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in allowed:
            raise OptionError(
                f"the loss {loss!r} has no option {name!r}.{did_you_mean(name, allowed)} "
                f"It has {', '.join(map(repr, allowed)) or 'none'}."
            )
    chosen = partial(LOSSES[loss], **options)
    ones = torch.ones(1, 2, 2)
    try:
        chosen(ones, ones)  # now rather than in the first step
    except (OptionError, TypeError) as error:
        raise OptionError(
            f"the loss {loss!r} refuses its options {dict(options)}: {error}"
        ) from error
    return chosen
