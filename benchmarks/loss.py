"""The localization loss alone, of 64 images: at the maps' own resolution, over full resolution.

From maps to the mean of the losses and back to the maps' gradient; masks or weights are made of the
boxes each time. *full* is what a guide does for a loss that says of no other way: boxes drawn as masks,
maps upsampled bilinearly, all images at once. Medians of process CPU time on one thread, interleaved in
one process; the ratio is the median of the rounds'.

Example:
    python benchmarks/loss.py --json benchmarks/loss.json
    python benchmarks/loss.py --json benchmarks/loss.json --table docs/loss_results.md
"""

from __future__ import annotations

import statistics
from itertools import product
from typing import Any

import torch
from measured import collect, common_options, in_turns, medians_over, save, write_table
from torch import Tensor

from explainguide import Annotations
from explainguide.guidance.comparison import Chosen, compare
from explainguide.losses.table import StagedLoss, resolve_loss
from explainguide.tables import format_table

BATCH, SIZE, SEED = 64, 224, 0
LOSSES = ("energy", "l1", "rrr")
PLACES = (7, 14)
OBJECTS = (1, 3, 10)
GATE, GOAL = 0.05, 0.02


def boxes(objects: int) -> Annotations:
    """Random boxes of one class, which overlap."""
    generator = torch.Generator().manual_seed(SEED)
    low = torch.rand(BATCH, objects, 2, generator=generator) * SIZE * 0.6
    extent = (0.2 + 0.4 * torch.rand(BATCH, objects, 2, generator=generator)) * SIZE
    labels = torch.zeros(BATCH, objects, dtype=torch.int64)
    return Annotations(torch.cat([low, low + extent], -1), labels, canvas=(SIZE, SIZE))


class Run:
    """One way to a loss and its gradient."""

    def __init__(self, loss: StagedLoss, places: int, objects: int) -> None:
        generator = torch.Generator().manual_seed(SEED + 1)
        # As Grad-CAM makes them, so that energy is among those that are exact.
        self.raw = torch.randn(1, BATCH, places, places, generator=generator).requires_grad_()
        self.loss, self.annotations = loss, boxes(objects)
        self.classes = torch.zeros(1, BATCH, dtype=torch.int64)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The mean loss, and the gradient."""
        chosen = Chosen(self.annotations, self.classes, (SIZE, SIZE))
        annotated = chosen.have_pixels()
        losses = compare(self.loss, "", torch.relu(self.raw), chosen, non_negative=True)
        value = torch.where(annotated, losses, 0).mean()
        return value.detach(), torch.autograd.grad(value, self.raw)[0]


class FullRun(Run):
    """As it was before: which image has a pixel is read off the masks, too."""

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The mean loss, and the gradient."""
        chosen = Chosen(self.annotations, self.classes, (SIZE, SIZE))
        annotated = (chosen.masks() > 0).flatten(2).any(2)
        losses = compare(self.loss, "", torch.relu(self.raw), chosen, non_negative=True)
        value = torch.where(annotated, losses, 0).mean()
        return value.detach(), torch.autograd.grad(value, self.raw)[0]


def measure(loss: str, places: int, objects: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both, their ratio, and how far their results are apart."""
    staged = resolve_loss(loss)
    own = Run(staged, places, objects)
    full = FullRun(staged._replace(coarse=None), places, objects)
    (value, gradient), (expected, of_pixels) = own(), full()
    apart = max(
        float(abs(value - expected) / expected),
        float((gradient - of_pixels).norm() / of_pixels.norm()),
    )
    times = in_turns({"own": own, "full": full}, rounds)
    return {
        "loss": loss,
        "places": f"{places} x {places}",
        "boxes": objects,
        "full, ms": 1e3 * statistics.median(times["full"]),
        "own, ms": 1e3 * statistics.median(times["own"]),
        "over full": medians_over(times, "full")["own"],
        "gate": GATE,
        "goal": GOAL,
        "apart": apart,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    digits = {"full, ms": ".1f", "own, ms": ".2f", "over full": ".3f", "gate": ".2f", "goal": ".2f"}
    digits["apart"] = ".0e"
    shown = [{k: format(v, digits[k]) if k in digits else v for k, v in r.items()} for r in rows]
    return format_table(shown, markdown=True)


def main() -> None:
    """See above."""
    args = common_options(__doc__, rounds=31).parse_args()
    if write_table(args, lambda found: table(found["rows"])):
        return
    torch.set_num_threads(1)
    found = (measure(*case, args.rounds) for case in product(LOSSES, PLACES, OBJECTS))
    packages = ("explainguide", "torch", "python")
    rows = collect(found, table)
    save(args.json, rows, packages=packages, seed=SEED, batch=BATCH, size=SIZE)


if __name__ == "__main__":
    main()
