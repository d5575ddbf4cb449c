"""Attributions by Captum's conventions, differentiable with ``create_graph=True``."""

from __future__ import annotations

from explainguide.attr.base import Evidence, LayerMap
from explainguide.attr.bcos import BcosContribution
from explainguide.attr.gradients import GradCam, Gradient, InputXGradient, LayerCam
from explainguide.attr.integrated import IntegratedGradients
from explainguide.attr.relevance import AttentionRelevance

__all__ = [
    "ATTRIBUTIONS",
    "AttentionRelevance",
    "BcosContribution",
    "Evidence",
    "GradCam",
    "Gradient",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCam",
    "LayerMap",
]

ATTRIBUTIONS: dict[str, type[LayerMap]] = {
    "gradient": Gradient,
    "ixg": InputXGradient,
    "gradcam": GradCam,
    "layercam": LayerCam,
    "intgrad": IntegratedGradients,
    "bcos": BcosContribution,
    "relevance": AttentionRelevance,
}
