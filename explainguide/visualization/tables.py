"""Rows of results as text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["format_table", "rows_as_csv", "rows_as_json", "rows_as_markdown"]


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


def rows_as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as comma-separated values, with every digit.

    Args:
        rows: Dicts from column to value.

    Returns:
        A line of the columns' names, in the order of their first appearance, and a line for each row,
        ended as RFC 4180 asks. None, NaN and missing values are empty; "" for no rows.

    Example:
        >>> rows_as_csv([{"run": "a, b", "EPG": 0.25}, {"run": "c", "EPG": float("nan")}]).split()
        ['run,EPG', '"a,', 'b",0.25', 'c,']
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_number(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def rows_as_json(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a JSON list of objects, which any reader of JSON can read.

    Args:
        rows: Dicts from column to a text, a number, a truth value or None.

    Returns:
        An object a row. None and NaN are null; JSON has no infinity either, which is the text
        ``"Infinity"`` or ``"-Infinity"``.

    Example:
        >>> print(rows_as_json([{"run": "c", "EPG": float("nan")}]))
        [
          {"run": "c", "EPG": null}
        ]
    """
    lines = []
    for row in rows:
        values = {str(key): _number(value) for key, value in row.items()}
        for key, value in values.items():
            if isinstance(value, float) and math.isinf(value):
                values[key] = "Infinity" if value > 0 else "-Infinity"
        lines.append("  " + json.dumps(values, allow_nan=False))
    return "[\n" + ",\n".join(lines) + "\n]" if lines else "[]"


def rows_as_markdown(rows: Sequence[Mapping[str, object]]) -> str:
    r"""Rows as a Markdown table: `format_table`, with texts that stay within their cell.

    Args:
        rows: As in `format_table`.

    Returns:
        As `format_table`; what would be markup, as ``|`` or ``<``, is text.

    Example:
        >>> print(rows_as_markdown([{"run": "a|b", "EPG": 0.25}]))
        | run  |    EPG |
        | ---- | -----: |
        | a\|b | 0.2500 |
    """
    return format_table(
        [{_plain(key): _plain(_number(value)) for key, value in row.items()} for row in rows],
        markdown=True,
    )


def _number(value: object) -> object:
    """A number of Python's own, None for NaN; anything else as it is."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return None if math.isnan(value) else float(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    """A text that Markdown shows as it is, in one line; anything else as it is."""
    if not isinstance(value, str):
        return value
    value = " ".join(value.replace("&", "&amp;").replace("<", "&lt;").split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", value)
