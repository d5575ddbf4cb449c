"""The maps of :mod:`explainguide.bcos.explanations`, under their first name."""

from explainguide.bcos.explanations import (
    contribution_map,
    curvature,
    dynamic_weights,
    logit_bias,
    missing_share,
)

__all__ = ["contribution_map", "curvature", "dynamic_weights", "logit_bias", "missing_share"]
