"""`explainguide evaluate`: models, attributions and layers, measured on a data set."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explainguide.cli.data_options import add_data_arguments
from explainguide.cli.settings import Later, add_settings
from explainguide.cli.usage import UsageError
from explainguide.errors import DataError, ExplanationError, check_option, operation
from explainguide.guidance.options import EXPLAINING
from explainguide.training.config import TrainConfig

if TYPE_CHECKING:
    from explainguide.cli.evaluation_rows import Row

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "judge checkpoints, attributions and layers: a table, and a report"
EXAMPLE = """\
explainguide evaluate runs/energy/last.pt --root VOC2007 --image-set test
  explainguide evaluate runs/*/last.pt --data decoy --decoy class --markdown
  explainguide evaluate before.pt after.pt --attribution ixg captum:GuidedBackprop \\
      --metrics epg iou pointing_game --fit-on train --report report
  explainguide evaluate resnet50 --pretrained --data voc --root VOC2007 --size 224 --ml-att"""

# Of the attribution there may be several.
_SETTINGS = tuple(name for name in (*EXPLAINING, "region") if name != "attribution")
_USUAL_REFERENCES = ("center", "edge", "random")
_PAGE, _SCORES = "report.html", "scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "checkpoint",
        nargs="+",
        help="last.pt, epoch_003.pt or weights.safetensors of a training, or the name of a model; "
        "several make a table",
    )
    models = parser.add_argument_group("models by name")
    models.add_argument(
        "--weights", nargs="+", metavar="FILE", help="weights of the model; each is judged"
    )
    models.add_argument("--pretrained", action="store_true", help="download the model's weights")
    models.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="side that images are squashed to (default: the model's)",
    )
    add_data_arguments(parser, training=False)
    group = parser.add_argument_group("measures")
    group.add_argument(
        "--attribution",
        nargs="+",
        metavar="NAME",
        help=Later(_about_attributions),
    )
    add_settings({"guidance": group}, TrainConfig, only=_SETTINGS, default="the training's")
    group.add_argument(
        "--ml-att",
        action="store_true",
        help="every attribution at the input, a middle layer and the last spatial one",
    )
    group.add_argument("--metrics", nargs="+", metavar="NAME", help=Later(_about_metrics))
    group.add_argument(
        "--grid-size",
        type=int,
        default=3,
        metavar="N",
        help="images in height and width of the grids of gridpg (default: 3)",
    )
    group.add_argument(
        "--references",
        nargs="*",
        metavar="NAME",
        help=Later(_about_references),
    )
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
    group.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    group.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="default: 0")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto or cpu")
    group = parser.add_argument_group("what is written")
    group.add_argument("--markdown", action="store_true", help="print a Markdown table")
    group.add_argument("--csv", metavar="FILE", help="write the table as CSV")
    group.add_argument("--json", metavar="FILE", help="write the table as JSON")
    group.add_argument(
        "--report",
        metavar="DIR",
        help="folder for report.html and the scores; an interrupted command goes on from it",
    )
    group.add_argument("--title", metavar="TEXT", help="of the report")
    group.add_argument(
        "--save-maps", metavar="DIR", help="folder for the maps: a .npz for each image"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _about_attributions() -> str:
    from explainguide.attr import ATTRIBUTIONS

    return (
        f"{', '.join(ATTRIBUTIONS)}, captum:Class, pytorch_grad_cam:Class, or package.module:name; "
        "several make a table (default: the training's)"
    )


def _about_metrics() -> str:
    from explainguide.evaluation.map_scores import check_metrics
    from explainguide.metrics import MAP_METRICS

    return f"{', '.join(MAP_METRICS)} (default: {', '.join(check_metrics(None))})"


def _about_references() -> str:
    from explainguide.attr.references import REFERENCES

    return (
        f"judge {', '.join(REFERENCES)} too, to compare with (where none is named, and with --report: "
        f"{', '.join(_USUAL_REFERENCES)})"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate all that is named, and print a table."""
    with operation("--device"):
        check_option("device", args.device, ("auto", "cpu"))
    threshold = _threshold(args)
    _check(args)
    # Here, since a mistake in an option needs none of it.
    from explainguide.cli.data import allow_local_modules
    from explainguide.cli.data_options import check_same_classes
    from explainguide.cli.evaluation_rows import ScoreFolder, measure
    from explainguide.cli.judged import list_judged, open_judged
    from explainguide.evaluation.map_scores import check_metrics
    from explainguide.processes import process

    allow_local_modules()
    with operation("--metrics"):
        metrics = check_metrics(args.metrics)
    _check_names(args)
    references = _references(args)
    device = _device(args.device)
    first = process()[0] == 0
    if args.report is not None and process()[1] > 1:
        raise UsageError(
            f"--report: there are {process()[1]} processes, and one writes it. Start one, or write the "
            "table with --csv or --json. One process is allowed."
        )
    folder = None if args.report is None else ScoreFolder(_open_folder(args.report))
    rows: list[Row] = []
    of_references: list[Any] = []  # a reference says the same of every model on the same images

    def failed(text: str) -> None:
        if first:
            print(f"left out: {text}", file=sys.stderr)

    for named in list_judged(args):
        judged = open_judged(named, args, device)
        if rows:
            check_same_classes(
                judged.classes,
                rows[0].judged.classes,
                of=(f"the data of '{named.label}'", f"those of '{rows[0].model}'"),
                remedy="Evaluate them one by one, or name data for both with --data.",
            )
        rows += measure(
            named,
            judged,
            args,
            metrics=metrics,
            threshold=threshold,
            references=[] if judged.images in of_references else references,
            folder=folder,
            failed=failed,
        )
        of_references.append(judged.images)
    if not rows:
        raise ExplanationError(
            "nothing could be judged; the lines above say why. Choose another attribution. One that "
            "can be computed is enough."
        )
    if first:
        _show(args, rows)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit: {args.limit} is no number of images. 1 or more is allowed.")
    if args.attribution_options and len(args.attribution or [None]) > 1:
        raise UsageError(
            "--attribution-options: there are several attributions, and it is not said whose they "
            "are. Evaluate the one with options on its own. One --attribution is allowed."
        )
    if args.ml_att and args.layer:
        raise UsageError(
            "--layer: --ml-att chooses three layers itself. Leave one of them out. Either is allowed."
        )


def _check_names(args: argparse.Namespace) -> None:
    """Refuse names that stand for nothing, before anything is measured."""
    from explainguide.attr import ATTRIBUTIONS
    from explainguide.attr.any_attribution import is_own
    from explainguide.attr.references import REFERENCES

    with operation("--attribution"):
        for name in args.attribution or ():
            if ":" not in name:
                known = [*ATTRIBUTIONS, *REFERENCES]
                check_option("attribution", name, known, also="captum:Class or module:name")
            is_own(name)


def _references(args: argparse.Namespace) -> list[str]:
    from explainguide.attr.references import REFERENCES

    if args.references is None:
        return list(_USUAL_REFERENCES) if args.report else []
    for name in args.references:
        with operation("--references"):
            check_option("reference", name, REFERENCES)
    return list(args.references or _USUAL_REFERENCES)


def _show(args: argparse.Namespace, rows: list[Row]) -> None:
    """Print the table, and write what is asked for."""
    from explainguide.visualization.tables import (
        format_table,
        rows_as_csv,
        rows_as_json,
        rows_as_markdown,
    )

    table = _table(args, rows)
    for file, text in ((args.csv, rows_as_csv), (args.json, rows_as_json)):
        if file is not None:
            _write(file, text(table))
    remarks = []
    if args.report is not None:
        from explainguide.cli.evaluation_report import build_page
        from explainguide.visualization.evaluation_page import write_evaluation

        page = build_page(rows, args, shlex.join(["explainguide", *sys.argv[1:]]))
        remarks = [f"{result.label}: {note}" for result in page.results for note in result.notes]
        remarks.append(f"The report is {write_evaluation(page, Path(args.report) / _PAGE)}")
    print(rows_as_markdown(table) if args.markdown else format_table(table))
    for line in remarks:
        print(line)
    skipped = rows[0].skipped()
    if skipped:
        count = f"{len(skipped)} image{'s' * (len(skipped) > 1)}"
        names = f"{', '.join(skipped[:3])}{' and others' if len(skipped) > 3 else ''}"
        print(f"{count} could not be read and left out: {names}.", file=sys.stderr)


def _table(args: argparse.Namespace, rows: list[Row]) -> list[dict[str, object]]:
    """What tells rows apart, and their numbers."""
    named = args.attribution or args.ml_att or len({row.attribution for row in rows}) > 1
    layers = named or len({row.layer for row in rows}) > 1
    return [
        {
            "checkpoint": row.model,
            **({"attribution": row.attribution} if named else {}),
            **({"layer": row.layer} if layers else {}),
            **{key: value for key, value in row.numbers.items() if key != "skipped"},
        }
        for row in rows
    ]


def _write(file: str, text: str) -> None:
    from explainguide.files import replace_file

    target = Path(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, lambda opened: opened.write(text.encode()))
    except OSError as error:
        raise DataError(
            f"'{file}' could not be written ({error.strerror or error}). Choose another folder. An "
            "earlier file is unchanged."
        ) from error


def _open_folder(name: str) -> Path:
    """The folder of a report, with the folder in it where the scores are kept.

    Raises:
        OptionError: If it holds something else.
    """
    from explainguide.visualization.evaluation_page import check_page_path

    folder = Path(name)
    scores = folder / _SCORES
    if folder.exists() and not (folder.is_dir() and (scores.is_dir() or not any(folder.iterdir()))):
        what = "a folder with other files" if folder.is_dir() else "a file"
        raise UsageError(
            f"--report: '{name}' is {what}. Name another folder, as '{name}-report'. A new or empty "
            "folder, or one of an earlier report, is allowed."
        )
    with operation("--report"):
        check_page_path(folder / _PAGE)
    try:
        scores.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--report: '{name}' cannot be made ({error.strerror or error}). Name a folder in a place "
            "where files can be written. A new or empty folder is allowed."
        ) from error
    return scores


def _device(name: str) -> Any:
    """Where this process computes; it joins the others where a launcher has started several."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        return PartialState(cpu=name == "cpu").device
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu")


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
