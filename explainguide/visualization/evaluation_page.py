"""The report of an evaluation as one HTML page: figures with intervals, charts, and maps on images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from explainguide.errors import operation
from explainguide.visualization.evaluation_data import (
    EvaluationPage,
    LayerTable,
    MetricNote,
    Result,
    Score,
)
from explainguide.visualization.page import check_file, html_page, in_region, safe, write_page
from explainguide.visualization.page_charts import bar_chart, pareto_chart
from explainguide.visualization.page_galleries import galleries, mean_maps
from explainguide.visualization.page_numbers import change_html, known, range_text, score_html
from explainguide.visualization.page_style import RULES

__all__ = ["check_page_path", "write_evaluation"]


@operation("check_page_path")
def check_page_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Whether `write_evaluation` will write here; ask before what takes long.

    Args:
        path: The file. One that is not there, and an earlier page of this package, are fine.
        overwrite: Whether another file may be replaced too.

    Returns:
        The path.

    Raises:
        OptionError: If it is a folder; if it is a file of somebody else's and `overwrite` is False.
    """
    return check_file(path, ours=not overwrite)


@operation("write_evaluation")
def write_evaluation(
    page: EvaluationPage, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write an evaluation as one self-contained HTML page.

    The page loads nothing from elsewhere and runs no program; it can be read by keyboard, by a screen
    reader, on a phone, on paper, in light and in dark. Names of files and classes stay text. It is
    written whole or not at all. Pictures are made smaller, to at most 320 pixels a side: an image
    with one map adds some 20 to 40 kB.

    Args:
        page: What to write.
        path: The file; missing folders are made.
        overwrite: Whether to replace a file that is no page of this package.

    Returns:
        The path.

    Raises:
        OptionError: As `check_page_path`; for an image or a map with values that are not allowed.
        ShapeError: For an image or a map of another shape.
        AnnotationError: For boxes that are none.
        OSError: If the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from explainguide.report import EvaluationPage, MetricNote, Result, Score
        >>> page = EvaluationPage(
        ...     title="Flowers",
        ...     metrics={"epg": MetricNote("EPG", "Share of the evidence within the boxes.")},
        ...     results=[Result("guided.pt", {"epg": Score(0.61, 0.58, 0.64)}, "ixg", "layer4")],
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     text = write_evaluation(page, f"{folder}/report.html").read_text()
        >>> "61.0%" in text and "[58.0, 64.0]" in text
        True
    """
    target = check_file(path, ours=not overwrite)
    sections = [(name, heading, html) for name, heading, make in _SECTIONS if (html := make(page))]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    header = (
        '<a class="skip" href="#results">Skip to the results</a>\n<header>\n'
        f"<h1>{safe(page.title)}</h1>\n{_paragraphs(page.summary)}"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n</header>\n'
    )
    body = [
        f'<section aria-labelledby="{name}"><h2 id="{name}" tabindex="-1">{heading}</h2>\n{html}\n'
        "</section>"
        for name, heading, html in sections
    ]
    write_page(target, html_page(page.title, body, header=header, rules=RULES))
    return target


def _paragraphs(text: str) -> str:
    parts = [part for part in re.split(r"\n\s*\n", text.strip()) if part]
    return "".join(f"<p>{safe(part)}</p>\n" for part in parts)


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _row_head(result: Result) -> str:
    below = " · ".join(part for part in (result.attribution, result.layer) if part)
    html = f"<bdi>{safe(result.model)}</bdi>"
    html += f"<br><small>{safe(below)}</small>" if below else ""
    return html + ("<br><small>for reference</small>" if result.reference else "")


def _results(page: EvaluationPage) -> str:
    best = {key: _best(page, key) for key in page.metrics}
    head = "".join(
        f'<th scope="col" class="number">{safe(note.title)}{_direction(note)}</th>'
        for note in page.metrics.values()
    )
    body = ""
    for result in page.results:
        body += f'<tr><th scope="row">{_row_head(result)}</th>'
        for key, note in page.metrics.items():
            score = result.scores.get(key, Score(None))
            cell = score_html(score, note, best=result.label in best[key])
            body += f'<td class="number">{cell}</td>'
        body += "</tr>\n"
    confidence = f"{100 * page.confidence:g}%"
    words = f"In brackets: the {confidence} bootstrap interval over images."
    table = in_region(
        f'<thead><tr><th scope="col">model, method, layer</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>",
        "Results",
        f"{words} The best of a column says so; where intervals overlap, it may not be.",
    )
    notes = [
        f"<bdi>{safe(result.label)}</bdi>: {safe(note)}"
        for result in page.results
        for note in result.notes
    ]
    return table + (f"<h3>Read with care</h3>\n{_list(notes)}" if notes else "")


def _direction(note: MetricNote) -> str:
    return "" if note.better == "neither" else f"<br><small>{note.better} is better</small>"


def _best(page: EvaluationPage, key: str) -> set[str]:
    """Labels of the rows whose score is the best; none where there is nothing to choose between."""
    scores = {r.label: known(r.scores.get(key, Score(None)).value) for r in page.results}
    values = [value for value in scores.values() if value is not None]
    better = page.metrics[key].better
    if len(values) < 2 or better == "neither" or min(values) == max(values):
        return set()
    top = max(values) if better == "higher" else min(values)
    return {label for label, value in scores.items() if value == top}


def _differences(page: EvaluationPage) -> str:
    keys = [k for k in page.metrics if any(k in row.scores for row in page.differences)]
    if not keys:
        return ""
    head = "".join(
        f'<th scope="col" class="number">{safe(page.metrics[k].title)}</th>' for k in keys
    )
    body = ""
    for row in page.differences:
        body += f'<tr><th scope="row"><bdi>{safe(row.second)}</bdi><br><small>less '
        body += f'<bdi>{safe(row.first)}</bdi></small></th><td class="number">{row.images:,}</td>'
        for key in keys:
            cell = change_html(row.scores.get(key, Score(None)), page.metrics[key])
            body += f'<td class="number">{cell}</td>'
        body += "</tr>\n"
    confidence = f"{100 * page.confidence:g}%"
    return in_region(
        f'<thead><tr><th scope="col">rows</th><th scope="col" class="number">images</th>{head}'
        f"</tr></thead>\n<tbody>\n{body}</tbody>",
        "Differences",
        f"Differences on the same images. In brackets: the paired {confidence} interval. Not clear: "
        "it holds zero.",
    )


def _bars(page: EvaluationPage) -> str:
    html = ""
    for bars in page.bars:
        html += f"<h3>{safe(bars.title)}</h3>\n{_paragraphs(bars.text)}"
        html += f'<div class="charts">{bar_chart(bars, page.metrics[bars.metric])}</div>'
    return html


def _trade_offs(page: EvaluationPage) -> str:
    html = ""
    for number, plot in enumerate(page.trade_offs):
        x, y = page.metrics[plot.x], page.metrics[plot.y]
        html += f"<h3>{safe(y.title)} against {safe(x.title)}</h3>\n"
        html += pareto_chart(plot, x, y, number)
    if any(plot.front for plot in page.trade_offs):
        words = "A filled point is on the front: no other is better in both metrics."
        html = f"<p>{words}</p>\n{html}"
    return html


def _layers(page: EvaluationPage) -> str:
    return "\n".join(_layer_table(page, table) for table in page.layer_tables)


def _layer_table(page: EvaluationPage, table: LayerTable) -> str:
    metric = page.metrics[table.metric]
    layers = list(dict.fromkeys(layer for row in table.methods.values() for layer in row))
    head = "".join(
        f'<th scope="col" class="number"><bdi>{safe(layer)}</bdi></th>' for layer in layers
    )
    body = ""
    for method, row in table.methods.items():
        body += f'<tr><th scope="row"><bdi>{safe(method)}</bdi></th>'
        for layer in layers:
            cell = score_html(row.get(layer, Score(None)), metric)
            body += f'<td class="number">{cell}</td>'
        body += "</tr>\n"
    label = f"{metric.title} of each method by layer"
    inner = f'<thead><tr><th scope="col">method</th>{head}</tr></thead>\n<tbody>\n{body}</tbody>'
    return in_region(inner, label, f"{label}.")


def _meanings(page: EvaluationPage) -> str:
    html = "".join(
        f"<dt>{safe(note.title)}</dt><dd>{safe(note.meaning)} "
        f"<small>({safe(range_text(note))})</small></dd>\n"
        for note in page.metrics.values()
    )
    return f"<dl>\n{html}</dl>"


def _not_shown(page: EvaluationPage) -> str:
    return _list([safe(sentence) for sentence in page.not_shown])


def _provenance(page: EvaluationPage) -> str:
    html = "".join(
        f"<dt>{safe(name)}</dt><dd><bdi>{safe(value)}</bdi></dd>\n"
        for name, value in page.provenance.items()
    )
    html = f'<dl class="how">\n{html}</dl>' if html else ""
    if page.skipped:
        count = len(page.skipped)
        names = _list(
            [
                f"<bdi>{safe(name)}</bdi>: {safe(reason)}" if reason else f"<bdi>{safe(name)}</bdi>"
                for name, reason in page.skipped.items()
            ]
        )
        words = "1 image was skipped" if count == 1 else f"{count:,} images were skipped"
        html += f"<details><summary>{words}</summary>{names}</details>"
    return html


# Id, heading, and what makes the section's HTML; "" for a page without it. In the order of the page.
_SECTIONS: tuple[tuple[str, str, Callable[[EvaluationPage], str]], ...] = (
    ("results", "Results", _results),
    ("differences", "Differences", _differences),
    ("meanings", "What the metrics mean", _meanings),
    ("not-shown", "What is not shown", _not_shown),
    ("trade-offs", "Trade-offs", _trade_offs),
    ("layers", "Methods by layer", _layers),
    ("bars", "Classes and groups", _bars),
    ("mean-maps", "Mean maps", mean_maps),
    ("images", "Images and maps", galleries),
    ("made", "How this was made", _provenance),
)
