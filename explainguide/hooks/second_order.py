"""Forms of an operation that can be differentiated twice, for the forward pass that is guided only.

A localization loss is a function of a gradient, so training through it differentiates every
operation after the layer a second time. Two kinds of operation have no second derivative in
PyTorch: the fused attention kernels, and ``hardsigmoid``. Inside `TwiceDifferentiable` they run in a
form that has one, with equal values. Outside, the fast form runs as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from explainguide.errors import GuidanceError, operation
from explainguide.hooks.attention import SHOWN, Weights, as_fused
from explainguide.hooks.fast import FAST, Fast, Unsuited
from explainguide.hooks.pass_mode import PassMode
from explainguide.hooks.token_grid import Steps

__all__ = ["TwiceDifferentiable"]


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``relu6(x + 3) / 6``: the definition of hardsigmoid, in operations that have derivatives."""
    value = F.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


_aten_nn: Any = torch._C._nn  # what torch.nn.functional calls, and some models call themselves
_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    _aten_nn.hardsigmoid: _hardsigmoid,
    _aten_nn.hardsigmoid_: partial(_hardsigmoid, inplace=True),
}

# Callers of the fused kernels, whose explicit form torch has itself. The choice between them is a
# global flag, set for the one call: flags that stayed set over two guides' passes would come back in
# the wrong order.
_ATTENTION = {
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.multi_head_attention_forward: "multi_head_attention_forward",
}


def _is_checkpointed() -> bool:
    """Whether the call comes from `torch.utils.checkpoint`, which tells nobody that it runs."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == torch.utils.checkpoint.__name__:
            return True
        frame = frame.f_back
    return False


def _reads(mode: TorchFunctionMode) -> bool:
    """Whether a mode further out is another guide's, which must see the operation itself."""
    return isinstance(mode, PassMode)


def _refuse_checkpointing(name: str) -> None:
    """A checkpointed segment is computed again in backward, outside this mode: by the other form."""
    if _is_checkpointed():
        with operation("ExplanationGuidance"):
            raise GuidanceError(
                f"{name} runs inside a checkpointed segment above the guided layer, "
                "where it cannot be differentiated twice. Turn gradient checkpointing off, or guide a "
                "layer above the segment. Other operations may be checkpointed (use_reentrant=False)."
            )


class TwiceDifferentiable(PassMode):
    """Context of one forward pass; passive until `activate` is called within it.

    It is entered before the model runs and left after, so that modes stay properly nested; it is
    activated at the first guided layer, because nothing before that layer is differentiated twice.

    Attributes:
        replaced: Names of the operations that ran in another form.
        fast: Names of the operations that ran in a fast form.
        slow: Names of operations that have one and ran as PyTorch has them, and why.
        steps: Notes what the operations show of the places of tokens.
        record: Takes the weights of an attention that runs while the mode is active; None leaves
            them where they are.
        late: Whether operations before `activate` run without this mode, as compiled ones must:
            torch.compile compiles it along, and once more for all that it remembers.
    """

    def __init__(
        self, steps: Steps | None = None, *, fast: Fast = False, late: bool = False
    ) -> None:
        super().__init__()
        self.late = late
        self.steps = steps or Steps()
        self.fast: set[str] = set()
        self.slow: dict[str, str] = {}
        self._fast = fast
        self.replaced: set[str] = set()
        self.record: Callable[[Weights], None] | None = None
        self._active = False

    def __enter__(self) -> TwiceDifferentiable:
        if not self.late:
            return super().__enter__()
        self.wait()
        return self

    def activate(self) -> None:
        """From here to the end of the context, replace what has no second derivative."""
        self.join()
        self._active = True

    def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run an operation, in another form where it has no second derivative."""
        if self._active and self.record is not None and func in SHOWN:
            return self._show(self.record, func, args, kwargs)
        if not self._active or not (func in _ATTENTION or func in _REPLACEMENTS):
            output = self._fastest(func, args, kwargs)
            self.steps.note(func, args, kwargs, output)
            return output
        name = _ATTENTION.get(func) or func.__name__.strip("_")
        _refuse_checkpointing(name)
        self.replaced.add(name)
        if func in _REPLACEMENTS:
            return _REPLACEMENTS[func](*args, **kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            output = self._fastest(func, args, kwargs)
        return as_fused(output) if func is F.scaled_dot_product_attention else output

    def _fastest(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The operation, in its fast form where it has one that is asked for."""
        if (
            torch.compiler.is_compiling()
        ):  # a part of the model alone, whose derivatives are its own
            return func(*args, **kwargs)
        form = FAST.get(func) if self._active and self._fast and torch.is_grad_enabled() else None
        if form is None or any(map(_reads, _get_current_function_mode_stack())):
            return func(*args, **kwargs)
        try:
            if _is_checkpointed():  # and would be computed again in the other form
                raise Unsuited("in a checkpointed segment")
            output = form(self._fast, args, kwargs)
        except Unsuited as reason:
            self.slow[form.name] = str(reason)
            return func(*args, **kwargs)
        self.fast.add(form.name)
        return output

    def _show(
        self,
        record: Callable[[Weights], None],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        output, weights = SHOWN[func](*args, **kwargs)
        if weights is not None:
            _refuse_checkpointing(func.__name__)
            self.replaced |= {_ATTENTION[func]} if func in _ATTENTION else set()
            record(weights)
        return output

    def __exit__(self, *exc_info: Any) -> None:
        self._active = False
        super().__exit__(*exc_info)
