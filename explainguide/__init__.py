"""Guide what an image classifier looks at: differentiable attributions as a training loss."""

from __future__ import annotations

from explainguide import attr, losses
from explainguide.annotations import Annotations, LimitedAnnotations, collate
from explainguide.errors import ExplainGuideError
from explainguide.guidance import ExplanationGuidance

__version__ = "0.1.0"

__all__ = [
    "Annotations",
    "ExplainGuideError",
    "ExplanationGuidance",
    "LimitedAnnotations",
    "attr",
    "collate",
    "losses",
]
