"""What the HTML pages share: the frame, the style, the table, and how they are written."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from numbers import Integral, Real
from pathlib import Path

from explainguide.errors import OptionError
from explainguide.files import replace_file

__all__ = [
    "DASH",
    "cell_text",
    "check_file",
    "html_page",
    "html_table",
    "in_region",
    "is_number",
    "safe",
    "write_page",
]

DASH = "\N{EN DASH}"
_MARK = '<meta name="generator" content="explainguide">'
# 12, -0.3, 94.1%, 0.91 ± 0.02, 65 s, 1,257: what is read from the right.
_NUMBER = re.compile(
    r"[+\-\N{MINUS SIGN}]?\d[\d.,]*(e[+-]\d+)? ?%?( ?± ?[\d.,]+ ?%?)?( ?[a-zµ]{1,3})?"
)
# What HTML may not hold; what turns the order of letters around, so that a name shows as another one;
# halves of characters, as in names of files that are not UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5a6370; --paper: #fdfdfc;
  --line: #dcdfe4; --tint: #f2f4f6; --focus: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #a3abb6; --paper: #16191d; --line: #363c44; --tint: #1f2329;
    --focus: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 56rem; background: var(--paper);
  color: var(--ink); font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word; }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
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
@media print {
  :root { color-scheme: light; --ink: #1d2127; --soft: #5a6370; --paper: #fdfdfc; --line: #dcdfe4;
    --tint: #f2f4f6; }
  body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  .wide, pre { overflow: visible; } pre { white-space: pre-wrap; } }
"""


def html_page(title: str, body: Sequence[str], *, header: str = "", rules: str = "") -> str:
    """The whole page around what it says.

    Its content policy lets a browser load and run nothing: pictures are within the page, and the one
    style that it knows is named by its hash. So there are no style attributes either.

    Args:
        title: Plain text for the window.
        body: Pieces of HTML, the page's main part.
        header: HTML before that.
        rules: CSS after the shared style.
    """
    style = _STYLE + rules
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'{_MARK}\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{header}<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def safe(text: object) -> str:
    """Plain text for HTML, in attributes too: markup stays text, what cannot be shown is marked."""
    return escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True)


def check_file(path: str | os.PathLike[str], *, ours: bool = False) -> Path:
    """The path, if a page may be written there.

    Args:
        path: The file; what is there is replaced.
        ours: Refuse a file that is there and was not written by this package.

    Raises:
        OptionError: If it is a folder, or a file of somebody else's.
    """
    target = Path(path)
    if target.is_dir():
        raise OptionError(
            f"path {str(target)!r} is a folder. Use {str(target / 'report.html')!r}. "
            "It must be a file name."
        )
    if ours and target.exists() and not _is_ours(target):
        other = target.with_name(f"{target.stem}-new.html")
        raise OptionError(
            f"path {str(target)!r} is there and is no page of explainguide. Use {str(other)!r}, or "
            "say overwrite=True. A new file, or an earlier page, is allowed."
        )
    return target


def _is_ours(path: Path) -> bool:
    with open(path, "rb") as file:
        return _MARK.encode("ascii") in file.read(300)


def write_page(path: Path, page: str) -> None:
    """Write a page whole, or leave what was there."""
    replace_file(path, partial(_write, page))


def _write(page: str, file: io.FileIO) -> None:
    rest = memoryview(page.encode("utf-8"))
    while rest:  # a file without a buffer may take a part at a time
        rest = rest[file.write(rest) :]


def html_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows, each a dict from column heading to value, as a table; the first column names the rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell_text(row.get(column)) for column in columns] for row in rows]
    right = [i > 0 and all(is_number(row[i]) for row in cells) for i in range(len(columns))]
    marks = [' class="number"' if number else "" for number in right]
    head = "".join(
        f'<th scope="col"{mark}>{safe(column)}</th>'
        for column, mark in zip(columns, marks, strict=True)
    )
    body = ""
    for name, *values in cells:
        body += f'<tr><th scope="row">{safe(name)}</th>'
        for text, mark in zip(values, marks[1:], strict=True):
            body += f"<td{mark}>{safe(text)}</td>"
        body += "</tr>\n"
    return in_region(f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>", "Results")


def in_region(inner: str, label: str, caption: str = "") -> str:
    """A table's HTML, from its head on, in a region that the keyboard reaches and scrolls."""
    above = f"<caption><span>{safe(caption)}</span></caption>\n" if caption else ""
    return (
        f'<div class="wide" role="region" aria-label="{safe(label)}" tabindex="0"><table>\n'
        f"{above}{inner}\n</table></div>"
    )


def is_number(text: str) -> bool:
    """Whether a cell is read from the right."""
    return text == DASH or _NUMBER.fullmatch(text) is not None


def cell_text(value: object) -> str:
    """A value as a cell shows it: four significant digits; a dash for None and NaN."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if math.isnan(number):
            return DASH
        return f"{number:,.0f}" if 1e4 <= abs(number) < math.inf else f"{number:.4g}"
    return DASH if value is None else str(value)
