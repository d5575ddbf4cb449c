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

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measured import collect, common_options, in_turns, medians_over, save
from step import CASES, Case, Step, build, chosen, floor

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
    times = in_turns(steps, rounds, clock=timed, warm=3)
    images = torch.rand(2, 3, case.size, case.size)
    row: dict[str, Any] = {"model": case.model, "size": case.size, "batch": case.batch}
    row |= {"layer": layer, "floor": floor(build(case.model, case.size), layer, images)}
    row |= medians_over(times, "plain")
    row["plain, ms"] = statistics.median(times["plain"])
    for kind in ("guided", "fast"):
        row[f"{kind}: no wait"] = said(within(synchronising_is_an_error, steps[kind]))
        row[f"{kind}: deterministic"] = said(within(deterministic, steps[kind]))
        graphs: list[torch.cuda.CUDAGraph] = []
        captured = said(lambda kind=kind, graphs=graphs: graphs.append(capture(steps[kind])))  # type: ignore[misc]
        row[f"{kind}: graph"] = captured
        if graphs:
            replayed = [timed(graphs[0].replay) for _ in range(rounds)]
            row[f"{kind}: graph"] = statistics.median(replayed) / row["plain, ms"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    shown = [{k: f"{v:.2f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    return format_table(shown, markdown=True)


def main() -> None:
    """See above."""
    parser = common_options(__doc__, quick=True, table=False)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL[:LAYER]")
    args = parser.parse_args()
    # What cuBLAS asks for where its results must be the same each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        print("No CUDA device is here: nothing was measured.")
        return
    rounds = 5 if args.quick else 20
    found = (
        measure(case._replace(batch=args.batch, size=224), layer, rounds)
        for case, layer in chosen(CASES, args.only)
    )
    device = torch.cuda.get_device_name()
    save(args.json, collect(found, table), device=device, cuda=torch.version.cuda)


if __name__ == "__main__":
    main()
