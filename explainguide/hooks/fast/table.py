"""The table of operations that have a fast second derivative, filled where each is defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["FAST", "Fast", "FastForm", "Unsuited", "elements", "fast_form"]

Form = TypeVar("Form", bound=Callable[..., Any])
Fast = bool | Literal["auto"]


if not hasattr(torch.library, "custom_op"):
    raise ImportError(
        f"explainguide needs torch 2.4 or newer, for torch.library.custom_op; this is torch "
        f"{torch.__version__}. Upgrade it: pip install 'torch>=2.4'."
    )

# What the fast forms ask of PyTorch that is not its public interface; a later version may not have it.
_ASKED = ("_will_engine_execute_node", "_are_functorch_transforms_active", "_functorch")


def _lacking() -> str | None:
    """A part of PyTorch that the fast forms need and that this version does not have."""
    return next((f"torch._C.{name}" for name in _ASKED if not hasattr(torch._C, name)), None)


class Unsuited(Exception):  # noqa: N818 - no error: it is always caught
    """Says why PyTorch's own operation runs in place of the fast form; never leaves this package."""


@dataclass(frozen=True)
class FastForm:
    """An operation in a form that is differentiated twice in less time, to the same values.

    Attributes:
        name: Of the operation.
        run: Takes what the operation takes; raises `Unsuited` where it cannot.
        pays: Takes what the operation takes; whether the form is faster than PyTorch's own, by
            measurements on a CPU (benchmarks/operations.py).
        autocast: What autocast does to the operation's arguments: it makes them ``"half"``
            precision or leaves them (``""``). None: it depends on the device, and PyTorch's own runs.
    """

    name: str
    run: Callable[..., Any]
    pays: Callable[..., bool]
    autocast: str | None

    def __call__(self, fast: Fast, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run it.

        Args:
            fast: ``"auto"``, where it was measured to pay, or True, wherever it can.
            args: Of the operation.
            kwargs: Likewise.

        Raises:
            Unsuited: If PyTorch's own has to run.
        """
        if (lacking := _lacking()) is not None:
            raise Unsuited(f"torch {torch.__version__} has no {lacking}")
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(type(tensor) not in _PLAIN for tensor in tensors):
            raise Unsuited("on tensors of another class")
        if not all(tensor.is_floating_point() and tensor.numel() for tensor in tensors):
            raise Unsuited("on an empty batch, or on numbers that are not floating point")
        kinds = {tensor.device.type for tensor in tensors}
        if fast == "auto" and kinds != {"cpu"}:
            raise Unsuited(f"not measured on {'/'.join(sorted(kinds))}; fast=True runs it there")
        if fast == "auto" and not self.pays(*args, **kwargs):
            raise Unsuited("too little to do; fast=True runs it all the same")
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            raise Unsuited("inside a transform of torch.func or forward-mode differentiation")
        device = tensors[0].device.type
        if not torch.is_autocast_enabled(device):
            return self.run(*args, **kwargs)
        if self.autocast is None:
            raise Unsuited("under autocast")
        if self.autocast:
            dtype = torch.get_autocast_dtype(device)
            args = tuple(_cast(value, dtype) for value in args)
            kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        return self.run(*args, **kwargs)


_PLAIN = {Tensor, torch.nn.Parameter}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """As autocast casts: float64 stays."""
    single = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if single and value.dtype != torch.float64 else value


FAST: dict[Callable[..., Any], FastForm] = {}


def fast_form(
    *operations: Callable[..., Any], name: str, pays: Callable[..., bool], autocast: str | None
) -> Callable[[Form], Form]:
    """Enter the fast form of some operations that are one by different names."""

    def enter(run: Form) -> Form:
        for operation in operations:
            FAST[operation] = FastForm(name, run, pays, autocast)
        return run

    return enter


def elements(least: int) -> Callable[..., bool]:
    """Whether an operation's input has so many elements: what a form costs by itself is fixed."""

    def pays(input: Tensor, *args: Any, **kwargs: Any) -> bool:
        return input.numel() >= least

    return pays
