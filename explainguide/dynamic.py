"""The explanation mode of :mod:`explainguide.hooks.dynamic`, under its public name."""

from explainguide.hooks.dynamic import (
    DynamicLinear,
    Mode,
    evaluating,
    explanation_mode,
    hold,
    is_bcos,
    wide,
)

__all__ = ["DynamicLinear", "Mode", "evaluating", "explanation_mode", "hold", "is_bcos", "wide"]
