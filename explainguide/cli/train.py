"""`explainguide train`: classification with a localization loss, on images with boxes."""

from __future__ import annotations

import argparse
import ast
from typing import TYPE_CHECKING, Any

import torch

from explainguide.attr import ATTRIBUTIONS
from explainguide.cli.data import allow_local_modules, build_transforms, image_encoding
from explainguide.cli.data_options import (
    add_data_arguments,
    describe_data,
    find_source,
    open_training,
    open_validation,
)
from explainguide.cli.start import add_model_arguments, begin
from explainguide.cli.usage import UsageError
from explainguide.errors import OptionError
from explainguide.losses import LOSSES
from explainguide.processes import process
from explainguide.recipes import RECIPES, recipe
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

_COLUMNS = (
    "epoch",
    "loss",
    "loss_loc",
    "f1",
    "map",
    "accuracy",
    "worst_class_accuracy",
    "epg",
    "iou",
    "on_object_epg",
    "seconds",
)
_DEFAULT = TrainConfig()
# Setting, type, and what it is; the option is the name with dashes.
_SETTINGS: tuple[tuple[str, type, str], ...] = (
    ("epochs", int, "passes over the training images"),
    ("batch_size", int, "images a forward pass"),
    ("lr", float, "highest learning rate"),
    ("schedule", str, "cosine, constant or one-cycle"),
    ("optimizer", str, "adamw, adam or sgd"),
    ("weight_decay", float, "of the optimizer"),
    ("clip_grad_norm", float, "largest norm of the gradient"),
    ("grad_accumulation", int, "batches a step"),
    ("mixed_precision", str, "no, fp16 or bf16"),
    ("workers", int, "processes that load images"),
    ("seed", int, "of everything random"),
    ("device", str, "auto or cpu"),
)
_GUIDANCE: tuple[tuple[str, type, str], ...] = (
    ("lam", float, "weight of the localization loss; 0 trains without (default: 1)"),
    ("attribution", str, ", ".join(ATTRIBUTIONS)),
    ("loss", str, ", ".join(LOSSES)),
    ("target", str, "explained classes of an image: sample, all or predicted"),
    ("score", str, "what is explained: logit, log_prob or sum_log_probs"),
    ("negatives", float, "share of draws of a class that the image does not show"),
    ("reduction", str, "mean over annotated images, or sum"),
    ("class_loss", str, "task (what the labels ask for) or confidence-boosting"),
    ("class_weight", float, "weight of the classification loss"),
    ("temperature", float, "of confidence boosting"),
    ("region", str, "boxes or masks"),
    ("annotated", float, "fraction of the training images with annotation"),
    ("dilate", float, "growth of the boxes on each side, as a fraction of it"),
    ("threshold", float, "of the IoU in evaluation"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for checkpoints, log.csv and weights"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last whole epoch in --out"
    )
    parser.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_model_arguments(parser)
    add_data_arguments(parser, training=True)
    group = parser.add_argument_group("guidance")
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"the settings of a paper: {', '.join(RECIPES)}; options that are given come before "
        "them",
    )
    group.add_argument(
        "--layer",
        nargs="+",
        metavar="NAME",
        help="input, or dotted names (default: the last spatial layer; see `explainguide layers`)",
    )
    group.add_argument("--layer-weights", nargs="+", type=float, metavar="W", help="one a layer")
    group.add_argument(
        "--loss-options", nargs="+", metavar="NAME=VALUE", help="of the loss, as normalize=False"
    )
    _add_settings(group, _GUIDANCE)
    _add_settings(parser.add_argument_group("training"), _SETTINGS)


def _add_settings(group: Any, settings: tuple[tuple[str, type, str], ...]) -> None:
    for name, kind, text in settings:
        default = getattr(_DEFAULT, name)
        shown = "" if default is None else f" (default: {default})"
        # What is not given stays None, so that a recipe can tell it from what is.
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar={int: "N", float: "X", str: "NAME"}[kind],
            help=text + shown,
        )


def run(args: argparse.Namespace) -> int:
    """Train, and print a table of the epochs."""
    from explainguide.training.loop import train  # here, since --help needs none of it

    config = _config(args)
    allow_local_modules()
    source = find_source(args.data)
    train_data = open_training(args, source, masks=config.region == "masks")
    val_data = open_validation(args, source)
    multilabel = bool(getattr(train_data, "multilabel", False))
    if list(train_data.classes) != list(val_data.classes):
        raise OptionError(
            f"the training images have {len(train_data.classes)} classes and those of "
            f"evaluation {len(val_data.classes)}, or in another order. The classes must agree."
        )
    if len(train_data.classes) < 2 and not multilabel:
        raise OptionError(
            f"the images are of one class, {train_data.classes[0]!r}, so every answer is right. "
            "Add a folder with images of what it is not. Two classes or more are allowed."
        )
    torch.manual_seed(config.seed)
    model, about = begin(args, len(train_data.classes), source)
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
    names = [name for name, _, _ in (*_SETTINGS, *_GUIDANCE)]
    layer = args.layer[0] if args.layer is not None and len(args.layer) == 1 else args.layer
    given = {name: getattr(args, name) for name in names}
    given |= {"layer": layer, "layer_weights": args.layer_weights, "output_dir": args.out}
    given |= {
        "output": args.output,
        "tensorboard": args.tensorboard,
        "loss_options": _loss_options(args.loss_options),
    }
    given = {name: value for name, value in given.items() if value is not None}
    return TrainConfig(**given) if args.recipe is None else recipe(args.recipe).config(**given)


def _loss_options(pairs: list[str] | None) -> dict[str, Any] | None:
    """``["normalize=False", "eps=1e-3"]`` as keyword arguments: Python's values, or else words."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise UsageError(
                f"--loss-options: {pair!r} is no option. Write it as normalize=False. NAME=VALUE is "
                "allowed."
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found or None


def _report(history: History, out: str) -> str:
    front = history.front
    rows: list[dict[str, object]] = [
        {**row, "seconds": round(row["seconds"]), "kept": "pareto" if index in front else ""}
        for index, row in enumerate(history.rows, start=1)
    ]
    columns = [c for c in _COLUMNS if any(c in row for row in rows)]
    table = format_table(rows, columns=[*columns, "kept"])
    return f"{table}\n\nCheckpoints, log.csv and weights.safetensors are in {out}"
