"""Perturbation and its relatives, slow and obvious: one image, one pixel, one step at a time."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor


def quantile(values: list[float], q: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    rank = q * (len(ordered) - 1)
    below = math.floor(rank)
    above = math.ceil(rank)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def perturbed(
    image: Tensor, attribution: Tensor, fraction: float, mode: str, colour: Tensor
) -> Tensor:
    """Of one image ``(C, H, W)``; the colour is ``(C,)``."""
    threshold = quantile(attribution.flatten().tolist(), 1 - fraction)
    changed = image.clone()
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            highest = float(attribution[i, j]) >= threshold
            if highest == (mode == "remove"):
                changed[:, i, j] = colour
    return changed


def curve(
    image: Tensor, attribution: Tensor, start: Tensor, steps: int, probability
) -> list[float]:
    """The probabilities as the pixels of an image replace those of the start, the highest first."""
    height, width = attribution.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    places.sort(key=lambda place: -float(attribution[place]))  # a stable sort
    shown = start.clone()
    values = [probability(shown)]
    done = 0
    for step in range(1, steps + 1):
        until = math.floor(step / steps * len(places) + 0.5)
        for i, j in places[done:until]:
            shown[:, i, j] = image[:, i, j]
        done = until
        values.append(probability(shown))
    return values


def area(values: list[float]) -> float:
    """By the trapezoid rule, of equal steps from 0 to 1."""
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)


def infidelity(attribution: Tensor, noises: list[Tensor], changes: list[float], fit: bool) -> float:
    """Mean squared error between what the map says of each noise and what the logit did."""
    said = [float((noise * attribution).sum()) for noise in noises]
    factor = 1.0
    if fit:
        factor = sum(a * b for a, b in zip(said, changes, strict=True)) / sum(a * a for a in said)
    errors = [(factor * a - b) ** 2 for a, b in zip(said, changes, strict=True)]
    return sum(errors) / len(errors)


def sensitivity(attribution: Tensor, changed: list[Tensor]) -> float:
    """The largest relative distance."""
    norm = float(attribution.square().sum()) ** 0.5
    return max(float((other - attribution).square().sum()) ** 0.5 / norm for other in changed)
