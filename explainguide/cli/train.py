"""`explainguide train`: classification with a localization loss, on images with boxes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from explainguide.cli.data_options import add_data_arguments
from explainguide.cli.model_options import add_model_arguments
from explainguide.cli.settings import Later, add_settings, given_settings
from explainguide.training.config import TrainConfig
from explainguide.visualization.tables import format_table

if TYPE_CHECKING:
    from explainguide.training.run_folder import History

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "train or fine-tune a classifier with guidance"
EXAMPLE = """\
explainguide train --data voc --root VOC2007 --model resnet18 --pretrained \\
      --layer layer4 --loss energy --lam 0.3 --epochs 5 --size 160 --out runs/energy
  explainguide train --data decoy --model explainguide.demo:build_network --layer input \\
      --score log_prob --lam 10 --lr 3e-3 --schedule one-cycle --clip-grad-norm 5 --epochs 12 \\
      --out runs/decoy
  explainguide train --recipe robustvit --data folder --root pets --boxes pets.json \\
      --val-root held_out --val-boxes held_out.json --model vit_base_patch16_224 --weights vit.pt \\
      --lr 6e-7 --out runs/robustvit
  explainguide train --data voc --root VOC2007 --checkpoint bcos.pt --layer input \\
      --attribution bcos --out runs/bcos"""

# Of the printed table, before what `evaluate` reports of maps.
_COLUMNS = (
    *("epoch", "loss", "loss_loc", "f1", "map"),
    *("accuracy", "worst_class_accuracy", "worst_group_accuracy"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for checkpoints, log.csv and weights"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last whole epoch in --out"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_model_arguments(parser)
    add_data_arguments(parser, training=True)
    group = parser.add_argument_group("guidance")
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help=Later(_about_recipes),
    )
    groups = {"guidance": group, "training": parser.add_argument_group("training")}
    add_settings(groups, TrainConfig)


def _about_recipes() -> str:
    from explainguide.recipes import RECIPES

    return f"the settings of a paper: {', '.join(RECIPES)}; options that are given come before them"


def run(args: argparse.Namespace) -> int:
    """Train, and print a table of the epochs."""
    # Here, since a mistake in an option needs none of it.
    from explainguide.cli.prepared import prepare
    from explainguide.processes import process
    from explainguide.training.loop import train

    config = _config(args)
    ready = prepare(args, config, masks=config.region == "masks")
    history = train(
        ready.model,
        ready.train_data,
        ready.val_data,
        config,
        resume=args.resume,
        progress=not args.quiet,
        info=ready.info,
    )
    if process()[0] == 0:
        print(_report(history, args.out))
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    from explainguide.recipes import recipe

    given = {**given_settings(args, TrainConfig), "output_dir": args.out}
    return TrainConfig(**given) if args.recipe is None else recipe(args.recipe).config(**given)


def _report(history: History, out: str) -> str:
    from explainguide.evaluation.map_scores import check_metrics

    front = history.front
    rows: list[dict[str, object]] = [
        {**row, "seconds": round(row["seconds"]), "kept": "pareto" if index in front else ""}
        for index, row in enumerate(history.rows, start=1)
    ]
    known = (*_COLUMNS, *check_metrics(None), "seconds")
    columns = [c for c in known if any(c in row for row in rows)]
    table = format_table(rows, columns=[*columns, "kept"])
    return f"{table}\n\nCheckpoints, log.csv and weights.safetensors are in {out}"
