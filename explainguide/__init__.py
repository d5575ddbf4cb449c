"""Guide what an image classifier looks at: differentiable attributions as a training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide import (
        attr,
        bcos,
        datasets,
        evaluation,
        losses,
        metrics,
        models,
        report,
        training,
        visualization,
        xdnn,
    )
    from explainguide.annotations import Annotations, LimitedAnnotations, collate
    from explainguide.errors import ExplainGuideError, ExplainGuideWarning
    from explainguide.guidance import ExplanationGuidance, GuideOptions
    from explainguide.recipes import RECIPES, Recipe, recipe

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "Annotations",
    "ExplainGuideError",
    "ExplainGuideWarning",
    "ExplanationGuidance",
    "GuideOptions",
    "LimitedAnnotations",
    "Recipe",
    "attr",
    "bcos",
    "collate",
    "datasets",
    "evaluation",
    "losses",
    "metrics",
    "models",
    "recipe",
    "report",
    "training",
    "visualization",
    "xdnn",
]

_MODULES = (
    "annotations",
    "checkpoints",
    "cli",
    "demo",
    "dynamic",
    "errors",
    "guidance",
    "recipes",
    "selfcheck",
    "studies",
    "tables",
)

# The command line answers --help without torch, and a training script needs no plots.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        **dict.fromkeys([*__all__, *_MODULES]),
        "Annotations": "annotations",
        "LimitedAnnotations": "annotations",
        "collate": "annotations",
        "ExplainGuideError": "errors",
        "ExplainGuideWarning": "errors",
        "ExplanationGuidance": "guidance",
        "GuideOptions": "guidance",
        "RECIPES": "recipes",
        "Recipe": "recipes",
        "recipe": "recipes",
    },
)
