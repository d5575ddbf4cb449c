"""Attributions by Captum's conventions, differentiable with ``create_graph=True``."""

from __future__ import annotations

from explainguide.attr.base import ATTRIBUTIONS, LayerMap, attribution
from explainguide.attr.bcos import BcosContribution
from explainguide.attr.evidence import Evidence
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
    "attribution",
]
