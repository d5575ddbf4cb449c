"""The page of a sweep: the models of the methods, the front, and every training with its files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from explainguide.studies.sweep_points import SweepResult
from explainguide.training.checkpoints import write_whole
from explainguide.visualization.plots import pareto_plot
from explainguide.visualization.report import write_report

__all__ = ["table_of_methods", "write_page"]

_TITLES = {"f1": "F1", "accuracy": "accuracy", "epg": "EPG", "iou": "IoU", "map": "mAP"}
# Shown where they are known, beside the objectives.
_ALSO = ("map", "worst_class_accuracy", "worst_group_accuracy")


def table_of_methods(result: SweepResult) -> list[dict[str, object]]:
    """One row a method: its model, and what that scores."""
    rows: list[dict[str, object]] = []
    for method, index in result.chosen.items():
        row: dict[str, object] = {"method": method}
        if index is None:
            rows.append({**row, "model": "none is within the limit"})
            continue
        point = result.points[index]
        row |= {"model": f"{point['training']}, epoch {point['epoch']}"}
        row |= {key: _said(value) for key, value in point["settings"].items()}
        row |= {_title(k): _percent(point["scores"].get(k)) for k in _columns(result)}
        tested = result.test.get(method, {})
        row |= {f"test {_title(k)}": _percent(tested.get(k)) for k in _columns(result) if tested}
        rows.append(row)
    return rows


def _columns(result: SweepResult) -> list[str]:
    known = {key for point in result.points for key in point["scores"]}
    return [*result.objectives, *(k for k in _ALSO if k in known and k not in result.objectives)]


def _title(key: str) -> str:
    return _TITLES.get(key, key.replace("_", " "))


def _percent(value: float | None) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.1%}"


def _said(value: Any) -> object:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def write_page(folder: Path, result: SweepResult, *, name: str, max_drop: float) -> Path:
    """Write ``report.html``, which loads nothing, and leads to what lies beside it."""
    count = len(result.trainings)
    summary = (
        f"{count} trainings, {len(result.points)} epochs, each a point. Scores are on the images of "
        "evaluation, on which everything here is chosen. The model of a method has the highest EPG "
        f"of those that lose at most {100 * max_drop:g} points of {_title(result.objectives[0])} "
        f"against {_percent(result.baseline) or 'an unknown score'} without guidance."
    )
    if result.running:
        summary += f"\n\n{result.running} trainings have not ended: other processes have them."
    with TemporaryDirectory() as beside:
        page = write_report(
            Path(beside) / "report.html",
            title=f"Sweep: {name}",
            summary=summary,
            table=table_of_methods(result),
        ).read_text(encoding="utf-8")
    parts = "\n".join([_figure(result), _trainings(result)])
    page = page.replace("\n</main>", f"\n{parts}\n</main>")
    return write_whole(folder / "report.html", lambda file: file.write(page.encode()))


def _anchor(training: str) -> str:
    return training.replace(" ", "-")


def _figure(result: SweepResult) -> str:
    """Each score of the answers against EPG, a link and a word at each point."""
    score = result.objectives[0]
    shown: dict[str, list[dict[str, Any]]] = {}
    for point in result.points:
        shown.setdefault(point["method"], []).append(point)
    if not shown:
        return ""
    figure = pareto_plot(
        {m: [_place(p, score) for p in points] for m, points in shown.items()},
        fronts={m: [i for i, p in enumerate(ps) if p["front"]] for m, ps in shown.items()},
    )
    axes = figure.axes[0]
    axes.set_xlabel(f"{_title(score)} (%)")
    seen = [p for points in shown.values() for p in points if not _hidden(p, score)]
    if seen:
        places = [_place(p, score) for p in seen]
        over = axes.scatter(
            [100 * x for x, *_ in places], [100 * y for _, y, _ in places], s=120, alpha=0
        )
        over.set_urls([f"#{_anchor(p['training'])}" for p in seen])
    caption = (
        f"EPG against {_title(score)}, both on the images of evaluation. A point is an epoch of a "
        "training, and leads to it; filled and joined: the front of a method."
    )
    drawing = _with_words(_svg(figure), (_words(p, score) for p in seen))
    return (
        f'<figure><div class="picture">{drawing}</div><figcaption>{escape(caption)}</figcaption>'
        "</figure>"
    )


def _place(point: Mapping[str, Any], score: str) -> tuple[float, float, float]:
    found = (float(point["scores"].get(key, math.nan)) for key in (score, "epg", "iou"))
    return tuple(found)  # type: ignore[return-value]


def _hidden(point: Mapping[str, Any], score: str) -> bool:
    return any(map(math.isnan, _place(point, score)[:2]))


def _words(point: Mapping[str, Any], score: str) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in point["settings"].items())
    scores = ", ".join(
        f"{_title(key)} {_percent(point['scores'].get(key))}" for key in (score, "epg", "iou")
    )
    return f"{point['training']}, epoch {point['epoch']}: {settings}; {scores}"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    # Text as text, and names that are the same each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sweep"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    # As wide as the page lets it be, up to the size of the other pages' figures.
    size = "display: block; width: 100%; max-width: 704px; height: auto; margin: 0 auto"
    label = escape(str(figure.get_label()), quote=True)
    drawing = drawing.replace("<svg ", f'<svg role="group" aria-label="{label}" style="{size}" ', 1)
    return re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)


def _with_words(drawing: str, words: Iterator[str]) -> str:
    """A word that a browser shows at each linked point."""
    return re.sub(
        r"<a xlink:href=\"([^\"]*)\"[^>]*>",
        lambda link: f'<a href="{link[1]}"><title>{escape(next(words))}</title>',
        drawing,
    )


def _trainings(result: SweepResult) -> str:
    """A row a training: settings, the best epoch's scores, links to its files."""
    columns = _columns(result)
    heads = ["training", "settings", "state", "files", *(f"{_title(c)}, highest" for c in columns)]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = ""
    for training in result.trainings:
        named = training["training"]
        points = [p for p in result.points if p["training"] == named]
        settings = ", ".join(f"{key}={value}" for key, value in training["settings"].items())
        state = training["state"] + (f": {training['error']}" if training["error"] else "")
        kind, number = named.split(" ")
        place = f"{kind}/{int(number):04d}"
        links = [("settings", f"{place}/config.json"), ("epochs", f"{place}/log.csv")]
        links += [
            (f"epoch {p['epoch']}", p["checkpoint"]) for p in points if p["checkpoint"] is not None
        ]
        linked = ", ".join(f'<a href="{link}">{text}</a>' for text, link in links)
        cells = [escape(settings), escape(state), linked]
        for column in columns:
            found = [p["scores"].get(column, math.nan) for p in points]
            found = [value for value in found if not math.isnan(value)]
            cells.append(_percent(max(found)) or "" if found else "\N{EN DASH}")
        body += f'<tr id="{_anchor(named)}"><th scope="row">{escape(named)}</th>'
        body += "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
    return (
        "<style>tr:target { background: var(--tint); }</style>\n"
        '<h2>Trainings</h2>\n<div class="wide" role="region" aria-label="Trainings" tabindex="0">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>"
    )
