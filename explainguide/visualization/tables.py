"""Rows of results as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["format_table"]


def format_table(
    rows: Sequence[Mapping[str, object]],
    *,
    columns: Sequence[str] | None = None,
    markdown: bool = False,
) -> str:
    """Align rows in columns, numbers on the right.

    Args:
        rows: Dicts from column to value. Floats get four decimals; None, NaN and missing
            values are a dash.
        columns: Which, in which order; None for all, in the order of their first appearance.
        markdown: Whether to draw a Markdown table.

    Returns:
        Lines without a final newline; empty for no rows.

    Example:
        >>> print(format_table([{"run": "unguided", "EPG": 0.25}, {"run": "guided", "EPG": 0.5}]))
        run          EPG
        unguided  0.2500
        guided    0.5000
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns or not rows:
        return ""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [all(not isinstance(row.get(column), str) for row in rows) for column in columns]
    lines = [list(columns), *cells]
    widths = [
        max(3 if markdown else 1, *(len(line[i]) for line in lines)) for i in range(len(columns))
    ]

    def aligned(line: list[str]) -> list[str]:
        return [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ]

    if not markdown:
        return "\n".join("  ".join(aligned(line)).rstrip() for line in lines)
    rule = [
        f"{'-' * (width - 1)}:" if number else "-" * width
        for width, number in zip(widths, right, strict=True)
    ]
    shown = [aligned(lines[0]), rule, *map(aligned, lines[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)
