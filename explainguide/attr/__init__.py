"""Attributions by Captum's conventions, differentiable with ``create_graph=True``.

`as_explainer` makes one kind of object of these and of anybody else's, to be judged.
"""

from __future__ import annotations

from explainguide.attr.any_attribution import as_explainer
from explainguide.attr.base import ATTRIBUTIONS, LayerMap, attribution
from explainguide.attr.bcos import BcosContribution
from explainguide.attr.evidence import Evidence
from explainguide.attr.explainer import Explainer
from explainguide.attr.gradients import GradCam, Gradient, InputXGradient, LayerCam
from explainguide.attr.integrated import IntegratedGradients
from explainguide.attr.references import REFERENCES, reference
from explainguide.attr.relevance import AttentionRelevance
from explainguide.attr.rise import rise_map

__all__ = [
    "ATTRIBUTIONS",
    "REFERENCES",
    "AttentionRelevance",
    "BcosContribution",
    "Evidence",
    "Explainer",
    "GradCam",
    "Gradient",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCam",
    "LayerMap",
    "as_explainer",
    "attribution",
    "reference",
    "rise_map",
]
