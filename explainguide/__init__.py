"""Guide what an image classifier looks at: differentiable attributions as a training loss."""

from __future__ import annotations

import importlib
from types import ModuleType

from explainguide import attr, losses
from explainguide.annotations import Annotations, LimitedAnnotations, collate
from explainguide.errors import ExplainGuideError, ExplainGuideWarning
from explainguide.guidance import ExplanationGuidance
from explainguide.recipes import Recipe, recipe

__version__ = "0.1.0"

__all__ = [
    "Annotations",
    "ExplainGuideError",
    "ExplainGuideWarning",
    "ExplanationGuidance",
    "LimitedAnnotations",
    "Recipe",
    "attr",
    "collate",
    "losses",
    "recipe",
]

# Imported when they are first asked for: a training script needs no plots and no data sets.
_ROOMS = (
    "bcos",
    "datasets",
    "evaluation",
    "metrics",
    "models",
    "report",
    "training",
    "visualization",
    "xdnn",
)


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"explainguide.{name}")
    raise AttributeError(f"module 'explainguide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS]
