"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from explainguide.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from explainguide.evaluation.measure import evaluate
from explainguide.evaluation.record import BatchMaps, Record, Scores
from explainguide.evaluation.sanity import SanityStage, sanity_check

__all__ = [
    "BatchMaps",
    "Interval",
    "Record",
    "SanityStage",
    "Scores",
    "bootstrap_interval",
    "evaluate",
    "paired_difference",
    "sanity_check",
]
