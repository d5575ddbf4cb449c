r"""What B-cos networks and guiding them cost: a training step over that of the plain network.

Beside it, the same step of the authors' package (``pip install bcos``), whose explanation mode takes
the factors out of the graph in the forward pass, so that a loss on a map has another gradient; and
of the published formulas as separate operations with the factors held in the backward pass, which
has the right one. All have the same weights, and the same logits and maps to rounding.

Steps take turns in one process. Times are those of the CPU, with one thread, and ratios are medians
over rounds.

Example:
    python benchmarks/bcos.py --json benchmarks/bcos.json
    python benchmarks/bcos.py --json benchmarks/bcos.json --table docs/bcos_speed_results.md
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bcos_programs import (
    SEED,
    Batch,
    Case,
    Key,
    Program,
    authors_package,
    make_batch,
    programs,
)
from measured import common_options, versions, write, write_table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from explainguide.tables import format_table

PROGRAMS = ("ours", "composed", "authors", "authors, 2 forwards")
VERSIONS = ("explainguide", "torch", "torchvision", "bcos")
CASES = (Case("resnet18", 112, 4), Case("resnet18", 64, 8), Case("resnet50", 64, 4))
SMOKE = (Case("resnet18", 64, 2),)


def check(found: dict[Key, Program], batch: Batch) -> dict[Key, float]:
    """In float64, logits and maps equal ours; the cosine of each localization gradient with ours."""
    wide = Batch(batch.images.double(), batch.labels, batch.masks.double())
    for program in found.values():
        program.network.double()
    cosines = {}
    for (step, name), program in found.items():
        if name in ("plain", "ours"):
            continue
        reference = found[step, "ours"]
        ours, theirs = reference.losses(wide), program.losses(wide)
        # The bias is a number in their program, here it was a float32.
        torch.testing.assert_close(theirs.logits, ours.logits, rtol=1e-9, atol=1e-7)
        if ours.localization is not None and theirs.localization is not None:
            torch.testing.assert_close(theirs.maps, ours.maps, rtol=1e-9, atol=1e-9)
            a = _gradient(reference.network, ours.localization)
            b = _gradient(program.network, theirs.localization)
            cosines[step, name] = float(F.cosine_similarity(a, b, dim=0))
    for program in found.values():
        program.network.float()
    return cosines


def _gradient(network: nn.Module, loss: Tensor) -> Tensor:
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


class _Saved:
    """A tensor that autograd keeps, as long as it does."""

    def __init__(self, tensor: Tensor, live: dict[int, int]) -> None:
        self.tensor, self.live = tensor, live
        self.place = tensor.untyped_storage().data_ptr()
        live[self.place] = live.get(self.place, 0) + 1

    def __del__(self) -> None:
        self.live[self.place] -= 1
        if not self.live[self.place]:
            del self.live[self.place]


def saved_megabytes(program: Program, batch: Batch) -> float:
    """The most that a step keeps for its backward passes, besides parameters; shared memory once."""
    live: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in program.network.parameters()}
    sizes: dict[int, int] = {}
    peak = 0

    def pack(tensor: Tensor) -> Tensor | _Saved:
        nonlocal peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() in own:
            return tensor
        kept = _Saved(tensor, live)
        sizes[kept.place] = storage.nbytes()
        peak = max(peak, sum(sizes[place] for place in live))
        return kept

    def unpack(kept: Tensor | _Saved) -> Tensor:
        return kept.tensor if isinstance(kept, _Saved) else kept

    with saved_tensors_hooks(pack, unpack):
        program.step(batch)
    return peak / 1e6


def measure(case: Case, rounds: int, package: Any) -> list[dict[str, Any]]:
    """One row a step and program."""
    batch = make_batch(case)
    found = programs(case, package)
    inputs = {key: batch.plain if key[1] == "plain" else batch for key in found}
    cosines = check(found, batch)
    seconds: dict[Key, list[float]] = {key: [] for key in found}
    memory = {key: saved_megabytes(program, inputs[key]) for key, program in found.items()}
    for _ in range(rounds):
        for key, program in found.items():
            gc.collect()
            start = time.process_time()
            program.step(inputs[key])
            seconds[key].append(time.process_time() - start)

    def ratio(key: Key, other: Key) -> float | None:
        if other not in seconds:
            return None
        return statistics.median(a / b for a, b in zip(seconds[key], seconds[other], strict=True))

    return [
        {
            **case._asdict(),
            "step": step,
            "program": name,
            "ms": 1000 * statistics.median(seconds[step, name]),
            "times plain": ratio((step, name), ("unguided", "plain")),
            "times unguided": ratio((step, name), ("unguided", name.partition(",")[0])),
            "ours over it": ratio((step, "ours"), (step, name)),
            "saved MB": memory[step, name],
            "cosine": cosines.get((step, name)),
        }
        for step, name in found
    ]


def page(facts: dict[str, Any]) -> str:
    """The tables of the docs: a line a network and step, a column a program."""
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in facts["rows"]:
        network = f"{row['network']}, {row['side']} px, batch {row['batch_size']}"
        lines.setdefault((network, row["step"]), {})[row["program"]] = row

    def table(title: str, cell: str) -> str:
        rows = []
        for (network, step), line in lines.items():
            row = {title: network, "step": "unguided" if step == "unguided" else f"guided, {step}"}
            row |= {name: cell.format(**found) for name, found in line.items() if name != "plain"}
            rows.append(row)
        columns = [title, "step", *(c for c in PROGRAMS if any(c in row for row in rows))]
        return format_table(rows, columns=columns, markdown=True)

    cosines = [r["cosine"] for r in facts["rows"] if r["cosine"] and r["program"] == "authors"]
    theirs = ""
    if cosines:
        theirs = (
            "The parameter gradient of the authors' localization loss has a cosine of "
            f"{min(cosines):.2f} to {max(cosines):.2f} with ours.\n\n"
        )
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
    return (
        f"{table('times the plain step (ours over it)', '{times plain:.2f} ({ours over it:.2f})')}\n\n"
        f"{table('times its unguided step (memory)', '{times unguided:.2f} ({saved MB:.0f} MB)')}\n\n"
        f"{theirs}Medians of {facts['rounds']} rounds, seed {facts['seed']}, {facts['device']}, "
        f"{facts['threads']} thread, {versions}.{facts['skipped'] and ' '}{facts['skipped']}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write JSON, or turn it into tables."""
    parser = common_options(__doc__, rounds=9)
    parser.add_argument("--smoke", action="store_true", help="small images, one round")
    args = parser.parse_args(argv)
    if write_table(args, page):
        return 0
    torch.set_num_threads(1)
    package, skipped = authors_package()
    rows: list[dict[str, Any]] = []
    for case in SMOKE if args.smoke else CASES:
        rows += measure(case, 1 if args.smoke else args.rounds, package)
    facts = {
        "device": f"CPU, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "seed": SEED,
        "rounds": 1 if args.smoke else args.rounds,
        "versions": versions(*VERSIONS),
        "skipped": skipped,
        "rows": rows,
    }
    if args.json:
        write(args.json, facts)
    print(page(facts), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
