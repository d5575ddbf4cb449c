"""The tables of :mod:`explainguide.visualization.tables`, under their public name."""

from explainguide.visualization.tables import format_table

__all__ = ["format_table"]
