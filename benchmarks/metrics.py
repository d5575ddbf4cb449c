"""Images per second of metrics, this package's over Quantus's, and the values of both.

Both are given the same maps, masks, images and the same ResNet-18, in turns within one process, on one
thread; times are medians of the process's CPU time. Quantus is no dependency: where it is not
installed its columns are empty. A second table: maps of several classes an image, in one pass over
one pass a class.

Example:
    python benchmarks/metrics.py --quick
    python benchmarks/metrics.py --json benchmarks/metrics.json
    python benchmarks/metrics.py --json benchmarks/metrics.json --table docs/metrics_results.md
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from measured import collect, common_options, in_turns, medians_over, save, write_table
from metrics_quantus import Case, quantus_package, questions
from torch import Tensor
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import gaussian_blur

from explainguide.annotations.class_choice import Choice
from explainguide.attr import InputXGradient
from explainguide.evaluation.explaining import explaining
from explainguide.hooks.reading import AS_FOUND
from explainguide.metrics import (
    EnergyPointingGame,
    GridPointingGame,
    Infidelity,
    PixelAveragePrecision,
    PixelPerturbation,
    PointingGame,
    SensitivityMax,
    deletion_curve,
    insertion_curve,
)
from explainguide.tables import format_table

PACKAGES = ("explainguide", "quantus", "torch", "torchvision", "numpy", "python")
SEED, CLASSES = 0, 10
# Quantus counts channels as features and wants their number in a step to divide that of the pixels, so
# steps are a multiple of 3; 5% of the pixels are a whole number of them.
SIZE, STEPS, SAMPLES = 60, 30, 16
IMAGES, ASKED = 128, 16  # all have maps, and the metrics that ask the model get the first ones
MAPS_ALONE = ("epg", "gridpg", "pointing_game", "pxap")
SEVERAL = (2, 4)
EQUAL = 1e-5

# What Quantus is asked, and where that is another thing.
DEFINITIONS = {
    "epg": "the same, of the maps' positive part",
    "gridpg": "the same",
    "pointing_game": "the same",
    "pxap": "another: ROC area of each image",
    "perturbation": "the same, of a model that returns what it says; 60 passes, not 3",
    "deletion": "the same",
    "insertion": "the same, as deletion of the negated map",
    "infidelity": "another: patches that are set to 0 one by one, not noise; no fitted factor",
    "sensitivity": "the same, other draws",
}


def make_case(images: int, size: int, steps: int, samples: int) -> Case:
    """A network with random weights, which explains what it says of blurred noise."""
    torch.manual_seed(SEED)
    model = resnet18(num_classes=CLASSES).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    method = InputXGradient(model)

    def explain(images: Tensor, target: Tensor) -> Tensor:
        return method.attribute(images, target)[:, 0]

    shown = 4 * gaussian_blur(torch.randn(images, 3, size, size), [9, 9], [2.0, 2.0])
    target = model(shown).argmax(1)
    low = (torch.rand(images, 2, 1, 1) * size / 2).int()
    high = low + size // 4 + (torch.rand(images, 2, 1, 1) * size / 4).int()
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    masks = (low[:, 0] <= rows) & (rows < high[:, 0])
    masks = masks & (low[:, 1] <= columns) & (columns < high[:, 1])
    cell = torch.arange(images) % 4
    maps = explain(shown, target)
    return Case(model, explain, shown, target, maps, masks, cell, steps, samples)


def first(case: Case, images: int) -> Case:
    """The same of the first images alone."""
    names = ("images", "target", "maps", "masks", "cell")
    return case._replace(**{name: getattr(case, name)[:images] for name in names})


def own(case: Case) -> dict[str, Callable[[], float]]:
    """The metrics of this package, by their keys."""
    asked = (case.maps, case.images, case.target)

    def updated(metric: Any, *given: Any) -> float:
        metric.update(*given)
        found = metric.compute()
        return float(torch.stack(list(found.values())).mean() if isinstance(found, dict) else found)

    def curve(function: Callable[..., Tensor], points: slice) -> float:
        found = function(*asked, case.model, steps=case.steps, fill=0.0)
        return float(found[:, points].mean())

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(SEED)

    def infidelity() -> float:
        metric = Infidelity(samples=case.samples, generator=generator())
        return updated(metric, *asked, case.model)

    def sensitivity() -> float:
        metric = SensitivityMax(samples=case.samples, generator=generator())
        return updated(metric, *asked, case.explain)

    return {
        "epg": lambda: updated(EnergyPointingGame(), case.maps, case.masks),
        "gridpg": lambda: updated(GridPointingGame(n=2, order="row"), case.maps, case.cell),
        "pointing_game": lambda: updated(PointingGame(), case.maps, case.masks),
        "pxap": lambda: updated(PixelAveragePrecision(), case.maps, case.masks),
        "perturbation": lambda: updated(PixelPerturbation(fill=0.0), *asked, case.model),
        "deletion": lambda: curve(deletion_curve, slice(1, None)),
        "insertion": lambda: curve(insertion_curve, slice(0, -1)),
        "infidelity": infidelity,
        "sensitivity": sensitivity,
    }


def measure(case: Case, asked: int, rounds: int, package: Any) -> Iterator[dict[str, Any]]:
    """A row a metric, where those that ask the model get the first ``asked`` images."""
    few = first(case, asked)
    for name in DEFINITIONS:
        given = case if name in MAPS_ALONE else few
        ours, theirs = own(given)[name], questions(package, given) if package else {}
        steps = {"ours": ours}
        row: dict[str, Any] = {"metric": name, "images": len(given.images), "ours": ours()}
        if found := theirs.get(name):
            steps["quantus"] = found.value
            row |= {"in Quantus": found.name, "Quantus": float(found.value())}
            row["its defaults"] = float(found.default()) if found.default else None
        times = in_turns(steps, rounds)
        row |= {f"{one} per s": speed(given, took) for one, took in times.items()}
        row["ours over it"] = medians_over(times, "ours").get("quantus")
        yield row


def speed(case: Case, times: Sequence[float]) -> float:
    """Images per second."""
    return len(case.images) / max(statistics.median(times), 1e-9)


def measure_passes(case: Case, classes: int, layer: str, rounds: int) -> dict[str, Any]:
    """Maps of several classes an image as `evaluate` makes them, over a pass for each class."""
    method = InputXGradient(case.model, layer=layer)
    chosen = (case.target + torch.arange(classes)[:, None]) % CLASSES
    everywhere = torch.ones_like(chosen, dtype=torch.bool)

    def one_pass() -> Tensor:
        placed = explaining(case.model, method, None, reading=AS_FOUND)
        with placed.on() as run, run(case.images, maps=True) as (_, explained):
            (found,) = explained(Choice(chosen, chosen, everywhere)).values()
        return found

    def passes() -> Tensor:
        return torch.cat([method.attribute(case.images, target) for target in chosen])[:, 0]

    one, each = one_pass(), passes()
    times = in_turns({"one": one_pass, "each": passes}, rounds)
    return {
        "layer": layer,
        "classes an image": classes,
        "one pass, images per s": speed(case, times["one"]),
        "a pass a class, images per s": speed(case, times["each"]),
        "one over it": medians_over(times, "one")["each"],
        "apart": float((one.reshape(each.shape) - each).norm() / each.norm()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, of either kind of rows."""
    if "layer" in rows[0]:
        digits = {"one over it": ".2f", "apart": ".0e"}
        digits |= dict.fromkeys((k for k in rows[0] if k.endswith("per s")), ".1f")
        shown = [
            {k: format(v, digits[k]) if k in digits else v for k, v in r.items()} for r in rows
        ]
        return format_table(shown, markdown=True)
    shown = []
    for row in rows:
        value = row.get("Quantus")
        equal = value is not None and abs(value - row["ours"]) <= EQUAL * abs(value)
        shown.append(
            {
                "metric": f"`{row['metric']}`",
                "images": row["images"],
                "value": digits_of(row["ours"]),
                "in Quantus": row.get("in Quantus"),
                "its value": digits_of(value) + " (equal)" * equal,
                "by its defaults": digits_of(row.get("its defaults")),
                "its definition": DEFINITIONS[row["metric"]] if value is not None else None,
                "images/s": f"{row['ours per s']:.0f}",
                "its images/s": f"{row['quantus per s']:.0f}" if value is not None else None,
                "ours over it": f"{row['ours over it']:.1f}" if value is not None else None,
            }
        )
    return format_table(shown, markdown=True)


def digits_of(value: float | None) -> str:
    """Four digits; a dash for what there is not."""
    return "-" if value is None else f"{value:.4g}"


def page(found: dict[str, Any]) -> str:
    """Both tables, and what they were measured with."""
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items() if value)
    asked = any("Quantus" in row for row in found["rows"])
    missing = "" if asked else " Quantus was not installed."
    return (
        f"{table(found['rows'])}\n\n{table(found['passes'])}\n\n"
        f"Images of {found['size']} x {found['size']}, ResNet-18 with random weights, "
        f"{found['steps']} steps, {found['samples']} samples, seed {found['seed']}, "
        f"equal to {EQUAL:g} of the value, {found['device']}, "
        f"medians of {found['rounds']} rounds, {versions}.{missing}\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """See above."""
    parser = common_options(__doc__, quick=True, rounds=0)
    parser.add_argument("--images", type=int, default=0, help=f"{IMAGES}; with --quick 16")
    args = parser.parse_args(argv)
    if write_table(args, page):
        return
    torch.set_num_threads(1)
    rounds = args.rounds or (1 if args.quick else 5)
    images = args.images or (16 if args.quick else IMAGES)
    asked = min(images, 4 if args.quick else ASKED)
    case = make_case(images, SIZE, STEPS // 2 if args.quick else STEPS, SAMPLES)
    package = quantus_package()
    if package is None:
        print("Quantus is not installed: its columns stay empty.")
    rows = collect(measure(case, asked, rounds, package), table)
    places = [(classes, layer) for layer in ("input", "layer3") for classes in SEVERAL]
    few = first(case, asked)
    passes = collect((measure_passes(few, *place, rounds) for place in places), table)
    about = {"size": SIZE, "steps": case.steps, "samples": case.samples, "rounds": rounds}
    save(args.json, rows, packages=PACKAGES, seed=SEED, passes=passes, **about)


if __name__ == "__main__":
    main()
