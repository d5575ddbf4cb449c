"""The whole comparison: choose the learning rate, fine-tune in each way, score on the test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustvit_parts.animals import Animals
from robustvit_parts.tuning import CONTROLS, choose, few, fine_tune, scores

BEFORE = "before"
Row = dict[str, Any]


def known_rows(file: str, settings: dict[str, Any], base: dict[str, Any]) -> list[Row]:
    """The rows of an earlier run, to go on from.

    Raises:
        SystemExit: If that run had other settings.
    """
    path = Path(file)
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    before = {name: earlier["settings"][name] for name in ("per_class", "epochs")}
    if earlier["base"] != base or not before.items() <= settings.items():
        raise SystemExit(f"{file} holds a run with another base or {before}. Name another --json.")
    return list(earlier["rows"])


def compare(
    base: nn.Module,
    splits: dict[str, Animals],
    scenes: Tensor,
    rows: list[Row],
    *,
    lrs: Sequence[float],
    seeds: Sequence[int],
    per_class: int,
    epochs: int,
    save: Callable[[], None],
) -> dict[str, float]:
    """Add to the rows what they lack of the search (val) and the result (test); save after each.

    Returns:
        The learning rates that were chosen on the validation split.
    """

    def row(split: str, way: str, lr: float, seed: int) -> Row:
        key = {"split": split, "training": way, "lr": lr, "seed": seed}
        for known in rows:
            if key.items() <= known.items():
                return known
        model, found = base, {}
        if way != BEFORE:
            images = few(splits["train"], per_class, seed)
            model, seconds = fine_tune(base, way, images, lr=lr, epochs=epochs, seed=seed)
            found = {"seconds": seconds}
        rows.append({**key, **found, **scores(model, splits[split], scenes, split == "test")})
        save()
        print(rows[-1], flush=True)
        return rows[-1]

    start = row("val", BEFORE, 0.0, 0)["accuracy"]
    chosen: dict[str, float] = {}
    for way, control in CONTROLS.items():
        tried = [row("val", way, lr, seeds[0]) for lr in lrs]
        chosen[way] = chosen[control] = choose(tried, start)
    row("test", BEFORE, 0.0, 0)
    for seed in seeds:
        for way, lr in chosen.items():
            row("test", way, lr, seed)
    return chosen
