"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from explainguide.evaluation.measure import evaluate
from explainguide.evaluation.record import BatchMaps, Record, Scores

__all__ = ["BatchMaps", "Record", "Scores", "evaluate"]
