"""The class scores in what a classifier returns, and which of them are meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from explainguide.errors import OptionError, ShapeError

__all__ = ["as_targets", "check_logits", "find_logits"]


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


def as_targets(target: Any, output: Tensor, *, caller: str) -> Tensor:
    """Indices of classes ``(N,)``, or of a layer's channels, on the output's device.

    Args:
        target: One for all images, or one an image; None where there is one class only.
        output: Logits ``(N, K)``, or a layer's activation ``(N, C, h, w)``.
        caller: The public callable that errors name.

    Raises:
        OptionError: If they are none of the output's (checked where they are on the host).
        ShapeError: If they are not one an image.
    """
    images, count = output.shape[:2]
    kind, plural, whose = (
        ("class", "classes", "model") if output.ndim == 2 else ("channel", "channels", "layer")
    )
    if target is None:
        if count != 1:
            raise OptionError(
                f"{caller}: target is None, but the {whose} has {count} {plural}. Name the {kind} to "
                "explain. An int or a tensor (N,) is allowed."
            )
        target = 0
    found = torch.as_tensor(target)
    if found.is_floating_point() or found.dtype == torch.bool or found.ndim > 1:
        raise OptionError(
            f"{caller}: target has shape {tuple(found.shape)} and dtype {found.dtype}. Give one "
            f"{kind} index an image. An int or an integer tensor (N,) is allowed."
        )
    if found.ndim == 1 and len(found) != images:
        raise ShapeError(
            f"{caller}: target has {len(found)} {plural} for {images} images. Give one an image. "
            "(N,) is allowed."
        )
    if found.device.type == "cpu" and bool(((found < 0) | (found >= count)).any()):
        bad = found[(found < 0) | (found >= count)].flatten()[0]
        fix = "Check the label map." if kind == "class" else "Count the layer's channels."
        raise OptionError(
            f"{caller}: target holds {kind} {int(bad)}, but the {whose} has {count}. {fix} 0 to "
            f"{count - 1} are allowed."
        )
    return found.to(output.device, torch.int64, non_blocking=True).expand(images)
