"""The forward pass that waits for its localization loss: taken once, or refused with what to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from explainguide.errors import GuidanceError, first_line, warn
from explainguide.hooks.tap import ForwardPass, Tap

__all__ = ["graph_kept", "take_pass"]

# What autograd says of a forward pass whose backward has run, or whose weights have moved on.
_GRAPH_GONE = ("backward through the graph a second time", "modified by an inplace operation")


def take_pass(tap: Tap) -> ForwardPass:
    """The pass that is waiting, which waits no longer, whether it serves or is refused.

    Raises:
        GuidanceError: If there is none, or none that was recorded with gradients.

    Warns:
        ExplainGuideWarning: Once, if others were recorded before it for nothing.
    """
    if not tap.attached:
        raise GuidanceError(
            "the guide's hooks were taken off the model. Build a new guide. A guide works "
            "until `remove`, or the end of its `with`."
        )
    passed, dropped = tap.last, tap.dropped
    tap.forget()
    if passed is not None and passed.recorded and passed.output is None:
        passed = None  # interrupted, by Ctrl-C, before the model returned
    if not torch.is_grad_enabled() or (passed is not None and not passed.recorded):
        off = "gradients are off"
        what = "the last forward pass ran without gradients" if torch.is_grad_enabled() else off
        raise GuidanceError(
            f"{what}. In evaluation there is nothing to train: write `if model.training: "
            "loss = loss + lam * guide.loss_loc(targets)`. For maps there is `attribute`. "
            "A training pass runs outside torch.no_grad and inference_mode."
        )
    if passed is None and tap.compiled:
        raise GuidanceError(
            "the model ran inside torch.compile, where no layer can be read, and whose "
            "backward cannot be differentiated twice from outside. Train with the uncompiled model "
            "(`compiled._orig_mod`) and call `guide.compile()`, which compiles what lies before the "
            "layer. Compiled modules that end before it are allowed."
        )
    if passed is None:
        raise GuidanceError(
            "no forward pass is waiting. Call the model first. Each forward pass serves one "
            "loss_loc, and one that raised or was interrupted serves none."
        )
    if dropped and not tap.told:
        tap.told = True
        _tell_dropped(dropped)
    return passed


def _tell_dropped(count: int) -> None:
    """Say that passes were recorded of which none asked for the loss."""
    warn(
        f"{count + 1} forward passes with gradients since the last loss_loc, of which the "
        "last alone is explained. Call loss_loc after each that is annotated; run the others in `with "
        "guide.pause():` or under torch.no_grad."
    )


@contextmanager
def graph_kept() -> Iterator[None]:
    """Say what autograd means where the graph of the pass is gone.

    Raises:
        GuidanceError: In place of autograd's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(phrase in str(error) for phrase in _GRAPH_GONE):
            raise
        raise GuidanceError(
            f"the graph of the forward pass is gone, or what it holds was changed in place "
            f"({first_line(error)[:100]}). Call loss_loc before backward() and "
            "optimizer.step(), and add it to the loss. Nothing may change what was computed until then."
        ) from error
