"""The numbers of a run as text, and as the part of a page that shows them."""

from __future__ import annotations

import platform
import statistics
from typing import Any

import timm
import torch

import explainguide
from explainguide.tables import format_table

COLUMNS = {
    "accuracy": "accuracy",
    "other background": "other background",
    "object hidden": "object hidden",
    "pixel_accuracy": "pixel accuracy",
    "miou": "mIoU",
    "map": "mAP",
    "EPG": "EPG",
}


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "explainguide": explainguide.__version__,
    }


def result_table(record: dict[str, Any], *, markdown: bool = False) -> str:
    """One row a training, on the test split: mean over seeds, and the lowest and highest."""
    rows = []
    for way, lr in _runs(record, "test"):
        found = [row for row in record["rows"] if _run(row) == ("test", way, lr)]
        cells = {name: _spread([100 * r[key] for r in found]) for key, name in COLUMNS.items()}
        seconds = [row["seconds"] for row in found if "seconds" in row]
        time = {"s": f"{statistics.mean(seconds):.0f}" if seconds else "-"}
        rows.append({"training": way, "lr": _rate(lr), **cells, **time})
    return format_table(rows, markdown=markdown)


def search_table(record: dict[str, Any], *, markdown: bool = False) -> str:
    """One row a learning rate, on the validation split; a star at those that were chosen."""
    rows = []
    for way, lr in _runs(record, "val"):
        found = next(row for row in record["rows"] if _run(row) == ("val", way, lr))
        cells = {name: f"{100 * found[key]:.1f}" for key, name in COLUMNS.items() if key in found}
        star = "*" if record["chosen"].get(way) == lr else ""
        rows.append({"training": way, "lr": _rate(lr) + star, **cells})
    return format_table(rows, markdown=markdown)


def as_page(record: dict[str, Any]) -> str:
    """Both tables with what they were measured on, for a page to include."""
    counts, settings = record["images"], record["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    several = f"mean (lowest to highest) of the seeds {seeds}" if "," in seeds else f"seed {seeds}"
    named = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    parts = (
        "## The learning rate, on the validation split",
        f"{counts['val']} images, percent, seed {settings['seeds'][0]}; a star at what was chosen.",
        search_table(record, markdown=True),
        "## What it gave, on the test split",
        f"{counts['test']} images, percent, {several}. Fine-tuned on {settings['per_class']} images "
        f"with masks of each class, {settings['epochs']} passes; s is the time that it took.",
        result_table(record, markdown=True),
        f"Objects cover {100 * record['area']:.1f}% of the test images, which is the EPG of a map that "
        f"prefers nothing. {record['device']}; {named}.",
    )
    return "\n\n".join(parts) + "\n"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def _rate(lr: float) -> str:
    return f"{lr:g}" if lr else "-"


def _run(row: dict[str, Any]) -> tuple[str, str, float]:
    return row["split"], row["training"], row["lr"]


def _runs(record: dict[str, Any], split: str) -> list[tuple[str, float]]:
    """Trainings in the order of their first appearance, the learning rates of each rising."""
    found = [(row["training"], row["lr"]) for row in record["rows"] if row["split"] == split]
    order = list(dict.fromkeys(way for way, _ in found))
    return sorted(dict.fromkeys(found), key=lambda run: (order.index(run[0]), run[1]))
