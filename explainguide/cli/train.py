"""`explainguide train`: classification with a localization loss, on images with boxes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from explainguide.cli.data_options import (
    add_data_arguments,
    check_same_classes,
    describe_data,
    find_source,
    open_training,
    open_validation,
)
from explainguide.cli.model_options import add_model_arguments
from explainguide.cli.settings import Later, add_settings, given_settings
from explainguide.errors import OptionError
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
_COLUMNS = ("epoch", "loss", "loss_loc", "f1", "map", "accuracy", "worst_class_accuracy")


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
    import torch

    from explainguide.cli.data import allow_local_modules, build_transforms, image_encoding
    from explainguide.cli.start import begin
    from explainguide.processes import process
    from explainguide.recipes import recipe
    from explainguide.training.loop import train

    allow_local_modules()
    config = _config(args)
    source = find_source(args.data)
    train_data = open_training(args, source, masks=config.region == "masks")
    val_data = open_validation(args, source)
    multilabel = bool(getattr(train_data, "multilabel", False))
    check_same_classes(
        train_data.classes,
        val_data.classes,
        of=("the training images", "those of evaluation"),
        remedy="Name the folders alike, or let both data sets list their classes in one order.",
    )
    if len(train_data.classes) < 2 and not multilabel:
        raise OptionError(
            f"the images are of one class, {train_data.classes[0]!r}, so every answer is right. "
            "Add a folder with images of what it is not. Two classes or more are allowed."
        )
    torch.manual_seed(config.seed)
    model, about = begin(args, train_data.classes, source)
    if args.recipe is not None and args.layer is None:
        recipe(args.recipe).check_layers(model)
    flip = not args.no_flip and source.flips
    encoding = image_encoding(model, about["mean"], about["std"])
    train_data.transforms = build_transforms(about["image_size"], encoding, flip=flip)
    val_data.transforms = build_transforms(about["image_size"], encoding)
    info = {
        **about,
        "classes": list(train_data.classes),
        "multilabel": multilabel,
        "flip": flip,
        "recipe": args.recipe,
        **describe_data(args, source),
    }
    history = train(
        model,
        train_data,
        val_data,
        config,
        resume=args.resume,
        progress=not args.quiet,
        info=info,
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
