"""Whether a converted network computes what its model computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.logits import check_logits
from explainguide.hooks.tap import unread

__all__ = ["alive", "difference"]

# Relative to the largest value. On an accelerator convolutions may round to ten bits.
_SLACK = {"cpu": 1e-3}
_SLACK_ELSEWHERE = 1e-2
_HALF = (torch.float16, torch.bfloat16)


@torch.no_grad()
def alive(model: nn.Module) -> nn.Module:
    """The model, or a copy whose logits show what the model's might hide.

    Behind a head of zeros, or a residual branch that starts at zero, everything would be the same,
    and so would a bias of zeros that is lost: parameters that are all zero are random in the copy.
    Half precision would hide what is small: the copy is in float32.
    """
    parameters = list(model.parameters())
    half = any(p.dtype in _HALF for p in parameters)
    if not half and all(p.any() for p in parameters):
        return model
    model = copy.deepcopy(model)
    model = model.float() if half else model
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def difference(
    model: nn.Module, other: nn.Module, images: Tensor, encoded: Tensor | None = None
) -> str | None:
    """How two networks differ in evaluation mode, in half a sentence, or None if they do not.

    Costs a forward pass of each; where they differ, another one of each, with every activation kept.

    Args:
        model: What should be computed.
        other: What is computed; layers of the same name should return the same.
        images: Input of the first.
        encoded: Input of the second; the same by default.

    Returns:
        ``"by 0.37, of 0.3, first in module 'blocks.0.attn' (BcosAttention)"``.
    """
    encoded = images if encoded is None else encoded
    slack = _SLACK.get(images.device.type, _SLACK_ELSEWHERE)
    with unread(), evaluating(model), evaluating(other):
        expected = check_logits(model(images))
        actual = check_logits(other(encoded))
        error, size = _compare(expected, actual)
        if error <= slack * max(size, 1e-3):
            return None
        with _outputs(model) as theirs, _outputs(other) as ours:
            model(images)
            other(encoded)
    modules = dict(model.named_modules())
    for name, values in theirs.items():
        if name in ours and ours[name].shape == values.shape:
            apart, scale = _compare(values, ours[name])
            if not apart <= slack * max(scale, 1e-3):
                module = modules[name]
                hooked = module._forward_hooks or module._forward_pre_hooks
                kind = f"{type(module).__name__}{', with hooks' if hooked else ''}"
                return f"by {error:.3g}, of {size:.3g}, first in module {name!r} ({kind})"
    return f"by {error:.3g}, of {size:.3g}"


def _compare(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest value."""
    if expected.shape != actual.shape:
        return float("nan"), float(expected.abs().max())
    return float((expected - actual).abs().max()), float(expected.abs().max())


@contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each module returns the first time that it runs, in the order in which they finish."""
    outputs: dict[str, Tensor] = {}
    names = {module: name for name, module in model.named_modules() if name}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # a layer in place, after it, would change it
            outputs.setdefault(names[module], output.clone())

    hooks = [module.register_forward_hook(keep) for module in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
