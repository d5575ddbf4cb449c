"""Scores, intervals and differences as the page writes them."""

from __future__ import annotations

import math

from explainguide.visualization.evaluation_data import MetricNote, Score
from explainguide.visualization.page import DASH, cell_text, safe

__all__ = [
    "change_html",
    "interval_text",
    "known",
    "range_text",
    "score_html",
    "value_text",
    "verdict",
]

_MINUS = "\N{MINUS SIGN}"


def known(value: float | None) -> float | None:
    """The value, or None where it is undefined."""
    return None if value is None or math.isnan(value) else float(value)


def value_text(value: float | None, metric: MetricNote, *, short: bool = False) -> str:
    """A value with its unit; a dash where it is undefined.

    Args:
        value: None and NaN are undefined.
        metric: Whether it is a share.
        short: Without needless digits, for an axis.
    """
    value = known(value)
    if value is None:
        return DASH
    text = (
        (f"{100 * value:.4g}%" if short else f"{100 * value:.1f}%")
        if metric.percent
        else (f"{value:.4g}" if short else cell_text(value))
    )
    return text.replace("-", _MINUS, 1) if text.startswith("-") else text


def interval_text(score: Score, metric: MetricNote, *, signed: bool = False) -> str:
    """The interval in brackets; "" without one."""
    low, high = known(score.low), known(score.high)
    if low is None or high is None:
        return ""
    sign = "+" if signed else ""
    ends = [
        format(100 * end, f"{sign}.1f") if metric.percent else _short(end, sign)
        for end in (low, high)
    ]
    ends = [_MINUS + end[1:] if end.startswith("-") else end for end in ends]
    return f"[{ends[0]}, {ends[1]}]"


def _short(value: float, sign: str) -> str:
    return format(value, f"{sign},.0f" if abs(value) >= 1000 else f"{sign}.3g")


def score_html(score: Score, metric: MetricNote, *, best: bool = False) -> str:
    """A figure, its interval, and what to know of it."""
    value = safe(value_text(score.value, metric))
    parts = [f'<strong>{value}</strong> <span class="best">best</span>' if best else value]
    interval = interval_text(score, metric)
    parts += [f"<small>{interval}</small>"] if interval else []
    if score.undefined:
        of = "" if score.total is None else f" of {score.total:,}"
        parts.append(f"<small>{score.undefined:,}{of} undefined</small>")
    parts += [f"<small>{safe(score.note)}</small>"] if score.note else []
    return "<br>".join(parts)


def verdict(score: Score, metric: MetricNote) -> str:
    """Whether a difference is better or worse, or too uncertain to say; "" without an interval."""
    low, high = known(score.low), known(score.high)
    if low is None or high is None:
        return ""
    if low <= 0 <= high:
        return "not clear"
    if metric.better == "neither":
        return "more" if low > 0 else "less"
    return "better" if (low > 0) == (metric.better == "higher") else "worse"


def change_html(score: Score, metric: MetricNote) -> str:
    """A difference with its sign, its interval, and what that says."""
    value = known(score.value)
    if value is None:
        return DASH
    text = f"{100 * value:+.1f} points" if metric.percent else f"{value:+.4g}"
    parts = [text.replace("-", _MINUS, 1)]
    interval = interval_text(score, metric, signed=True)
    parts += [f"<small>{interval}</small>"] if interval else []
    says = verdict(score, metric)
    parts += [f'<span class="says">{says}</span>'] if says else []
    parts += [f"<small>{safe(score.note)}</small>"] if score.note else []
    return "<br>".join(parts)


def range_text(metric: MetricNote) -> str:
    """Within what the values lie, and which way is good."""
    low, high = (value_text(end, metric, short=True) for end in (metric.low, metric.high))
    if metric.low is None and metric.high is None:
        within = "any number"
    elif metric.high is None:
        within = f"{low} or more"
    elif metric.low is None:
        within = f"{high} or less"
    else:
        within = f"{low} to {high}"
    return within if metric.better == "neither" else f"{within}; {metric.better} is better"
