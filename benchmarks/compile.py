"""What a compiled trunk gains: a guided step after `guide.compile()` over the same step without.

Columns, both steps of one process, interleaved, medians of process CPU time on one thread:
    below     the share of the FLOPs of a forward pass that lies before the layer, and is compiled
    modules   how many modules are compiled
    ratio     the time of a compiled step over that of one that is not; below 1 it is faster
    compiling seconds of wall time of the two steps of which one compiles, forward and backward

Example:
    python benchmarks/compile.py --quick
    python benchmarks/compile.py --json benchmarks/compile.json
    python benchmarks/compile.py --json benchmarks/compile.json --table docs/compile_results.md
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from step import Case, Step, build, floor, table

import explainguide
from explainguide.checkpoints import write_whole

CASES = (
    Case("resnet18", 112, 4, ("layer2", "layer3", "layer4")),
    Case("vit_tiny_patch16_224", 224, 2, ("blocks.3.norm1", "blocks.7.norm1", "blocks.11.norm1")),
)  # fmt: skip


def measure(case: Case, layer: str, rounds: int) -> dict[str, Any]:
    """The median over rounds of the time of a compiled step over an eager one's."""
    torch._dynamo.reset()
    steps = {kind: Step(case, layer, "guided") for kind in ("eager", "compiled")}
    guide = steps["compiled"].guide
    assert guide is not None
    modules = guide.compile()
    began = time.perf_counter()
    for _ in range(2):  # the first runs uncompiled
        steps["compiled"]()
    compiling = time.perf_counter() - began
    ratios = []
    for index in range(rounds + 2):
        times = {}
        for kind in list(steps)[:: 1 if index % 2 else -1]:
            began = time.process_time()
            steps[kind]()
            times[kind] = time.process_time() - began
        if index > 1:  # the first two warm up
            ratios.append(times["compiled"] / times["eager"])
    images = torch.rand(case.batch, 3, case.size, case.size)
    return {
        "model": case.model,
        "size": case.size,
        "batch": case.batch,
        "layer": layer,
        "below": 2 - floor(build(case.model, case.size), layer, images),
        "modules": len(modules),
        "ratio": statistics.median(ratios),
        "compiling": compiling,
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL[:LAYER]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="write that of --json here, and run nothing")
    args = parser.parse_args()
    if args.table:
        rows = json.loads(args.json.read_text())["rows"]
        content = table(rows).encode() + b"\n"
        write_whole(args.table, lambda file: file.write(content))
        return
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        for layer in case.layers:
            if args.only and not {case.model, f"{case.model}:{layer}"} & set(args.only):
                continue
            rows.append(measure(case, layer, args.rounds or (5 if args.quick else 15)))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if args.json:
        found = {
            "versions": {
                "explainguide": explainguide.__version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "timm": timm.__version__,
                "python": platform.python_version(),
            },
            "device": "cpu, one thread",
            "seed": 0,
            "rows": rows,
        }
        write_whole(args.json, lambda file: file.write(json.dumps(found, indent=1).encode()))


if __name__ == "__main__":
    main()
