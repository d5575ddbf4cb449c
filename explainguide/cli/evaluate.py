"""`explainguide evaluate`: checkpoints of a training, measured on a data set."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from explainguide.cli.data_options import add_data_arguments, check_same_classes, open_evaluation
from explainguide.cli.settings import add_settings, given_settings
from explainguide.cli.usage import UsageError
from explainguide.errors import DataError, OptionError, check_option, operation
from explainguide.guidance.options import EXPLAINING, GuideOptions, explaining
from explainguide.training.config import TrainConfig
from explainguide.visualization.tables import format_table

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "measure checkpoints: F1, mAP or accuracy, EPG, IoU, on-object EPG"
EXAMPLE = """\
explainguide evaluate runs/energy/last.pt --root VOC2007 --image-set test
  explainguide evaluate runs/*/last.pt --data decoy --decoy class --markdown"""


_SETTINGS = (*EXPLAINING, "region")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "checkpoint",
        nargs="+",
        help="last.pt, epoch_003.pt or weights.safetensors of a training; several make a table",
    )
    add_data_arguments(parser, training=False)
    group = parser.add_argument_group("measures")
    add_settings({"guidance": group}, TrainConfig, only=_SETTINGS, default="the training's")
    group.add_argument(
        "--threshold", metavar="X", help="of the IoU, or fit (default: the training's)"
    )
    group.add_argument(
        "--fit-on",
        metavar="SET",
        help="split, or folder of images, on which the threshold of the IoU is fitted",
    )
    group.add_argument(
        "--fit-boxes", metavar="FILE", help="boxes of --fit-on, where it is a folder"
    )
    group.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="default: 0")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto or cpu")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Evaluate every checkpoint, and print a table."""
    with operation("--device"):
        check_option("device", args.device, ("auto", "cpu"))
    threshold = _threshold(args)
    from explainguide.cli.data import allow_local_modules
    from explainguide.processes import process

    allow_local_modules()
    device = _device(args.device)
    first = process()[0] == 0
    rows = []
    skipped = 0.0
    for path in args.checkpoint:
        scores = _evaluate(
            path, args, device, threshold=threshold, progress=first and not args.quiet
        )
        skipped = max(skipped, scores.pop("skipped"))
        rows.append({"checkpoint": path, **scores})
    if not first:
        return 0
    print(format_table(rows, markdown=args.markdown))
    if skipped:
        print(f"{skipped:.0f} images could not be read and were left out.", file=sys.stderr)
    return 0


def _device(name: str) -> Any:
    """Where this process computes; it joins the others where a launcher has started several."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        return PartialState(cpu=name == "cpu").device
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu")


def _evaluate(
    path: str, args: argparse.Namespace, device: Any, *, threshold: Any, progress: bool
) -> dict[str, float]:
    # Here, since a mistake in an option needs none of it.
    from explainguide.cli.data import build_transforms, fits_classes, image_encoding
    from explainguide.evaluation.measure import evaluate
    from explainguide.training.checkpoints import load_model

    model, info = load_model(path, device=device)
    if "image_size" not in info or "mean" not in info:
        raise DataError(
            f"'{Path(path)}' does not say how its images were prepared. Use "
            "explainguide.evaluation.evaluate in Python. Those of `explainguide train` say it."
        )
    config = info["config"]
    data = open_evaluation(args, info)
    if info.get("classes"):
        check_same_classes(
            data.classes,
            info["classes"],
            of=("the data", f"'{Path(path)}'"),
            remedy="Name the data of the training, or let yours list the classes as "
            f"{', '.join(map(repr, info['classes']))}.",
        )
    if not fits_classes(info["num_classes"], len(data.classes)):
        raise OptionError(
            f"the data have {len(data.classes)} classes and '{Path(path)}' "
            f"{info['num_classes']}. Name the data of the training. The classes must agree."
        )
    encoding = image_encoding(model, info["mean"], info["std"])
    data.transforms = build_transforms(info["image_size"], encoding)
    fit_on = None
    if args.fit_on is not None:
        fit_on = open_evaluation(args, info, fit=True)
        fit_on.transforms = data.transforms
    method, layers = _options(args, config).place(model)
    return evaluate(
        model,
        data,
        layer=list(layers),
        attribution=method,
        region=args.region or config["region"],
        threshold=config["threshold"] if threshold is None else threshold,
        fit_on=fit_on,
        batch_size=args.batch_size,
        workers=args.workers,
        progress=progress,
    )


def _options(args: argparse.Namespace, config: Mapping[str, Any]) -> GuideOptions:
    """Those of the training, but for what is given; another attribution has no options of the old."""
    given = given_settings(args, GuideOptions)
    own: dict[str, Any] = {"attribution_options": {}} if "attribution" in given else {}
    return explaining({**config, **own, **given})


def _threshold(args: argparse.Namespace) -> Any:
    """What is said of the threshold; None where it is the training's."""
    given = args.threshold
    if args.fit_boxes is not None and args.fit_on is None:
        raise UsageError("--fit-boxes: they are of --fit-on, which is missing. Name both, or none.")
    if args.fit_on is not None:
        if given is not None:
            raise UsageError(
                f"--threshold: {given!r} beside --fit-on, which fits it. Leave one of them out. One of "
                "the two is allowed."
            )
        return 0.5
    if given in (None, "fit"):
        return given
    try:
        return float(given)
    except ValueError:
        raise UsageError(
            f"--threshold: {given!r} is no number. Use 0.5. A number in [0, 1), or fit, is allowed."
        ) from None
