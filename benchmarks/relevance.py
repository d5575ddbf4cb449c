r"""What guiding by attention relevance costs: a training step of a ViT-tiny, guided over plain.

The plain step and the guided ones take turns within one run, so that the ratios do not depend on
what else the machine does. Times are medians.

Example:
    python benchmarks/relevance.py --rounds 7 --out benchmarks/relevance.json \
        --table docs/relevance_results.md
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measured import versions, write
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.attr import AttentionRelevance
from explainguide.checkpoints import write_whole
from explainguide.tables import format_table

MODEL = "vit_tiny_patch16_224"
SEED = 0


def step(model: nn.Module, images: Tensor, masks: Tensor, labels: Tensor, blocks: int) -> float:
    """Seconds of a forward and backward pass, guided over the last blocks; 0 is plain."""
    guide = None
    if blocks:
        relevance = AttentionRelevance(model, last_blocks=blocks)
        guide = ExplanationGuidance(model, attribution=relevance, loss="relevance")
    model.zero_grad()
    _wait(images)
    start = time.perf_counter()
    loss = F.cross_entropy(model(images), labels)
    if guide is not None:
        loss = loss + guide.loss_loc(masks, target=labels)
    loss.backward()
    _wait(images)
    seconds = time.perf_counter() - start
    if guide is not None:
        guide.remove()
    return seconds


def _wait(images: Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def measure(batch_size: int, rounds: int, blocks: Sequence[int], device: str) -> list[dict]:
    """One row a number of blocks, the plain step first."""
    torch.manual_seed(SEED)
    model = timm.create_model(MODEL, num_classes=10).to(device).train()
    size = model.patch_embed.img_size[0]
    images = torch.randn(batch_size, 3, size, size, device=device)
    masks = torch.zeros(batch_size, size, size, device=device)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    labels = torch.randint(10, (batch_size,), device=device)
    seconds: dict[int, list[float]] = {count: [] for count in (0, *blocks)}
    for warm in (True, *[False] * rounds):
        for count, found in seconds.items():
            took = step(model, images, masks, labels, count)
            if not warm:
                found.append(took)
    plain = statistics.median(seconds[0])
    return [
        {
            "last_blocks": count or None,
            "ms": 1000 * statistics.median(found),
            "times plain": statistics.median(found) / plain,
        }
        for count, found in seconds.items()
    ]


def page(facts: dict[str, Any]) -> str:
    """The table of the docs."""
    rows = facts["rows"]
    names = [f"{r['last_blocks']} block{'s'[: r['last_blocks'] > 1]}" if r["last_blocks"] else "none"
             for r in rows]  # fmt: skip
    cells = [f"{r['times plain']:.2f}" for r in rows]
    return (
        f"| roll-out over the last | {' | '.join(names)} |\n|{' --- |' * (len(rows) + 1)}\n"
        f"| time of a step | {' | '.join(cells)} |\n\n"
        f"{facts['model']}, batch {facts['batch_size']}, {facts['device']}, {facts['threads']} "
        f"thread, torch {facts['torch']}, medians of {facts['rounds']} rounds.\n"
    )


def main() -> None:
    """Measure, write JSON, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--blocks", type=int, nargs="+", default=[12, 3, 1])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--table", help="Markdown file, for the docs")
    args = parser.parse_args()
    rows = measure(args.batch_size, args.rounds, args.blocks, args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    facts = {
        "model": MODEL,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "seed": SEED,
        "device": f"{args.device} {name}".strip(),
        "threads": torch.get_num_threads(),
        **versions("torch", "timm", "python"),
        "rows": rows,
    }
    if args.out:
        write(args.out, facts)
    if args.table:
        write_whole(args.table, lambda file: file.write(page(facts).encode()))
    print(format_table(rows, markdown=True))


if __name__ == "__main__":
    main()
