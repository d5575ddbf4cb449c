"""The class scores in what a classifier returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from explainguide.errors import ShapeError

__all__ = ["check_logits", "find_logits"]


def find_logits(output: Any) -> Any:
    """The main logits of a model that returns more than them, or the output as it is.

    Understood are an attribute ``logits`` (torchvision's GoogLeNet and Inception with auxiliary
    heads, Transformers' outputs), a mapping with ``"logits"`` or ``"out"``, and a tuple or list whose
    first member is meant (timm's distilled DeiT in training).
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return next((output[name] for name in ("logits", "out") if name in output), output)
    if isinstance(output, tuple | list) and output:
        return output[0]
    return output


def check_logits(output: Any, *, caller: str) -> Tensor:
    """The model's logits, ``(N, K)``.

    Raises:
        ShapeError: If there are none.
    """
    logits = find_logits(output)
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits
    got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    if isinstance(logits, Mapping):
        got += f" with {', '.join(map(repr, logits))}"
    raise ShapeError(
        f"{caller}: the model's output is not logits: {got}. Wrap the model so that it returns the "
        "class scores before softmax or sigmoid. A tensor (N, K), or a tuple or dict with `logits`, is "
        "allowed."
    )
