"""The localization metrics, slow and obvious: one image, plain Python numbers, a loop over pixels.

Each takes nested lists and returns a number, or None where the metric is undefined.
"""

from itertools import pairwise

Grid = list[list[float]]


def energy_pointing_game(attribution: Grid, mask: Grid, min_energy: float = 0.0) -> float | None:
    inside = total = 0.0
    for row, mask_row in zip(attribution, mask, strict=True):
        for value, weight in zip(row, mask_row, strict=True):
            if value > 0:
                total += value
                inside += value * weight
    if total == 0 or total < min_energy:
        return None
    return inside / total


def on_object_energy(attribution: Grid, mask: Grid, box_mask: Grid) -> float | None:
    boxed = [
        [value * weight for value, weight in zip(row, box_row, strict=True)]
        for row, box_row in zip(attribution, box_mask, strict=True)
    ]
    return energy_pointing_game(boxed, mask)


def localization_iou(attribution: Grid, mask: Grid, threshold: float) -> float | None:
    positive = [[max(value, 0.0) for value in row] for row in attribution]
    lowest = min(min(row) for row in positive)
    highest = max(max(row) for row in positive)
    intersection = union = 0
    for row, mask_row in zip(positive, mask, strict=True):
        for value, in_mask in zip(row, mask_row, strict=True):
            if highest == 0:
                normalised = value
            elif highest - lowest < 1e-7:
                normalised = value / highest
            else:
                normalised = (value - lowest) / (highest - lowest)
            predicted = normalised > threshold
            intersection += predicted and bool(in_mask)
            union += predicted or bool(in_mask)
    return intersection / union if union else None


def pointing_game(attribution: Grid, mask: Grid, tolerance: int = 0) -> float | None:
    pixels = [(i, j) for i in range(len(mask)) for j in range(len(mask[0]))]
    highest = max(attribution[i][j] for i, j in pixels)
    if highest <= 0:
        return None
    points = [(i, j) for i, j in pixels if attribution[i][j] == highest]
    hits = 0
    for i, j in points:
        hits += any(mask[a][b] and (a - i) ** 2 + (b - j) ** 2 <= tolerance**2 for a, b in pixels)
    return hits / len(points)


def segmentation_agreement(
    attribution: Grid, mask: Grid
) -> tuple[dict[str, int], float] | tuple[None, None]:
    """Counts of pixels by (map above its mean, in the mask), and the average precision."""
    values = [value for row in attribution for value in row]
    truth = [weight > 0.5 for row in mask for weight in row]
    lowest, highest = min(values), max(values)
    if lowest == highest:
        return None, None
    unit = [(value - lowest) / (highest - lowest) for value in values]
    mean = sum(unit) / len(unit)
    counts = {"hit": 0, "false alarm": 0, "miss": 0, "rest": 0}
    for value, inside in zip(unit, truth, strict=True):
        if value > mean:
            counts["hit" if inside else "false alarm"] += 1
        else:
            counts["miss" if inside else "rest"] += 1
    scores = unit + [1 - value for value in unit]
    right = truth + [not inside for inside in truth]
    precision, found = 0.0, 0
    for score in sorted(set(scores), reverse=True):
        taken = [r for s, r in zip(scores, right, strict=True) if s >= score]
        precision += (sum(taken) - found) / len(truth) * sum(taken) / len(taken)
        found = sum(taken)
    return counts, precision


def miou(counts: dict[str, int]) -> float:
    """Mean of the IoU of the foreground and of the background."""
    wrong = counts["false alarm"] + counts["miss"]
    return sum(counts[right] / (counts[right] + wrong) for right in ("hit", "rest")) / 2


def pareto_front(points: list[tuple[float, ...]], bin: float | None) -> list[int]:
    """One point after the other against the front so far."""
    front: list[tuple[int, list[float]]] = []
    for index, point in enumerate(points):
        new = list(point) if bin is None else [round(value / bin) for value in point]
        if any(all(a >= b for a, b in zip(old, new, strict=True)) for _, old in front):
            continue
        front = [
            (i, old) for i, old in front if not all(b >= a for a, b in zip(old, new, strict=True))
        ]
        front.append((index, new))
    return [index for index, _ in front]


def grid_pointing_game(
    attribution: Grid, cell: int, n: int, smoothing: int = 0, order: str = "column"
) -> float | None:
    height, width = len(attribution), len(attribution[0])
    if smoothing:
        reach = (smoothing - 1) // 2

        def smooth(i: int, j: int) -> float:
            total = 0.0
            for y in range(i - reach, i + reach + 1):
                for x in range(j - reach, j + reach + 1):
                    if 0 <= y < height and 0 <= x < width:
                        total += attribution[y][x]
            return total / smoothing**2

        attribution = [[smooth(i, j) for j in range(width)] for i in range(height)]
    row, column = (cell % n, cell // n) if order == "column" else (cell // n, cell % n)
    inside = total = 0.0
    for i, values in enumerate(attribution):
        for j, value in enumerate(values):
            if value > 0:
                total += value
                if i // (height // n) == row and j // (width // n) == column:
                    inside += value
    return inside / total if total > 0 else None


def aggregate_maps(
    maps: list[Grid], scores: list[float | None], bins: list[int]
) -> list[tuple[int, float | None, Grid | None]]:
    """Count, mean score and mean map of each bin; None of an empty one."""
    known = [i for i, score in enumerate(scores) if score is not None]
    ranked = sorted(known, key=lambda i: -scores[i])  # type: ignore[operator]
    found = []
    for low, high in pairwise(bins):
        chosen = ranked[low * len(ranked) // 100 : high * len(ranked) // 100]
        if not chosen:
            found.append((0, None, None))
            continue
        size = len(chosen)
        mean = [
            [sum(maps[i][y][x] for i in chosen) / size for x in range(len(maps[0][0]))]
            for y in range(len(maps[0]))
        ]
        found.append((size, sum(scores[i] for i in chosen) / size, mean))  # type: ignore[misc]
    return found
