"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from explainguide.errors import operation
from explainguide.visualization.page import check_file, html_page, html_table, safe, write_page

__all__ = ["write_report"]

_DPI = 160  # sharp on screens with more than one pixel to a CSS pixel
_SHOWN_DPI = 110  # the text of a figure, 9 points, is then nearly as large as the page's


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
    target = check_file(path)
    parts = [f"<h1>{safe(title)}</h1>"]
    parts += [f"<p>{safe(text)}</p>" for text in re.split(r"\n\s*\n", summary.strip()) if text]
    if table:
        parts.append(html_table(table))
    parts += [_figure(number, *given) for number, given in enumerate(figures)]
    for heading, text in (details or {}).items():
        body = f"<pre>{safe(text)}</pre>"
        parts.append(f"<details><summary>{safe(heading)}</summary>{body}</details>")
    # Below the least width a picture scrolls, since its text would be too small to read.
    rules = "".join(
        f"#figure-{number} img {{ min-width: {0.7 * _width(figure):.0f}px; }}\n"
        for number, (_, figure) in enumerate(figures)
    )
    write_page(target, html_page(title, parts, rules=rules))
    return target


def _figure(number: int, caption: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    alt = safe(figure.get_label() or caption)
    size = f'width="{_width(figure):.0f}"'
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}" {size}>'
    words = f"<figcaption>{safe(caption)}</figcaption>"
    return (
        f'<figure id="figure-{number}"><div class="picture" role="region" '
        f'aria-label="Figure {number + 1}" tabindex="0">{image}</div>{words}</figure>'
    )


def _width(figure: Figure) -> float:
    return figure.get_figwidth() * _SHOWN_DPI
