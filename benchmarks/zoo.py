"""Guidance on every model family of timm and torchvision: one row a family, as it goes.

python benchmarks/zoo.py --json zoo.json            # all 115; goes on where it stopped
python benchmarks/zoo.py --json zoo.json --only timm/swin_transformer timm/hrnet
python benchmarks/zoo.py --json benchmarks/zoo.json --table docs/families_results.md
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from pathlib import Path
from typing import Any

import torchvision
from measured import read, versions, write
from torch import nn
from zoo_check import Row, check_model, find_layers
from zoo_families import FAMILIES, SIDES, build

from explainguide.hooks.probe import input_size

_PACKAGES = ("explainguide", "torch", "torchvision", "timm")


def main() -> None:
    """Run what the JSON file has no row of, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="read, and written row by row")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY", default=[])
    parser.add_argument(
        "--again", action="store_true", help="run rows again that failed or have other layers now"
    )
    parser.add_argument("--table", type=Path, help="write the table here and run nothing")
    args = parser.parse_args()
    result = read(args.json) if args.json.exists() else {"rows": {}}
    if args.table:
        args.table.write_text(table(result))
        return
    warnings.filterwarnings("ignore", category=UserWarning)
    result |= {"versions": versions(*_PACKAGES), "device": "cpu", "seed": 0}
    rows = result["rows"]
    for family in args.only or FAMILIES:
        if family in rows and not (args.again and is_stale(rows[family])):
            continue
        row = run(family)
        rows[family] = row.to_dict()
        write(args.json, result)
        print(line(rows[family]), flush=True)
    good = sum(row["ok"] for row in rows.values())
    print(f"{good} of {len(rows)} families guided at all three places")


def is_stale(row: dict[str, Any]) -> bool:
    """Whether a row failed, or the layers that it is about are others now."""
    if not row["ok"]:
        return True
    name, options = FAMILIES[row["family"]]
    found = find_layers(build(row["family"], name, options))
    return any(
        info is not None
        and (row[kind]["layer"], row[kind]["layout"]) != (info.name, str(info.layout))
        for kind, info in found.items()
    )


def run(family: str) -> Row:
    """Build and check one family."""
    name, options = FAMILIES[family]
    start = time.perf_counter()
    model = build(family, name, options)
    row = Row(family, name, image_side(family, model), sum(p.numel() for p in model.parameters()))
    check_model(row, model)
    row.seconds = round(time.perf_counter() - start, 1)
    del model
    gc.collect()
    return row


def image_side(family: str, model: nn.Module) -> int:
    """The side of the images that a model was made for, or a smaller one that it takes."""
    if family in SIDES:
        return SIDES[family]
    if family.startswith("torchvision/"):
        weights = torchvision.models.get_model_weights(FAMILIES[family][0])["DEFAULT"]
        return int(weights.transforms().crop_size[0])
    return input_size(model)[1]


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    wrong = [row["refused"]] if row["refused"] else []
    for kind in ("automatic", "input", "middle"):
        wrong += [
            f"{kind} {row[kind]['layer']}: {f}" for f in (row[kind] or {}).get("failures", [])
        ]
    chosen = row["automatic"] or {"layer": "-", "layout": "-"}
    verdict = "; ".join(wrong) or "ok"
    return (
        f"{row['family']:36} {row['model']:36} {chosen['layer']:30} {chosen['layout']:22} "
        f"{','.join(row['replaced']):30} {row['seconds']:6.1f} s  {verdict}"
    )


def table(result: dict[str, Any]) -> str:
    """The page of the docs."""
    rows = result["rows"].values()
    lines = [
        "| family | model | image | automatic layer | layout | operations replaced | guided |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        chosen = row["automatic"] or {"layer": "", "layout": ""}
        places = [k for k in ("automatic", "input", "middle") if row[k] and not row[k]["failures"]]
        verdict = "yes" if row["ok"] else ", ".join(places) or row["refused"]
        lines.append(
            f"| {row['family']} | `{row['model']}` | {row['image']} | `{chosen['layer']}` | "
            f"{chosen['layout']} | {', '.join(row['replaced'])} | {verdict} |"
        )
    good = sum(row["ok"] for row in rows)
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return "\n".join([f"{good} of {len(rows)} families; {versions}.", "", *lines, ""])


if __name__ == "__main__":
    main()
