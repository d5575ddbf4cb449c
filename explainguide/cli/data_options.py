"""The options of `train` and `evaluate` that say which images, and the data sets made of them.

What a data set is called, takes and needs, it says itself: `explainguide.datasets.table`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explainguide.cli.settings import Later
from explainguide.cli.usage import UsageError
from explainguide.errors import OptionError, check_option, operation
from explainguide.named import call_own, find_named

if TYPE_CHECKING:
    from explainguide.datasets import DataSource

__all__ = [
    "add_data_arguments",
    "check_same_classes",
    "describe_data",
    "evaluation_images",
    "find_source",
    "open_evaluation",
    "open_training",
    "open_validation",
]

_OWN = "package.module:function"
# The parameter of `DataSource.open` that an option fills.
_FILLS = {
    "image_set": "image_set",
    "root": "root",
    "boxes": "boxes",
    "val_set": "image_set",
    "val_root": "root",
    "val_boxes": "boxes",
}
_REMEDIES = {
    "root": "Say where the images of --data {kind} are. A folder is allowed.",
    "val_root": "Name a folder of images to evaluate on, with the same classes.",
}


def add_data_arguments(parser: argparse.ArgumentParser, *, training: bool) -> None:
    """The options that say which images."""
    from explainguide.datasets import DATASETS

    group = parser.add_argument_group("data")
    kinds = ", ".join(f"{name} ({source.help})" for name, source in DATASETS.items())
    group.add_argument(
        "--data",
        required=training,
        metavar="KIND",
        help=f"{kinds}, or {_OWN}, which returns your own"
        + ("" if training else "; by default that of the training"),
    )
    group.add_argument(
        "--root", metavar="DIR", help=Later(lambda: f"{_with('root')}: where the images are")
    )
    form = (
        "boxes, as CSV (image,xmin,ymin,xmax,ymax) or COCO; of waterbirds bounding_boxes.txt of CUB"
    )
    group.add_argument("--boxes", metavar="FILE", help=Later(lambda: f"{_with('boxes')}: {form}"))
    if training:
        group.add_argument(
            "--val-root",
            metavar="DIR",
            help=Later(lambda: f"{_with('root')}: images to evaluate on"),
        )
        group.add_argument(
            "--val-boxes", metavar="FILE", help=Later(lambda: f"{_with('boxes')}: their boxes")
        )
        _add_training_arguments(group)
    else:
        group.add_argument(
            "--image-set",
            metavar="SET",
            help=Later(lambda: f"{_with('image_set')}: split (default: that of the training)"),
        )
    own: dict[str, list[str]] = {}
    for name, source in DATASETS.items():
        for option, text in source.options.items():
            own.setdefault(option, []).append(f"{name}: {text}")
    for option, texts in own.items():
        group.add_argument(_flag(option), help="; ".join(texts))


def _add_training_arguments(group: Any) -> None:
    from explainguide.datasets import DATASETS

    group.add_argument(
        "--image-set", metavar="SET", help=Later(lambda: f"{_defaults('train_set')}: split")
    )
    group.add_argument(
        "--val-set",
        metavar="SET",
        help=Later(lambda: f"{_defaults('val_set')}: split to evaluate on"),
    )
    sizes = [f"; {s.image_size} for {name}" for name, s in DATASETS.items() if s.image_size]
    group.add_argument(
        "--size",
        type=int,
        help=f"side to resize to, squashed (default: the model's, else 224{''.join(sizes)})",
    )
    plain = ", ".join(name for name, source in DATASETS.items() if not source.normalise)
    for name in ("mean", "std"):
        group.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{name} of the normalisation (default: what the model says of itself, else "
            f"ImageNet's; none for {plain})",
        )
    group.add_argument("--no-flip", action="store_true", help="no random horizontal flips")


def _with(parameter: str) -> str:
    """The data sets that take something."""
    from explainguide.datasets.table import DATASETS, taken

    return ", ".join(name for name, source in DATASETS.items() if parameter in taken(source))


def _defaults(field: str) -> str:
    """The data sets that have splits, with those that are taken where none is named."""
    from explainguide.datasets.table import DATASETS, DataSource, taken

    sources = {name: s for name, s in DATASETS.items() if "image_set" in taken(s)}
    of_most = getattr(DataSource, field)
    others = [
        f"; {getattr(s, field)} for {n}" for n, s in sources.items() if getattr(s, field) != of_most
    ]
    return f"{', '.join(sources)} (default: {of_most}{''.join(others)})"


def find_source(kind: str) -> DataSource:
    """The entry of a name, or one made of a user's function.

    Raises:
        OptionError: For an unknown name, or a function whose parameters are not those of an entry.
    """
    from explainguide.datasets import DATASETS

    with operation("--data"):
        if ":" in kind:
            return _own_source(kind)
        check_option("data", kind, [*DATASETS, _OWN])
    return DATASETS[kind]


def _own_source(kind: str) -> DataSource:
    from explainguide.datasets.table import DataSource, needed_by, taken

    find_named(kind, allowed=f"'{_OWN}' is allowed.")
    source = DataSource("a user's own", kind)
    takes = taken(source)
    strange = [name for name in needed_by(source) if name not in takes]
    if strange:
        raise OptionError(
            f"{kind!r} needs {strange[0]!r}, for which there is no option. Give it a default. "
            "image_set, root, boxes and masks are allowed, by name."
        )
    if not {"image_set", "root"} & takes.keys():
        raise OptionError(
            f"{kind!r} takes neither image_set nor root, so it could not tell the images to train on "
            "from those to evaluate on. Let it take image_set, which is 'train' or 'val' where no "
            "option says otherwise. image_set, root, boxes and masks are allowed, by name."
        )
    return source


def open_training(args: argparse.Namespace, source: DataSource, *, masks: bool) -> Any:
    """The images to train on, without their final transforms.

    Raises:
        OptionError: If an option is missing or does not go with the data set.
        DataError, AnnotationError: As the data sets.
    """
    _check_fit(args, args.data, source)
    asked = {name: getattr(args, name) for name in ("image_set", "root", "boxes", "size")}
    asked["image_set"] = args.image_set or source.train_set
    return _open(args.data, source, {**_own_options(args, source), **asked, "masks": masks})


def open_validation(args: argparse.Namespace, source: DataSource) -> Any:
    """The images that a training is evaluated on; as `open_training`."""
    asked = {**_own_options(args, source), **_for_evaluation(source, vars(args))}
    return _open(args.data, source, {**asked, "size": args.size, "masks": True}, prefix="val_")


def open_evaluation(args: argparse.Namespace, info: Mapping[str, Any], *, fit: bool = False) -> Any:
    """The images that are named, else those that the training of a checkpoint was evaluated on.

    Args:
        args: The options of `evaluate`.
        info: What the checkpoint says of itself.
        fit: Whether those are meant on which a threshold is fitted, ``--fit-on``.

    Raises:
        OptionError, DataError, AnnotationError: As `open_training`.
    """
    kind, source, asked = _of_evaluation(args, info)
    if fit:
        asked = _elsewhere(args, asked, source)
    return _open(kind, source, {**asked, "masks": True, "size": info["image_size"]})


def evaluation_images(args: argparse.Namespace, info: Mapping[str, Any]) -> dict[str, Any]:
    """Which images `open_evaluation` opens, in plain values: two that are equal have the same images.

    Args:
        args: As there.
        info: As there.
    """
    kind, _, asked = _of_evaluation(args, info)
    files = {name: asked[name] for name in ("root", "boxes") if asked.get(name) is not None}
    places = {name: str(Path(file).resolve()) for name, file in files.items()}
    named = {name: str(value) for name, value in asked.items() if value is not None}
    return {"data": kind, **named, **places}


def _of_evaluation(
    args: argparse.Namespace, info: Mapping[str, Any]
) -> tuple[str, DataSource, dict[str, Any]]:
    """Kind and entry of the data set that is judged on, and what is said of it."""
    from explainguide.datasets import DATASETS

    kind = args.data or info.get("data")
    if kind is None:
        raise UsageError(
            "--data: missing, and the network was converted and never trained. Name the images to "
            f"evaluate it on. {', '.join(DATASETS)} are allowed."
        )
    source = find_source(kind)
    _check_fit(args, kind, source)
    asked: dict[str, Any] = {"image_set": source.val_set}
    if kind == info.get("data"):
        asked |= {**info.get("data_options", {}), **_for_evaluation(source, info)}
    if args.root is not None:
        asked["boxes"] = None  # those of other images
    given = {name: getattr(args, name) for name in ("image_set", "root", "boxes")}
    given |= _own_options(args, source)
    return kind, source, asked | {name: v for name, v in given.items() if v is not None}


def _elsewhere(
    args: argparse.Namespace, asked: Mapping[str, Any], source: DataSource
) -> dict[str, Any]:
    """The same data set with the images of ``--fit-on``: a split, or a folder where it has none."""
    from explainguide.datasets.table import taken

    splits = "image_set" in taken(source)
    name = "image_set" if splits else "root"
    if args.fit_on == asked.get(name):
        raise UsageError(
            f"--fit-on: {args.fit_on!r} is what is evaluated, on which a fitted threshold is too good. "
            f"Name {'the split train' if splits else 'another folder'}. Other images are allowed."
        )
    boxes = {} if splits and args.fit_boxes is None else {"boxes": args.fit_boxes}
    return {**asked, name: args.fit_on, **boxes}


def check_same_classes(
    classes: Sequence[str], known: Sequence[str], *, of: tuple[str, str], remedy: str
) -> None:
    """Refuse classes that are not the same in the same order: labels would mean something else.

    Args:
        classes: Names.
        known: Those that they must be.
        of: Whose they are, for the message: ``("the data", "those of 'last.pt'")``.
        remedy: What to do, a sentence.

    Raises:
        OptionError: With the first that differs.
    """
    if list(classes) == list(known):
        return
    if len(classes) != len(known):
        count = f"{len(classes)} class{'es' if len(classes) > 1 else ''}"
        problem = f"{of[0]} have {count} and {of[1]} {len(known)}"
    else:
        index = next(i for i in range(len(known)) if classes[i] != known[i])
        problem = f"class {index} of {of[0]} is {classes[index]!r}, but of {of[1]} {known[index]!r}"
    raise OptionError(f"{problem}. {remedy} The same names in the same order are allowed.")


def describe_data(args: argparse.Namespace, source: DataSource) -> dict[str, Any]:
    """What a checkpoint keeps of these options, so that `open_evaluation` finds the images again."""
    own = _own_options(args, source)
    return {
        "data": args.data,
        **{name: getattr(args, name) for name in _FILLS},
        "image_set": args.image_set or source.train_set,
        **({"data_options": own} if own else {}),
    }


def _for_evaluation(source: DataSource, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Split, root and boxes of evaluation; a root of its own has boxes of its own."""
    from explainguide.datasets.table import taken

    root, boxes = settings.get("val_root"), settings.get("val_boxes")
    if root is None and "image_set" in taken(source):
        root, boxes = settings.get("root"), boxes or settings.get("boxes")
    return {"image_set": settings.get("val_set") or source.val_set, "root": root, "boxes": boxes}


def _own_options(args: argparse.Namespace, source: DataSource) -> dict[str, str]:
    values = {name: getattr(args, name) for name in source.options}
    return {name: value for name, value in values.items() if value is not None}


def _check_fit(args: argparse.Namespace, kind: str, source: DataSource) -> None:
    """Refuse an option that this data set would not hear of."""
    from explainguide.datasets.table import DATASETS, taken

    own = {option for entry in DATASETS.values() for option in entry.options}
    fills = {**_FILLS, **{option: option for option in own}}
    for option, parameter in fills.items():
        if getattr(args, option, None) is not None and parameter not in taken(source):
            fitting = [
                _flag(o) for o, p in fills.items() if hasattr(args, o) and p in taken(source)
            ]
            function = f", or let the function take {parameter}" if ":" in kind else ""
            raise UsageError(
                f"{_flag(option)}: --data {kind} does not take it. Leave it out{function}. "
                f"{', '.join(fitting) or 'Nothing else'} {'are' if len(fitting) > 1 else 'is'} allowed."
            )


def _open(kind: str, source: DataSource, asked: Mapping[str, Any], *, prefix: str = "") -> Any:
    """Call `DataSource.open` with what it takes of what is said."""
    from explainguide.cli.own_data import check_data_set, check_items
    from explainguide.datasets.table import taken

    takes = taken(source)
    options = {name: value for name, value in asked.items() if name in takes and value is not None}
    for name in (name for name, needed in takes.items() if needed and name not in options):
        option = f"{prefix}{name}"
        remedy = _REMEDIES.get(option, "--data {kind} needs it. `--help` says what it is.")
        raise UsageError(f"{_flag(option)}: missing. {remedy.format(kind=kind)}")
    if ":" in kind:
        with operation("--data"):
            data = call_own(kind, source.factory, options=options)
    else:
        data = source.factory(**options)
    with operation("--data"):
        check_data_set(data, kind)
        if ":" in kind:
            check_items(data, kind)
    return data


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
