"""Published methods as settings: a layer, an attribution, a loss, its weight, and how to train.

A recipe is no code of its own: `Recipe.guide` builds the `ExplanationGuidance` that anyone could
build by hand, and `Recipe.config` the `TrainConfig`.
"""

from __future__ import annotations

import copy

from explainguide.errors import check_option, operation
from explainguide.recipes.published import RECIPES
from explainguide.recipes.settings import Recipe

__all__ = ["RECIPES", "Recipe", "recipe"]


@operation("recipe")
def recipe(name: str) -> Recipe:
    """A published method as settings.

    Args:
        name: A key of `RECIPES`: ``"robustvit"``, ``"gradmask"``, ``"rrr"``,
            ``"model-guidance/final"``, ``"model-guidance/input"`` or ``"reff"``.

    Returns:
        The recipe, which prints itself.

    Raises:
        OptionError: For a name that is not known; with the nearest one.

    Example:
        >>> recipe("robustvit").lam, recipe("robustvit").class_weight
        (0.8, 0.2)
    """
    check_option("recipe", name, RECIPES)
    return copy.deepcopy(RECIPES[name])
