"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from numbers import Integral, Real
from pathlib import Path

from matplotlib.figure import Figure

from explainguide.errors import OptionError, operation
from explainguide.files import replace_file

__all__ = ["write_report"]

_DPI = 160  # sharp on screens with more than one pixel to a CSS pixel
_SHOWN_DPI = 110  # the text of a figure, 9 points, is then nearly as large as the page's
_DASH = "\N{EN DASH}"
# 12, -0.3, 94.1%, 0.91 ± 0.02, 65 s, 1,257: what is read from the right.
_NUMBER = re.compile(
    r"[+\-\N{MINUS SIGN}]?\d[\d.,]*(e[+-]\d+)? ?%?( ?± ?[\d.,]+ ?%?)?( ?[a-zµ]{1,3})?"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5a6370; --paper: #fdfdfc;
  --line: #dcdfe4; --tint: #f2f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #a3abb6; --paper: #16191d; --line: #363c44; --tint: #1f2329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 56rem; background: var(--paper);
  color: var(--ink); font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word; }
h1 { margin: 0 0 1rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
p { margin: 0 0 1rem; max-width: 42rem; }
.wide { margin: 2rem 0; overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; font-size: 0.975rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.9rem 0.45rem 0; text-align: left; vertical-align: top; }
th:not(:first-child), td { padding-left: 0.9rem; }
th:last-child, td:last-child { padding-right: 0.25rem; }
thead th { border-bottom: 2px solid var(--ink); color: var(--soft); font-weight: 600;
  vertical-align: bottom; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody th { min-width: 9rem; font-weight: 600; }
.number { text-align: right; }
td.number { white-space: nowrap; }
figure { margin: 2.5rem 0; }
.picture { overflow-x: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
.picture img { display: block; max-width: 100%; height: auto; margin: 0 auto; padding: 0.5rem; }
figcaption { margin-top: 0.6rem; color: var(--soft); font-size: 0.95rem; max-width: 42rem; }
details { margin: 0.75rem 0; border: 1px solid var(--line); border-radius: 6px; }
summary { padding: 0.6rem 0.9rem; cursor: pointer; font-weight: 600; }
pre { margin: 0; padding: 0.9rem; overflow-x: auto; background: var(--tint);
  border-top: 1px solid var(--line);
  font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""


@operation("write_report")
def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str = "",
    table: Sequence[Mapping[str, object]] = (),
    figures: Sequence[tuple[str, Figure]] = (),
    details: Mapping[str, str] | None = None,
) -> Path:
    r"""Write text, a table and figures as one self-contained HTML page.

    Images are inside the page, which loads nothing from elsewhere, follows the reader's choice of
    light or dark, and fits a phone. All text is escaped. The page is written whole or not at all:
    after a failure an earlier page of this name is still there.

    Args:
        path: The file; missing folders are made.
        title: Heading and window title.
        summary: Plain text above the table; an empty line starts a new paragraph.
        table: Rows, each a dict from column heading to value. The first column names the rows.
            Numbers stand on the right; floats get four significant digits, other text (``"94.1%"``)
            is shown as given. A missing value, None and NaN are a dash.
        figures: (caption, figure) in the order of the page. A figure's label, where it has one, is
            the image's alternative text, else the caption.
        details: Heading to plain text that is folded away at the end, such as commands or settings.

    Returns:
        The path.

    Raises:
        OptionError: If `path` is a folder.
        OSError: If the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> rows = [{"model": "unguided", "EPG": "39.6%"}, {"model": "guided", "EPG": "50.1%"}]
        >>> with TemporaryDirectory() as folder:
        ...     write_report(f"{folder}/report.html", title="VOC", table=rows).name
        'report.html'
    """
    target = Path(path)
    if target.is_dir():
        raise OptionError(
            f"path {str(target)!r} is a folder. Use {str(target / 'report.html')!r}. "
            "It must be a file name."
        )
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(text.strip())}</p>" for text in re.split(r"\n\s*\n", summary.strip())]
    if table:
        parts.append(_table(table))
    parts += [_figure(caption, figure) for caption, figure in figures]
    for heading, text in (details or {}).items():
        body = f"<pre>{escape(text)}</pre>"
        parts.append(f"<details><summary>{escape(heading)}</summary>{body}</details>")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part != "<p></p>")
        + "\n</main>\n</body>\n</html>\n"
    )
    replace_file(target, partial(_write, page))
    return target


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [
        i > 0 and all(_NUMBER.fullmatch(row[i]) or row[i] == _DASH for row in cells)
        for i in range(len(columns))
    ]
    marks = [' class="number"' if number else "" for number in right]
    head = "".join(
        f'<th scope="col"{mark}>{escape(column)}</th>'
        for column, mark in zip(columns, marks, strict=True)
    )
    body = ""
    for name, *values in cells:
        body += f'<tr><th scope="row">{escape(name)}</th>'
        for text, mark in zip(values, marks[1:], strict=True):
            body += f"<td{mark}>{escape(text)}</td>"
        body += "</tr>\n"
    return (
        '<div class="wide" role="region" aria-label="Results" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if math.isnan(number):
            return _DASH
        return f"{number:,.0f}" if 1e4 <= abs(number) < math.inf else f"{number:.4g}"
    return _DASH if value is None else str(value)


def _figure(caption: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = figure.get_figwidth() * _SHOWN_DPI
    alt = escape(str(figure.get_label() or caption), quote=True)
    # Below the least width the picture scrolls, since its text would be too small to read.
    size = f'width="{width:.0f}" style="min-width: {0.7 * width:.0f}px"'
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}" {size}>'
    words = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure><div class="picture">{image}</div>{words}</figure>'


def _write(page: str, file: io.FileIO) -> None:
    rest = memoryview(page.encode("utf-8"))
    while rest:  # a file without a buffer may take a part at a time
        rest = rest[file.write(rest) :]
