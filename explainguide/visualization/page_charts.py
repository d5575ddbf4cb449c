"""Charts within a page: bars beside their numbers, and points in a plane; drawn without a program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from explainguide.visualization.evaluation_data import Bars, MetricNote, Pareto, Score
from explainguide.visualization.page import in_region, safe
from explainguide.visualization.page_numbers import score_html, value_text

__all__ = ["bar_chart", "nice_limits", "pareto_chart"]

_SERIES = 4  # colours; what a bar is of stands beside it
# The plane of a plot, in units of its picture: small, so that its text can be read on a phone.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 320, 52, 12, 12, 46
_TEXT = 12


def bar_chart(bars: Bars, metric: MetricNote) -> str:
    """A table whose rows have a bar each: the numbers are its own text alternative."""
    scores = [score for row in bars.rows.values() for score in row.values()]
    low, high = nice_limits(_ends(scores), metric, from_zero=True)
    series = list(dict.fromkeys(label for row in bars.rows.values() for label in row))
    body = ""
    for name, row in bars.rows.items():
        for n, (label, score) in enumerate(row.items()):
            head = ""
            if n == 0:
                span = f' rowspan="{len(row)}"' if len(row) > 1 else ""
                head = f'<th scope="rowgroup"{span}><bdi>{safe(name)}</bdi></th>'
                head = head if span else head.replace("rowgroup", "row")
            of = f"<td><bdi>{safe(label)}</bdi></td>" if len(series) > 1 else ""
            bar = _bar(score, low, high, series.index(label) % _SERIES)
            body += f'<tr>{head}{of}<td class="bar">{bar}</td>'
            body += f'<td class="number">{score_html(score, metric)}</td></tr>\n'
    of = '<th scope="col">of</th>' if len(series) > 1 else ""
    ends = [value_text(end, metric, short=True) for end in (low, high)]
    head = (
        f'<thead><tr><th scope="col">name</th>{of}<th scope="col">{safe(" to ".join(ends))}</th>'
        f'<th scope="col" class="number">{safe(metric.title)}</th></tr></thead>\n'
    )
    label = f"{bars.title}: {metric.title}"
    return in_region(
        f"{head}<tbody>\n{body}</tbody>", label, f"{label}. A thin line is the interval."
    )


def _ends(scores: Sequence[Score]) -> list[float]:
    ends = [end for s in scores for end in (s.value, s.low, s.high) if end is not None]
    return [end for end in ends if math.isfinite(end)]


def _bar(score: Score, low: float, high: float, series: int) -> str:
    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    if score.value is None or not math.isfinite(score.value):
        return ""
    start, end = sorted((place(0.0), place(score.value)))
    place_of = f'x="{start}%" y="15%" width="{end - start:.2f}%" height="70%"'
    bar = f'<rect class="series-{series}" {place_of}/>'
    ends = _ends([Score(None, score.low, score.high)])
    if len(ends) == 2:
        bar += "".join(
            f'<line class="{side}" x1="{place(ends[0])}%" x2="{place(ends[1])}%" y1="50%" y2="50%"/>'
            for side in ("under", "whisker")
        )
    return f'<svg class="bar" aria-hidden="true" width="100%" height="18">{bar}</svg>'


def nice_limits(
    values: Sequence[float], metric: MetricNote, *, from_zero: bool
) -> tuple[float, float]:
    """Round ends of an axis that holds the values, within what the metric allows.

    Args:
        values: Finite ones; with none the axis is 0 to 1.
        metric: Its least and greatest value end the axis.
        from_zero: Whether the axis holds zero.
    """
    held = [*values, 0.0] if from_zero or not values else list(values)
    low, high = min(held), max(held)
    if high - low <= 1e-6 * abs(high):  # numbers on the axis could not be told apart
        high = low + (abs(low) or 1.0)
    step = _step(high - low)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    if metric.low is not None and min(held) >= metric.low:
        low = max(low, metric.low)
    if metric.high is not None and max(held) <= metric.high:
        high = min(high, metric.high)
    return (low, high) if low < high else (low, low + step)


def _step(span: float) -> float:
    """About a quarter of the span: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= span / 4 * (1 - 1e-9))


def pareto_chart(plot: Pareto, x: MetricNote, y: MetricNote, number: int) -> str:
    """Numbered points and a line through the front, and a table that says which is which."""
    shown = {label: point for label, point in plot.points.items() if all(map(math.isfinite, point))}
    columns = [[point[i] for point in shown.values()] for i in (0, 1)]
    limits = [nice_limits(c, m, from_zero=False) for c, m in zip(columns, (x, y), strict=True)]
    names = {label: n + 1 for n, label in enumerate(plot.points)}
    title = f"{y.title} against {x.title}"
    front = [names[label] for label in plot.points if label in plot.front]
    said = f"{len(shown)} numbered points. "
    said += f"On the front: {', '.join(map(str, front))}. " if front else ""
    said += "The table below has their values."
    inside = "".join(_axis(limits[i], note, i) for i, note in enumerate((x, y)))
    places = {label: _at(point, limits) for label, point in shown.items()}
    line = sorted(places[label] for label in plot.front if label in places)
    if len(line) > 1:
        inside += (
            f'<polyline class="front" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in line)}"/>'
        )
    for label, (across, down) in places.items():
        kind = "on-front" if label in plot.front else "off-front"
        inside += f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="4.5"/>'
    taken = list(places.values())
    for label, place in places.items():
        text = str(names[label])
        across, down = _free(place, text, taken)
        inside += f'<text class="name" x="{across:.1f}" y="{down:.1f}">{text}</text>'
    ids = f"plot-{number}-title", f"plot-{number}-text"
    svg = (
        f'<svg class="plot" role="img" aria-labelledby="{ids[0]} {ids[1]}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}"><title id="{ids[0]}">{safe(title)}</title>'
        f'<desc id="{ids[1]}">{safe(said)}</desc>{inside}</svg>'
    )
    return f"<figure>{svg}</figure>\n{_points(plot, names, x, y)}"


def _points(plot: Pareto, names: Mapping[str, int], x: MetricNote, y: MetricNote) -> str:
    heads = ["point", x.title, y.title, *(["front"] if plot.front else [])]
    marks = ["", ' class="number"', ' class="number"', ""]
    head = "".join(f'<th scope="col"{m}>{safe(h)}</th>' for h, m in zip(heads, marks, strict=False))
    body = ""
    for label, (across, up) in plot.points.items():
        body += f'<tr><th scope="row">{names[label]}: <bdi>{safe(label)}</bdi></th>'
        for value, note in ((across, x), (up, y)):
            body += f'<td class="number">{safe(value_text(value, note))}</td>'
        if plot.front:
            body += f"<td>{'on it' if label in plot.front else ''}</td>"
        body += "</tr>\n"
    label = f"The points of {y.title} against {x.title}"
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>"
    return in_region(inner, label, f"{label}.")


def _at(point: tuple[float, float], limits: Sequence[tuple[float, float]]) -> tuple[float, float]:
    (left, right), (low, high) = limits
    across = (point[0] - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
    up = (point[1] - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
    return _LEFT + across, _HEIGHT - _BOTTOM - up


def _axis(limits: tuple[float, float], note: MetricNote, which: int) -> str:
    """Lines, numbers and the name of the horizontal axis, 0, or of the vertical one, 1."""
    low, high = limits
    step = _step(high - low)
    ticks = [
        n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    html = ""
    for tick in ticks:
        text = safe(value_text(tick, note, short=True))
        if which == 0:
            across = _at((tick, 0.0), (limits, (0.0, 1.0)))[0]
            ends = f'x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP}" y2="{bottom}"'
            html += f'<line class="grid" {ends}/>'
            html += f'<text class="tick middle" x="{across:.1f}" y="{bottom + 16}">{text}</text>'
        else:
            down = _at((0.0, tick), ((0.0, 1.0), limits))[1]
            html += (
                f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{down:.1f}" y2="{down:.1f}"/>'
            )
            html += f'<text class="tick end" x="{_LEFT - 6}" y="{down + 4:.1f}">{text}</text>'
    name = safe(f"{note.title}{_arrow(note, which)}")
    if which == 0:
        middle = (_LEFT + right) / 2
        return html + f'<text class="axis middle" x="{middle:g}" y="{_HEIGHT - 8}">{name}</text>'
    middle = (_TOP + bottom) / 2
    turn = f'transform="translate(13 {middle:g}) rotate(-90)"'
    return html + f'<text class="axis middle" {turn}>{name}</text>'


def _arrow(note: MetricNote, which: int) -> str:
    ways = (("to the left", "to the right"), ("downwards", "upwards"))[which]
    return "" if note.better == "neither" else f" (better {ways[note.better == 'higher']})"


def _free(
    place: tuple[float, float], text: str, taken: list[tuple[float, float]]
) -> tuple[float, float]:
    """Where a number stands by its point: of eight places the one that is farthest from others."""
    wide = 0.6 * _TEXT * len(text)
    best, room = place, -math.inf
    for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
        centre = place[0] + dx * (8 + wide / 2), place[1] + dy * 12
        left, right = centre[0] - wide / 2, centre[0] + wide / 2
        inside = left > _LEFT and right < _WIDTH and _TOP < centre[1] < _HEIGHT - _BOTTOM - 2
        others = [math.dist(centre, other) for other in taken if other != place]
        free = min([*others, 30.0]) if inside else -1.0
        if free > room:
            best, room = centre, free
    taken.append(best)
    return best[0] - wide / 2, best[1] + 0.35 * _TEXT
