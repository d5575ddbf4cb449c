"""What a benchmark measured: how it is asked for, timed in turns, shown as it goes, and kept as JSON.

The tables of the docs are made of the JSON files: ``--json FILE`` writes one, and with ``--table PAGE``
it is read, and nothing runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from explainguide.checkpoints import write_whole

__all__ = [
    "collect",
    "common_options",
    "cpu_seconds",
    "in_turns",
    "medians_over",
    "read",
    "save",
    "versions",
    "write",
    "write_table",
]

Row = dict[str, Any]
PACKAGES = ("explainguide", "torch", "torchvision", "timm", "python")
ONE_THREAD = "cpu, one thread"


def common_options(
    doc: str | None, *, quick: bool = False, rounds: int | None = None, table: bool = True
) -> argparse.ArgumentParser:
    """The options that benchmarks have in common; each adds its own.

    Args:
        doc: Of the benchmark.
        quick: Whether it can be asked for fewer rounds.
        rounds: How many it takes by default; None where it does not ask.
        table: Whether it makes a table of the docs.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    if quick:
        parser.add_argument("--quick", action="store_true", help="fewer rounds")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="timed steps of each kind")
    written = "written; with --table it is read" if table else "written"
    parser.add_argument("--json", type=Path, help=written)
    if table:
        parser.add_argument("--table", type=Path, help="write that of --json here, and run nothing")
    return parser


def cpu_seconds(step: Callable[[], object]) -> float:
    """Of this process."""
    began = time.process_time()
    step()
    return time.process_time() - began


def in_turns(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[Callable[[], object]], float] = cpu_seconds,
    warm: int = 1,
) -> dict[str, list[float]]:
    """The times of several steps that take turns within one process.

    Each round has another order: what ran before leaves its traces in the caches.

    Args:
        steps: By name.
        rounds: Of which the times are kept.
        clock: Runs a step and says how long it took.
        warm: Rounds before, which are not kept.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(warm + rounds):
        start = index % len(names)
        for name in [*names[start:], *names[:start]]:
            took = clock(steps[name])
            if index >= warm:
                times[name].append(took)
    return times


def medians_over(times: Mapping[str, list[float]], reference: str) -> dict[str, float]:
    """The medians over rounds of the time of each step over that of one among them."""
    return {
        name: statistics.median(a / b for a, b in zip(own, times[reference], strict=True))
        for name, own in times.items()
        if name != reference
    }


def collect(found: Iterable[Row], table: Callable[[list[Row]], str]) -> list[Row]:
    """All rows; each is printed when it is there, and the whole table at the end.

    Args:
        found: Measured one by one.
        table: Makes Markdown of rows.
    """
    rows: list[Row] = []
    for row in found:
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
    print(table(rows))
    return rows


def versions(*packages: str) -> dict[str, str | None]:
    """Of packages, and of ``"python"``; None of one that is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    if package == "python":
        return platform.python_version()
    # What is loaded names its build, too; a program beside this file has a name, but no version.
    if isinstance(own := getattr(sys.modules.get(package), "__version__", None), str):
        return own
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(
    path: Path | None,
    rows: Any,
    *,
    packages: Iterable[str] = PACKAGES,
    device: str = ONE_THREAD,
    seed: int = 0,
    **about: Any,
) -> None:
    """Write what was measured, with what it was measured with, if there is a path.

    Args:
        path: The file.
        rows: What JSON can hold.
        packages: Whose versions are kept.
        device: In words.
        seed: Of the measurement.
        about: What else is kept beside the rows.
    """
    if path is not None:
        head = {"versions": versions(*packages), "device": device, "seed": seed}
        write(path, {**head, **about, "rows": rows})


def write(path: Path, found: Any) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = f"{json.dumps(found, indent=1)}\n".encode()
    write_whole(path, lambda file: file.write(content))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write_table(args: argparse.Namespace, page: Callable[[dict[str, Any]], str]) -> bool:
    """Where a table is asked for, make it of the JSON file.

    Args:
        args: Of `common_options`.
        page: Makes a page of the file's content.

    Returns:
        Whether it was asked for, so that nothing is to be run.
    """
    if args.table is None:
        return False
    if args.json is None:
        raise SystemExit("--table needs --json, the file that the table is made of")
    content = page(read(args.json)).rstrip("\n").encode() + b"\n"
    write_whole(args.table, lambda file: file.write(content))
    return True
