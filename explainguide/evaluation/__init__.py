"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from explainguide.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from explainguide.evaluation.disconnected import DiFull, DiPart
from explainguide.evaluation.grid_game import GridGame, grid_game
from explainguide.evaluation.grids import confident_images, cut_cells, join_cells, make_grids
from explainguide.evaluation.measure import evaluate
from explainguide.evaluation.record import BatchMaps, Record, Scores
from explainguide.evaluation.sanity import SanityStage, sanity_check

__all__ = [
    "BatchMaps",
    "DiFull",
    "DiPart",
    "GridGame",
    "Interval",
    "Record",
    "SanityStage",
    "Scores",
    "bootstrap_interval",
    "confident_images",
    "cut_cells",
    "evaluate",
    "grid_game",
    "join_cells",
    "make_grids",
    "paired_difference",
    "sanity_check",
]
