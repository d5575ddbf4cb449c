"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from explainguide.evaluation.measure import evaluate
from explainguide.evaluation.sanity import SanityStage, sanity_check

__all__ = ["SanityStage", "evaluate", "sanity_check"]
