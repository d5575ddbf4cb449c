"""Weights of :mod:`explainguide.models.weights`, under their first name."""

from explainguide.models.weights import (
    fit_weights,
    load_weights,
    name_some,
    read_weights,
    short_reason,
)

__all__ = ["fit_weights", "load_weights", "name_some", "read_weights", "short_reason"]
