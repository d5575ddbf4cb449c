"""The tables of :mod:`explainguide.visualization.tables`, under their public name."""

from explainguide.visualization.tables import (
    format_table,
    rows_as_csv,
    rows_as_json,
    rows_as_markdown,
)

__all__ = ["format_table", "rows_as_csv", "rows_as_json", "rows_as_markdown"]
