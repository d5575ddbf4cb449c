"""Losses one pixel at a time: slow, obvious, in Python floats."""

from __future__ import annotations

import math

Map = list[list[float]]


def pixels(attribution: Map, mask: Map) -> list[tuple[float, float]]:
    return [
        (float(a), float(m))
        for row_a, row_m in zip(attribution, mask, strict=True)
        for a, m in zip(row_a, row_m, strict=True)
    ]


def energy(attribution: Map, mask: Map) -> float:
    total = sum(max(a, 0) for a, _ in pixels(attribution, mask))
    inside = sum(m * max(a, 0) for a, m in pixels(attribution, mask))
    return 1 - inside / total if total > 0 else 1.0


def normalised(attribution: Map, mask: Map) -> list[tuple[float, float]]:
    positive = [(max(a, 0), m) for a, m in pixels(attribution, mask)]
    largest = max(a for a, _ in positive) or 1.0
    return [(a / largest, m) for a, m in positive]


def normalised_by_the_text(attribution: Map) -> Map:
    largest = max(max(row) for row in attribution)
    return [[max(a / largest, 0) if largest > 0 else 0.0 for a in row] for row in attribution]


def l1(attribution: Map, mask: Map) -> float:
    terms = [abs(m - a) for a, m in normalised(attribution, mask)]
    return sum(terms) / len(terms)


def ppce(attribution: Map, mask: Map) -> float:
    found = normalised(attribution, mask)
    area = sum(m for _, m in found)
    if area == 0:
        return 0.0
    return -sum(m * max(math.log(a) if a > 0 else -100, -100) for a, m in found) / area


def rrr(attribution: Map, mask: Map) -> float:
    largest = max(abs(a) for a, _ in pixels(attribution, mask)) or 1.0
    return sum((1 - m) * (a / largest) ** 2 for a, m in pixels(attribution, mask))


def gradmask(attribution: Map, mask: Map) -> float:
    return math.sqrt(sum((1 - m) * a**2 for a, m in pixels(attribution, mask)))


def reff(attribution: Map, mask: Map) -> float:
    return math.sqrt(sum(((1 - m) * a) ** 2 for a, m in pixels(attribution, mask)))


def relevance(attribution: Map, mask: Map) -> float:
    found = pixels(attribution, mask)
    low, high = min(a for a, _ in found), max(a for a, _ in found)
    unit = [((a - low) / (high - low) if high > low else 0.0, m) for a, m in found]
    background = sum((r * (1 - m)) ** 2 for r, m in unit) / len(unit)
    foreground = sum((r * m - m) ** 2 for r, m in unit) / len(unit)
    return 2 * background + 0.3 * foreground
