"""The table of B-cos norms: which ordinary norms each stands for, entered where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from explainguide.errors import Table, operation

__all__ = ["NORMS", "NormForm", "find_form", "form_of", "in_place_of", "takes_images"]

Kind = TypeVar("Kind", bound=type[nn.Module])


@dataclass(frozen=True)
class NormForm:
    """What conversion and calibration must know of a B-cos norm.

    Attributes:
        kind: The B-cos norm.
        plain: The ordinary norms that it takes the place of. Their subclasses may compute something
            else, and are entered for themselves.
        arguments: Attributes of an ordinary norm that `kind` is built with, in this order.
        channels: The attribute that holds the number of channels.
        channels_last: Whether they take ``(N, ..., C)``, rather than ``(N, C, H, W)``.
        choices: What the argument `norm` of `bcosify` may say to get `kind`.
        running: Whether there are running statistics, with the names and the `momentum` that
            `torch.nn.BatchNorm2d` has: `calibrate` makes them those of one batch.
    """

    kind: type[nn.Module]
    plain: tuple[type[nn.Module], ...]
    arguments: tuple[str, ...]
    channels: str
    channels_last: bool
    choices: tuple[str, ...]
    running: bool


def _origin(entry: NormForm) -> str:
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in (entry.kind, *entry.plain)]
    return f"{names[0]} (in place of {', '.join(names[1:])})"


NORMS: Table[type[nn.Module], NormForm] = Table("NORMS", origin=_origin)


def in_place_of(
    *plain: type[nn.Module],
    arguments: tuple[str, ...],
    channels: str,
    channels_last: bool = False,
    choices: tuple[str, ...] = ("uncentered", "detached"),
    running: bool = False,
) -> Callable[[Kind], Kind]:
    """Enter a B-cos norm in the table: put it above the class, and `bcosify` knows the norm.

    The class must be dynamic linear: a `DynamicLinear` that holds its statistics. Where the ordinary
    norm has a bias that is kept, it is built with ``bias=True``. Weight, bias and buffers are copied by
    their names. With biases kept, an attribute `centering` is set to 1: how much of a running mean is
    subtracted, which `scale_biases` takes back.

    Args:
        plain: As in `NormForm`, and so are the others. Of two entries for one norm the later counts,
            so that a user's own comes before the package's.
        arguments: Names of attributes.
        channels: Name of an attribute.
        channels_last: For layer norms.
        choices: Both, where there is no other form.
        running: For batch norms.

    Raises:
        OptionError: Where a class is decorated that stands for other norms already.

    Example:
        >>> from explainguide.hooks.dynamic import DynamicLinear, hold
        >>> size = "normalized_shape"
        >>> @in_place_of(nn.RMSNorm, arguments=(size,), channels=size, channels_last=True)
        ... class HeldRMSNorm(DynamicLinear, nn.RMSNorm):
        ...     def forward(self, x):
        ...         scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        ...         return x * hold(scale, self.mode) * self.weight
        >>> form = find_form(nn.RMSNorm(8), "uncentered")
        >>> form.kind.__name__
        'HeldRMSNorm'
        >>> del NORMS[form.kind]
    """

    @operation("in_place_of")
    def enter(kind: Kind) -> Kind:
        NORMS[kind] = NormForm(kind, plain, arguments, channels, channels_last, choices, running)
        return kind

    return enter


def find_form(layer: nn.Module, choice: str | Callable[[int], nn.Module]) -> NormForm | None:
    """The entry for an ordinary norm; None for what is none that is known.

    Args:
        layer: The norm.
        choice: As `norm` of `bcosify`; a function leaves it open which form it is.
    """
    for form in reversed(NORMS.values()):
        if type(layer) in form.plain and (callable(choice) or choice in form.choices):
            return form
    return None


def form_of(module: nn.Module) -> NormForm | None:
    """The entry of a B-cos norm, or of the nearest one that its class extends."""
    return next((NORMS[kind] for kind in type(module).__mro__ if kind in NORMS), None)


def takes_images(norm: nn.Module) -> bool:
    """Whether a norm, an ordinary one or not, is known to take ``(N, C, H, W)``."""
    forms = [form for form in NORMS.values() if not form.channels_last]
    return any(isinstance(norm, (form.kind, *form.plain)) for form in forms)
