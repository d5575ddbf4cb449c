"""`explainguide sweep`: many trainings, the front of their epochs, and the model of each method."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

from explainguide.cli.data_options import add_data_arguments, find_source
from explainguide.cli.model_options import add_model_arguments
from explainguide.cli.settings import Later, add_settings, given_settings
from explainguide.cli.usage import UsageError
from explainguide.errors import did_you_mean
from explainguide.studies.search import LogRange, searchable
from explainguide.training.config import TrainConfig
from explainguide.visualization.tables import format_table

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "train with many settings, and find the front of F1 and EPG: how lam is chosen"
EXAMPLE = """\
explainguide sweep --data decoy --model explainguide.demo:build_network --layer input \\
      --score log_prob --lr 3e-3 --schedule one-cycle --clip-grad-norm 5 --epochs 12 \\
      --search lam=1,3,10 loss=energy,l1 --out runs/sweep
  explainguide sweep --data voc --root VOC2007 --model resnet18 --pretrained --epochs 5 --size 160 \\
      --search lam=0.01..10 layer=layer3,layer4 --sampler nsga2 --trials 24 --prune-after 2 \\
      --storage sqlite:///study.db --test-set test --out runs/sweep"""

_FORM = "lam=0.1,1,10 or lam=0.01..10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the page and all trainings"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(resume=False)
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--search",
        required=True,
        nargs="+",
        metavar="NAME=VALUES",
        help="what to search: values with commas between them (several layers in one with +), or a "
        f"range of factors: {_FORM}",
    )
    group.add_argument(
        "--sampler",
        default="grid",
        metavar="NAME",
        help="grid (every combination), random or nsga2 (default: grid)",
    )
    group.add_argument("--trials", type=int, metavar="N", help="guided trainings of random, nsga2")
    group.add_argument(
        "--storage",
        metavar="FILE|URL",
        help="where the study is kept: a journal file, or a database such as sqlite:///study.db "
        "(default: study.journal in --out)",
    )
    group.add_argument("--study", default="sweep", metavar="NAME", help="its name (default: sweep)")
    group.add_argument(
        "--objectives",
        nargs="+",
        metavar="SCORE",
        help="what is to be high, that of the answers first (default: f1 or accuracy, epg, iou)",
    )
    group.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="searched settings that tell methods apart (default: those that are no numbers)",
    )
    group.add_argument(
        "--baseline",
        type=float,
        metavar="X",
        help="F1 or accuracy without guidance, in [0, 1] (default: unguided trainings are made)",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        default=0.05,
        metavar="X",
        help="how much of it the model of a method may lose (default: 0.05)",
    )
    group.add_argument(
        "--prune-after",
        type=int,
        metavar="N",
        help="stop a training that is below the median in every score, from epoch N on",
    )
    group.add_argument(
        "--test-set",
        metavar="SET",
        help="split on which the chosen models are evaluated, at the end",
    )
    add_model_arguments(parser)
    add_data_arguments(parser, training=True)
    guidance = parser.add_argument_group("guidance")
    guidance.add_argument("--recipe", metavar="NAME", help=Later(_about_recipes))
    add_settings(
        {"guidance": guidance, "training": parser.add_argument_group("training")}, TrainConfig
    )


def _about_recipes() -> str:
    from explainguide.recipes import RECIPES

    return f"the settings of a paper: {', '.join(RECIPES)}; options that are given come before them"


def run(args: argparse.Namespace) -> int:
    """Train, and print a table of the methods."""
    search = read_search(args.search)
    for name in search:
        if getattr(args, name, None) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')}: it is searched. Leave it out of one of the two. Options "
                "that are not in --search are allowed."
            )
    # Here, since a mistake in an option needs none of it.
    from explainguide.cli.prepared import prepare
    from explainguide.recipes import recipe
    from explainguide.studies.run_sweep import sweep
    from explainguide.studies.sweep_page import table_of_methods

    given = given_settings(args, TrainConfig)
    config = TrainConfig(**given) if args.recipe is None else recipe(args.recipe).config(**given)
    _check_test_set(args)
    regions = search.get("region", [config.region])
    masks = "masks" in regions if isinstance(regions, list) else False
    if args.layer is None and "layer" in search:
        args.layer = search["layer"]  # so that the model need not have those of a recipe
    ready = prepare(args, config, masks=masks, test_set=args.test_set)
    result = sweep(
        ready.build,
        ready.train_data,
        ready.val_data,
        search=search,
        out=args.out,
        config=config,
        sampler=args.sampler,
        trials=args.trials,
        storage=args.storage,
        name=args.study,
        objectives=args.objectives,
        methods=args.methods,
        baseline=args.baseline,
        max_drop=args.max_drop,
        prune_after=args.prune_after,
        test_data=ready.test_data,
        info=ready.info,
        progress=not args.quiet,
    )
    rows = table_of_methods(result)
    print(format_table(rows, columns=list(dict.fromkeys(key for row in rows for key in row))))
    if result.running:
        print(f"\n{result.running} trainings have not ended: other processes have them.")
    print(f"\nreport.html, points.csv and the trainings are in {args.out}")
    return 0


def _check_test_set(args: argparse.Namespace) -> None:
    from explainguide.datasets.table import taken

    if args.test_set is None:
        return
    source = find_source(args.data)
    if "image_set" not in taken(source) or args.val_root is not None:
        raise UsageError(
            "--test-set: these data have no splits. Leave it out, and call `explainguide evaluate` on "
            "the chosen models. It is allowed with data sets that have splits."
        )
    for option, used in (
        ("--val-set", args.val_set or source.val_set),
        ("--image-set", args.image_set or source.train_set),
    ):
        if args.test_set == used:
            what = "models are chosen on" if option == "--val-set" else "models are trained on"
            raise UsageError(
                f"--test-set: {args.test_set!r} is what {what}. Name another split, or another with "
                f"{option}. A split of its own is allowed."
            )


def read_search(words: list[str]) -> dict[str, list[Any] | LogRange]:
    """``["lam=0.1,1", "lr=1e-4..1e-2"]`` as `sweep` takes it.

    Raises:
        UsageError: For what cannot be read.
    """
    search: dict[str, list[Any] | LogRange] = {}
    known = {field.name: field for field in fields(TrainConfig)}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not (name and equals and text):
            raise UsageError(
                f"--search: {word!r} names no values. Write it as {_FORM}. NAME=VALUES is allowed."
            )
        if name not in searchable():
            raise UsageError(
                f"--search: {name!r} is no setting that can be searched."
                f"{did_you_mean(name, searchable())} {', '.join(searchable())} are allowed."
            )
        if name in search:
            raise UsageError(
                f"--search: {name} is there twice. Write all its values after one. Each name once is "
                "allowed."
            )
        search[name] = _values(known[name], text)
    return search


def _values(field: Field[Any], text: str) -> list[Any] | LogRange:
    shown = field.metadata["shown"]
    if shown.pairs:
        raise UsageError(
            f"--search: {field.name} has values that cannot be written in a line. Search it in Python, "
            "with explainguide.studies.sweep. Numbers and words are allowed."
        )
    low, dots, high = text.partition("..")
    if dots:
        return LogRange(_read(field.name, float, low), _read(field.name, float, high))
    kind = _boolean if shown.kind is bool else shown.kind
    values: list[Any] = []
    for word in text.split(","):
        parts = [_read(field.name, kind, part) for part in word.split("+")]
        values.append(parts if len(parts) > 1 or shown.many == "several" else parts[0])
    return values


def _read(name: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(
            f"--search: {text!r} is no value of {name}. Write it as {_FORM}. Values with commas "
            "between them, or a range of numbers, are allowed."
        ) from None


def _boolean(text: str) -> bool:
    words = {"true": True, "false": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]
