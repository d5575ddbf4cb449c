"""The demo over several seeds, and what else was tried: numbers as JSON, tables as Markdown.

Example:
    python benchmarks/demo_seeds.py --seeds 0 1 2 --out benchmarks/demo_seeds.json
    python benchmarks/demo_seeds.py --tried --out benchmarks/demo_tried.json
    python benchmarks/demo_seeds.py --markdown docs/demo_results.md
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measured import read, versions, write
from torch import nn

from explainguide import GuideOptions
from explainguide.checkpoints import write_whole
from explainguide.demo import SETTINGS, Setting, build_network, train_run
from explainguide.models import small_cnn
from explainguide.tables import format_table

FOLDER = Path(__file__).parent
SCORES = ("accuracy with decoy", "accuracy without decoy", "worst class", "EPG", "IoU")
_PLAIN = SETTINGS["unguided"]

PARTS = {
    "demo_seeds.json": "## Several seeds",
    "demo_tried.json": "## What else was tried\n\nEach row differs from *guided* above in what it "
    "names. EPG and IoU are always measured at the input. A high EPG alone proves nothing: with "
    "lam 1, or with the maximum as pooling, the maps lie on the digit and the network still answers "
    "by the colour. This table is older than the demo's use of `explainguide.training.train`.",
}

Network = Callable[[], nn.Module]


def mean_pooled() -> nn.Module:
    """The demo's network with the mean in place of the smooth maximum."""
    network = build_network()
    network[-2] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return network


def max_pooled() -> nn.Module:
    """The demo's network with the maximum in place of the smooth maximum."""
    network = build_network()
    network[-2] = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    return network


def full_resolution() -> nn.Module:
    """`small_cnn`: no strides, max pooling between stages, the mean at the end."""
    return small_cnn(10)


def guided(**options: Any) -> GuideOptions:
    """The options of the demo's guided run, with others."""
    return replace(SETTINGS["guided"].options, **options)


# What was tried beside the rows of the demo: name -> setting and network.
TRIED: dict[str, tuple[Setting, Network]] = {
    "lam 1": (Setting("", lam=1.0), build_network),
    "lam 3": (Setting("", lam=3.0), build_network),
    "lam 30": (Setting("", lam=30.0), build_network),
    "lam 3, logit": (Setting("", lam=3.0, options=guided(score="logit")), build_network),
    "10% boxes, logit": (Setting("", annotated=0.1, options=guided(score="logit")), build_network),
    "1% boxes": (Setting("", annotated=0.01), build_network),
    "last convolution": (Setting("", options=guided(layer="17")), build_network),
    "rrr": (Setting("", options=guided(loss="rrr", attribution="gradient")), build_network),
    "l1": (Setting("", options=guided(loss="l1")), build_network),
    "unguided, mean pooling": (_PLAIN, mean_pooled),
    "guided, mean pooling": (Setting(""), mean_pooled),
    "unguided, max pooling": (_PLAIN, max_pooled),
    "guided, max pooling": (Setting(""), max_pooled),
    "unguided, small_cnn": (_PLAIN, full_resolution),
    "guided, small_cnn": (Setting(""), full_resolution),
}


def measure(runs: dict[str, tuple[Setting, Network]], seeds: Sequence[int]) -> dict[str, Any]:
    """Train every run with every seed."""
    results: list[dict[str, Any]] = []
    for seed in seeds:
        for name, (setting, network) in runs.items():
            run = train_run(name, setting, seed=seed, network=network)
            results.append({"run": name, "seed": seed, **run.scores, "seconds": run.seconds})
            print(json.dumps(results[-1]), flush=True)
    return {
        "device": f"CPU, {platform.machine()}, one thread",
        "versions": versions("python", "torch", "explainguide"),
        "settings": {name: str(setting) for name, (setting, _) in runs.items()},
        "results": results,
    }


def to_markdown(record: dict[str, Any]) -> str:
    """One row a run: mean over seeds, and the lowest and highest."""
    rows: list[dict[str, object]] = []
    for name in record["settings"]:
        found = [r for r in record["results"] if r["run"] == name]
        row: dict[str, object] = {"run": name}
        for key in SCORES:
            row[key] = _spread([100 * r[key] for r in found])
        row["seeds"] = ", ".join(str(r["seed"]) for r in found)
        row["s"] = f"{statistics.mean(r['seconds'] for r in found):.0f}"
        rows.append(row)
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    note = f"Percent, mean (lowest to highest); {record['device']}; {versions}."
    return f"{format_table(rows, markdown=True)}\n\n{note}\n"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write JSON, or turn the JSON beside this file into Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tried", action="store_true", help="what was tried beside the demo")
    parser.add_argument("--runs", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument(
        "--markdown", type=Path, help="write the tables of the JSON files beside this program"
    )
    args = parser.parse_args(argv)
    if args.markdown is not None:
        parts = []
        for name, heading in PARTS.items():
            if (FOLDER / name).exists():
                record = read(FOLDER / name)
                parts.append(f"{heading}\n\n{to_markdown(record)}")
        write_whole(args.markdown, lambda file: file.write("\n".join(parts).encode()))
        return 0
    runs = TRIED if args.tried else {name: (s, build_network) for name, s in SETTINGS.items()}
    runs = {name: run for name, run in runs.items() if args.runs is None or name in args.runs}
    record = measure(runs, args.seeds)
    if args.out is not None:
        write(args.out, record)
    print(to_markdown(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
