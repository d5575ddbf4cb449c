"""The losses by name, and what each does at the layer's resolution and at the mask's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from explainguide.errors import OptionError, Table, did_you_mean, first_line, named, operation
from explainguide.named import check_values, look_up, parameters_of

__all__ = [
    "LOSSES",
    "Coarse",
    "Loss",
    "StagedLoss",
    "localization_loss",
    "resolve_loss",
    "with_options",
]

Loss = Callable[[Tensor, Tensor], Tensor]
Coarse = Callable[..., Tensor | None]
Function = TypeVar("Function", bound=Callable[..., Tensor])
LOSSES: Table[str, Callable[..., Tensor]] = Table("LOSSES")


class _Stages(NamedTuple):
    """What a loss says of itself.

    Attributes:
        prepare: ``(N, h, w) -> (N, h, w)`` at the layer's resolution; it gets those options of the
            loss that it names.
        prepared: Options with which the loss takes maps that are prepared already.
        coarse: As `localization_loss` takes it.
        entry: The loss itself, as it is in the table.
    """

    prepare: Callable[..., Tensor]
    prepared: Mapping[str, Any]
    coarse: Coarse | None
    entry: Callable[..., Tensor]


def localization_loss(
    prepare: Callable[..., Tensor] | None = None,
    *,
    prepared: Mapping[str, Any] | None = None,
    coarse: Coarse | None = None,
) -> Callable[[Function], Function]:
    r"""Enter a loss in the table, under its name less ``_loss``.

    A guide compares at the mask's resolution. What has to happen before the map is upsampled, at the
    layer's own resolution, is the loss's to say; so is how its value is found without upsampling.

    Args:
        prepare: ``(N, h, w) -> (N, h, w)``, such as a normalisation. It gets those options of the loss
            that it names. None: the map is upsampled as it is.
        prepared: Options with which the loss takes maps that are prepared already.
        coarse: ``(prepared maps (N, h, w), Sums, *, options) -> (N,)``: the loss's own value and
            gradient of the upsampled map, from `explainguide.losses.sums.Sums`, for masks that are
            made of boxes. None where they would be others: for maps that may be negative, or with
            these options. It is asked only if it names all options that are given.

    Raises:
        OptionError: Where a function is decorated whose name another loss has.

    Example:
        >>> @localization_loss()
        ... def inside_loss(attribution, mask):
        ...     return -(attribution * mask).sum((1, 2))
        >>> LOSSES.pop("inside")(torch.ones(1, 2, 2), torch.ones(1, 2, 2))
        tensor([-4.])
    """

    @operation("localization_loss")
    def enter(function: Function) -> Function:
        entry = named(function.__name__)(function)
        options = {} if prepare is None else prepared or {}
        of_places = coarse and named(function.__name__)(coarse)
        stages = _Stages(prepare or _as_it_is, options, of_places, entry)
        entry._stages = stages  # type: ignore[attr-defined]
        LOSSES[function.__name__.removesuffix("_loss")] = entry
        return entry

    return enter


class StagedLoss(NamedTuple):
    """A loss as the guide applies it to a hidden layer: before and after the map is upsampled.

    Attributes:
        prepare: ``(N, h, w) -> (N, h, w)`` at the layer's resolution.
        compare: ``(N, H, W), (N, H, W) -> (N,)`` at the mask's.
        coarse: The same at the layer's, from prepared maps; or None, or what returns None.
    """

    prepare: Callable[[Tensor], Tensor]
    compare: Loss
    coarse: Coarse | None = None


def resolve_loss(loss: str | Loss) -> StagedLoss:
    """A name, a loss of the table (also as a `functools.partial`), or any callable.

    The losses that normalise do so at the layer's own resolution, as the authors' program does; the
    maximum of an upsampled map may then be below 1. Callables that say nothing of it get the upsampled
    raw map.

    Raises:
        OptionError: If the name is unknown.
    """
    if isinstance(loss, str):
        loss = look_up("loss", loss, LOSSES, also="a callable")
    if not callable(loss):
        raise OptionError(
            f"loss is a {type(loss).__name__}. Use loss='energy'. A name or a callable "
            "(attribution (N, H, W), mask (N, H, W)) -> (N,) is allowed."
        )
    function, options = loss, {}
    if isinstance(loss, partial) and not loss.args:
        function, options = loss.func, dict(loss.keywords)
    stages: _Stages | None = getattr(function, "_stages", None)
    if stages is None:
        return StagedLoss(_as_it_is, loss)
    taken = {n: v for n, v in options.items() if n in _named_by(stages.prepare)}
    coarse = stages.coarse
    # What wraps the entry, as `functools.wraps` does, has its attributes but may return other values.
    if coarse is None or stages.entry is not function or not options.keys() <= _named_by(coarse):
        coarse = None
    return StagedLoss(
        partial(stages.prepare, **taken),
        partial(function, **{**options, **stages.prepared}),
        None if coarse is None else partial(coarse, **options),
    )


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


def _named_by(prepare: Callable[..., Any]) -> set[str]:
    """What a function names of its options; one written in C may name none."""
    try:
        return set(signature(prepare).parameters)
    except ValueError:
        return set()


def with_options(loss: str, options: Mapping[str, Any]) -> str | Loss:
    """A loss of a name with options of its own; the name itself where there are none.

    Args:
        loss: A name in `LOSSES`, or ``package.module:function``.
        options: Keyword arguments of that function.

    Raises:
        OptionError: If the loss has no such option, or refuses its value.
    """
    if not options:
        return loss
    function = look_up("loss", loss, LOSSES)
    parameters = parameters_of(function, loss)
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
    for name in options:
        if name in positional:
            raise OptionError(
                f"the loss {loss!r} takes {name!r} by position too. Write (attribution, mask, *, "
                f"{name}=...): options stand after the star. Keyword-only parameters are allowed."
            )
        if name not in allowed:
            raise OptionError(
                f"the loss {loss!r} has no option {name!r}.{did_you_mean(name, allowed)} "
                f"It has {', '.join(map(repr, allowed)) or 'none'}."
            )
    check_values(f"the loss {loss!r}", function, options)
    chosen = partial(function, **options)
    refusal = _refusal(chosen) if function in LOSSES.values() else None
    # What else is wrong with these maps, which are not the loss's own, its options have no part in.
    if isinstance(refusal, OptionError) or (refusal is not None and _refusal(function) is None):
        why = f"{first_line(refusal)}. Change them, or leave them out. What the loss takes is allowed."
        if isinstance(refusal, OptionError):
            why = str(refusal)
        raise OptionError(
            f"the loss {loss!r} refuses its options {dict(options)}: {why}"
        ) from refusal
    return chosen


def _refusal(loss: Loss) -> Exception | None:
    """What a loss says of its options, now rather than in the first step; None where it runs."""
    ones = torch.ones(1, 64, 64)
    try:
        loss(ones, ones)
    except (TypeError, ValueError) as error:
        return error
    except Exception:  # such as an operation that wants larger maps
        return None
    return None
