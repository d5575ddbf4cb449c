"""What a guided step costs on a GPU, whether it waits for the device, and whether a graph captures it.

Times are those of CUDA events, of steps of all kinds interleaved in one process; ratios are medians
over rounds. The kinds are those of benchmarks/step.py; `fast` is fast=True, since "auto" leaves
PyTorch's own operations there. Beside them, of a guided step with its annotations on the device:
    no wait        yes, or what `torch.cuda.set_sync_debug_mode("error")` says
    deterministic  yes, or what `torch.use_deterministic_algorithms(True)` says
    graph          the time of the captured step over the plain one's, or why it was not captured

Without a GPU it says so and ends.

(The file is not called cuda.py: beside a file of that name torch would import it for NVIDIA's package.)

Example:
    python benchmarks/gpu.py --quick
    python benchmarks/gpu.py --json benchmarks/results/cuda.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from step import CASES, Case, Step, build, floor

import explainguide
from explainguide.checkpoints import write_whole
from explainguide.tables import format_table

KINDS = ("guided", "fast", "torch", "loop")


def timed(step: Callable[[], Any]) -> float:
    """Milliseconds of the device."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    step()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended)


@contextmanager
def synchronising_is_an_error() -> Iterator[None]:
    """Within this context."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def deterministic() -> Iterator[None]:
    """Within this context an operation that is not deterministic is an error."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def said(step: Callable[[], Any]) -> str:
    """Whether a step runs: yes, or the first line of its error."""
    try:
        step()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return "yes"


def within(context: Callable[[], Any], step: Callable[[], Any]) -> Callable[[], None]:
    """The step in a context."""

    def run() -> None:
        with context():
            step()

    return run


def capture(step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A graph of the step, after three on a stream of their own, as PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def measure(case: Case, layer: str, rounds: int) -> dict[str, Any]:
    """One row."""
    steps = {kind: Step(case, layer, kind, "cuda") for kind in ("plain", *KINDS)}
    for _ in range(3):
        for step in steps.values():
            step()
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    plain = []
    for index in range(rounds):
        # Another order each round: what ran before leaves its traces in the caches.
        order = list(steps)
        start = index % len(order)
        times = {kind: timed(steps[kind]) for kind in [*order[start:], *order[:start]]}
        plain.append(times["plain"])
        for kind in KINDS:
            ratios[kind].append(times[kind] / times["plain"])
    images = torch.rand(2, 3, case.size, case.size)
    row: dict[str, Any] = {"model": case.model, "size": case.size, "batch": case.batch}
    row |= {"layer": layer, "floor": floor(build(case.model, case.size), layer, images)}
    row |= {kind: statistics.median(values) for kind, values in ratios.items()}
    row["plain, ms"] = statistics.median(plain)
    for kind in ("guided", "fast"):
        row[f"{kind}: no wait"] = said(within(synchronising_is_an_error, steps[kind]))
        row[f"{kind}: deterministic"] = said(within(deterministic, steps[kind]))
        graphs: list[torch.cuda.CUDAGraph] = []
        captured = said(lambda kind=kind, graphs=graphs: graphs.append(capture(steps[kind])))  # type: ignore[misc]
        row[f"{kind}: graph"] = captured
        if graphs:
            times = [timed(graphs[0].replay) for _ in range(rounds)]
            row[f"{kind}: graph"] = statistics.median(times) / row["plain, ms"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    shown = [{k: f"{v:.2f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    return format_table(shown, markdown=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    # What cuBLAS asks for where its results must be the same each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        print("No CUDA device is here: nothing was measured.")
        return
    rows = []
    for case in CASES:
        if args.only and case.model not in args.only:
            continue
        for layer in case.layers:
            larger = case._replace(batch=args.batch, size=224)
            rows.append(measure(larger, layer, 5 if args.quick else 20))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if args.json:
        found = {
            "versions": {
                "explainguide": explainguide.__version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "timm": timm.__version__,
                "cuda": torch.version.cuda,
                "python": platform.python_version(),
            },
            "device": torch.cuda.get_device_name(),
            "seed": 0,
            "rows": rows,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.json, lambda file: file.write(json.dumps(found, indent=1).encode()))


if __name__ == "__main__":
    main()
