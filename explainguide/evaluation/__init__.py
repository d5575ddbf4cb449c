"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from explainguide.evaluation.disconnected import DiFull, DiPart
from explainguide.evaluation.grid_game import GridGame, grid_game
from explainguide.evaluation.grids import confident_images, cut_cells, join_cells, make_grids
from explainguide.evaluation.measure import evaluate

__all__ = [
    "DiFull",
    "DiPart",
    "GridGame",
    "confident_images",
    "cut_cells",
    "evaluate",
    "grid_game",
    "join_cells",
    "make_grids",
]
