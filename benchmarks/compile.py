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

import time
from typing import Any

import torch
from measured import collect, common_options, in_turns, medians_over, save, write_table
from step import Case, Step, build, chosen, floor, table

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
    times = in_turns(steps, rounds, warm=2)
    images = torch.rand(case.batch, 3, case.size, case.size)
    return {
        "model": case.model,
        "size": case.size,
        "batch": case.batch,
        "layer": layer,
        "below": 2 - floor(build(case.model, case.size), layer, images),
        "modules": len(modules),
        "ratio": medians_over(times, "eager")["compiled"],
        "compiling": compiling,
    }


def main() -> None:
    """See above."""
    parser = common_options(__doc__, quick=True, rounds=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL[:LAYER]")
    args = parser.parse_args()
    if write_table(args, lambda found: table(found["rows"])):
        return
    torch.set_num_threads(1)
    rounds = args.rounds or (5 if args.quick else 15)
    found = (measure(case, layer, rounds) for case, layer in chosen(CASES, args.only))
    save(args.json, collect(found, table))


if __name__ == "__main__":
    main()
