r"""Explanation mode: which factors of a network are constants, asked when a backward pass runs.

A dynamic linear network computes :math:`f(x) = W(x)\,x`. Its explanation is W(x), which is the
gradient if every factor that depends on x (the cosines, the statistics of a norm, the weights of an
attention) is held constant. The factors stay in the graph: they are passed over when the map is
formed, and differentiated as what they are, functions of the parameters, when a loss on the map is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import OptionError, operation
from explainguide.hooks.layers import unwrap

__all__ = [
    "DynamicLinear",
    "Mode",
    "evaluating",
    "explanation_mode",
    "hold",
    "in_mode",
    "is_bcos",
    "modes_of",
    "wide",
]


class Mode:
    """Whether a backward pass that runs now forms an explanation.

    An object, and no flag of a thread: CUDA's backward passes run in threads of their own.
    """

    def __init__(self) -> None:
        self.explaining = False

    def __getstate__(self) -> dict[str, bool]:
        return {"explaining": False}  # a copy, or a file, is in no context


class DynamicLinear(nn.Module):
    """A module whose output is a matrix that depends on the input, times the input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mode = Mode()


class _Hold(torch.autograd.Function):
    """The identity, without a gradient while a mode explains."""

    generate_vmap_rule = True

    @staticmethod
    def forward(factor: Tensor, mode: Mode) -> Tensor:
        return factor.view_as(factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Mode], output: Tensor) -> None:
        ctx.mode = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if ctx.mode.explaining else grad), None


def hold(factor: Tensor, mode: Mode) -> Tensor:
    """A dynamic factor: itself, but a constant of every backward pass that runs while `mode` explains.

    Args:
        factor: Any tensor.
        mode: Of the module that calls.

    Returns:
        The same values. In the backward pass of a loss on an explanation the factor is
        differentiated like any other tensor, so second derivatives are complete.
    """
    held: Tensor = _Hold.apply(factor, mode)
    return held


def wide(tensor: Tensor) -> Tensor:
    """Half precision to float32: squares and sums over many values."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def is_bcos(model: nn.Module) -> bool:
    """Whether any module of a model is dynamic linear."""
    return any(isinstance(module, DynamicLinear) for module in model.modules())


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """A model in training or evaluation mode; afterwards each module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        if training:
            model.train()
        else:
            model.eval()
        yield
    finally:
        for module, before in modes.items():
            module.training = before


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """A model in evaluation mode; afterwards each module is in the mode that it was in."""
    return in_mode(model, training=False)


def modes_of(model: nn.Module) -> list[Mode]:
    """The modes of a model's dynamic linear modules.

    Raises:
        OptionError: If it has none.
        GuidanceError: If the model was compiled, whose backward pass asks no mode.
    """
    model = unwrap(model)
    modes = [module.mode for module in model.modules() if isinstance(module, DynamicLinear)]
    if not modes:
        raise OptionError(
            f"{type(model).__name__} has no B-cos module, so it has no explanation of "
            "its own. Convert it with bcosify, or use attribution 'ixg'. A B-cos network is allowed."
        )
    return modes


@contextmanager
def explanation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context, the gradients of a B-cos network are those of its explanation.

    It must be on while the backward pass runs; the forward pass may lie before it, and its outputs
    are the same in both modes. Leave the context before the backward pass of a loss, whose gradients
    are ordinary ones. Contexts nest: each gives back what it found, after an error as well.

    Args:
        model: A network of `bcosify`, or one with modules of `explainguide.bcos`.

    Yields:
        The model.

    Raises:
        OptionError: If no module of the model has an explanation mode.
        GuidanceError: If the model was compiled, whose backward pass asks no mode.

    References:
        Boehle et al., 2024, Sec. 3: W(x) with its dynamic factors fixed.

    Example:
        >>> from explainguide.bcos import BcosLinear
        >>> unit = BcosLinear(2, 1, b=2)
        >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> y = unit(x)
        >>> with explanation_mode(unit):
        ...     (weight,) = torch.autograd.grad(y, x)
        >>> torch.allclose((weight * x).sum(), y)
        True
    """
    with operation("explanation_mode"):
        modes = modes_of(model)
    earlier = [mode.explaining for mode in modes]
    try:
        for mode in modes:
            mode.explaining = True
        yield model
    finally:
        for mode, before in zip(modes, earlier, strict=True):
            mode.explaining = before
