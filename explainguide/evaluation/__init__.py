"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from explainguide.evaluation.measure import evaluate

__all__ = ["evaluate"]
