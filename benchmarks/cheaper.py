"""What cheaper settings of guidance cost, over a plain step.

Each table row is one process, interleaved, medians of process CPU time on one thread:
    rows      annotated images of a batch of 8, at rows="all" and rows="annotated"; BatchNorm is frozen
    every     the localization loss in each k-th step, the mean of 4 steps
    late      attributions at late layers, and the roll-out over the last blocks

Example:
    python benchmarks/cheaper.py --quick
    python benchmarks/cheaper.py --json benchmarks/cheaper.json
    python benchmarks/cheaper.py --json benchmarks/cheaper.json --table docs/cheaper_results.md
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measured import common_options, in_turns, medians_over, save, write_table
from step import boxes, build, floor
from torch import nn

from explainguide import Annotations, GuideOptions
from explainguide.tables import format_table

BATCH = 8
RESNET, VIT = ("resnet50", 112), ("vit_tiny_patch16_224", 224)


class Setting(NamedTuple):
    """How a step is guided: not at all, where there are no options."""

    name: str
    options: dict[str, Any] | None
    annotated: int = BATCH
    every: int = 1


class Case(NamedTuple):
    """Settings that are compared."""

    table: str
    model: str
    size: int
    settings: tuple[Setting, ...]
    steps: int = 1  # that are timed together


def _rows(model: tuple[str, int], layer: str) -> Case:
    everywhere = Setting("all", {"layer": layer})
    some = [Setting(f"{k}/8", {"layer": layer, "rows": "annotated"}, k) for k in (1, 2, 4, 8)]
    return Case("rows", *model, (everywhere, *some))


def _every(model: tuple[str, int], layer: str) -> Case:
    settings = tuple(Setting(f"k={k}", {"layer": layer}, every=k) for k in (1, 2, 4))
    return Case("every", *model, settings, steps=4)


def _late(model: tuple[str, int], *layers: str) -> Case:
    kinds = [(layer, kind) for layer in layers for kind in ("ixg", "gradcam")]
    settings = [Setting(f"{k} {la}", {"layer": la, "attribution": k}) for la, k in kinds]
    if model is VIT:
        relevance = {"attribution": "relevance", "loss": "relevance"}
        for blocks in (12, 3, 1):
            last = {"attribution_options": {"last_blocks": blocks}}
            settings.append(Setting(f"relevance, last {blocks}", {**relevance, **last}))
    return Case("late", *model, tuple(settings))


CASES = (
    _rows(RESNET, "layer1"),
    _rows(RESNET, "layer3"),
    _rows(VIT, "blocks.6.norm1"),
    _every(RESNET, "layer2"),
    _late(RESNET, "layer3", "layer4"),
    _late(VIT, "blocks.11.norm1"),
)


def some_of(annotations: Annotations, count: int) -> Annotations:
    """The first images keep their annotation."""
    items = zip(annotations.boxes[:count], annotations.labels[:count], strict=True)
    kept = [{"boxes": boxes, "labels": labels} for boxes, labels in items]
    return Annotations.from_targets([*kept, *[None] * (len(annotations) - count)])


class Steps:
    """Steps of the optimizer in one setting, on the same images."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.model = build(case.model, case.size)
        if case.table == "rows":
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(2)
        self.images = torch.rand(BATCH, 3, case.size, case.size, generator=generator)
        everywhere = boxes(BATCH, case.size)
        self.labels = everywhere.labels[:, 0]
        self.annotations = some_of(everywhere, setting.annotated)
        self.count, self.every = case.steps, setting.every
        self.guide = None
        if setting.options is not None:
            self.guide = GuideOptions(**setting.options).build(self.model)

    def __call__(self) -> None:
        """Forward, backward, update."""
        for step in range(self.count):
            guided = self.guide is not None and step % self.every == 0
            with self.guide.pause() if self.guide and not guided else nullcontext():
                loss = F.cross_entropy(self.model(self.images), self.labels)
            if guided and self.guide is not None:
                loss = loss + 0.1 * self.guide.loss_loc(self.annotations)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """The medians over rounds of the time of each setting over plain steps'."""
    every = {s.name: s for s in (Setting("plain", None), *case.settings)}
    steps = {name: Steps(case, setting) for name, setting in every.items()}
    ratios = medians_over(in_turns(steps, rounds), "plain")
    rows = []
    for name, setting in every.items():
        if setting.options is not None:
            row = {"table": case.table, "model": case.model, "size": case.size, "batch": BATCH}
            row |= {"layer": steps[name].guide.layers[0], "setting": name}  # type: ignore
            rows.append({**row, "ratio": ratios[name]})
    return rows


def floors(rows: list[dict[str, Any]]) -> None:
    """Add what the matrix products alone say, where a layer has a share of them."""
    for row in rows:
        if "relevance" in row["setting"]:
            continue
        images = torch.rand(1, 3, row["size"], row["size"])
        share = floor(build(row["model"], row["size"]).eval(), row["layer"], images) - 1
        if row["table"] == "every":
            share /= int(row["setting"].removeprefix("k="))
        if row["table"] == "rows" and row["setting"] != "all":
            # Those images go through once more, and both passes are differentiated.
            share *= 2 * int(row["setting"].split("/")[0]) / BATCH
        row["products"] = 1 + share


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a model and layer, with the ratio and, in brackets, that of the products."""
    parts = []
    for kind in ("rows", "every", "late"):
        lines: dict[Any, dict[str, Any]] = {}
        for row in (row for row in rows if row["table"] == kind):
            shown = f"{row['ratio']:.2f}"
            shown += f" ({row['products']:.2f})" if "products" in row else ""
            line = {"model": row["model"], "size": row["size"]}
            if kind == "late":
                line |= {"attribution": row["setting"], "of a plain step": shown}
                lines[row["model"], row["setting"]] = line
            else:
                at = lines.setdefault((row["model"], row["layer"]), {**line, "layer": row["layer"]})
                at[{"all": 'rows="all"'}.get(row["setting"], row["setting"])] = shown
        if lines:
            parts.append(format_table(list(lines.values()), markdown=True))
    return "\n\n".join(parts)


def main() -> None:
    """See above."""
    parser = common_options(__doc__, quick=True, rounds=0)
    parser.add_argument("--only", nargs="+", default=(), choices=("rows", "every", "late"))
    args = parser.parse_args()
    if write_table(args, lambda found: table(found["rows"])):
        return
    torch.set_num_threads(1)
    rounds = args.rounds or (3 if args.quick else 7)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if args.only and case.table not in args.only:
            continue
        found = measure(case, rounds)
        floors(found)
        rows += found
        print(table(found), flush=True)
        save(args.json, rows, rounds=rounds)


if __name__ == "__main__":
    main()
