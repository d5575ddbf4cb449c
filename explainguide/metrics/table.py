"""The table of metrics, each entered where it is defined; `evaluate` reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor
from torchmetrics import Metric

from explainguide.errors import OptionError, Table, did_you_mean, operation

__all__ = [
    *("MAP_METRICS", "MapMetric", "Need", "Option"),
    *("map_metric", "reported", "side_by_side"),
]

OfMaps = Literal["region", "boxes", "segmentation", "images", "target", "model", "explain"]
Need = OfMaps | Literal["logits", "labels", "groups", "cell"]
Option = Literal["threshold", "multilabel", "groups"]
Kind = TypeVar("Kind", bound=type[Metric])
Number = TypeVar("Number")

# What stands beside the metrics of maps: what `evaluate` reports, what `train` adds to an epoch's row,
# and the columns of the tables that the commands print.
_RESERVED: tuple[str, ...]
_RESERVED = ("accuracy", "worst_class_accuracy", "f1", "map", "images", "pairs", "skipped")
_RESERVED += ("epoch", "loss", "loss_loc", "lr", "seconds")
_RESERVED += ("checkpoint", "kept", "run", "time")
_PREDICTIONS = ("logits", "labels", "groups")  # needs of metrics that take no maps
_GRIDS = ("cell",)  # and of those that take maps of grids of images
_ENDINGS = ("_undefined", "_threshold")  # what is reported of a metric beside its score


@dataclass(frozen=True)
class MapMetric:
    """A metric of the table; `map_metric` says what each field means."""

    key: str
    kind: type[Metric]
    title: str
    needs: tuple[Need, ...] = ("region",)
    options: tuple[Option, ...] = ()
    default: bool = False
    counts_undefined: bool = False
    each: Callable[..., Tensor] | None = None

    @property
    def higher_is_better(self) -> bool | None:
        """The direction, as the class says it."""
        return self.kind.higher_is_better

    @property
    def takes(self) -> Literal["maps", "predictions", "grids"]:
        """What ``update`` takes: maps of images, predictions alone, or maps of grids of images."""
        if set(self.needs) & set(_PREDICTIONS):
            return "predictions"
        return "grids" if set(self.needs) & set(_GRIDS) else "maps"


MAP_METRICS: Table[str, MapMetric] = Table("MAP_METRICS", origin=lambda entry: entry.kind)
"""The metrics that `evaluate` can report, by their keys."""


def map_metric(
    key: str,
    *,
    title: str,
    needs: tuple[Need, ...] = ("region",),
    options: tuple[Option, ...] = (),
    default: bool = False,
    counts_undefined: bool = False,
    each: Callable[..., Tensor] | None = None,
) -> Callable[[Kind], Kind]:
    """Enter a torchmetrics class into the table of the metrics that `evaluate` can report.

    The class is built without arguments (but for ``options``) and updated with maps ``(N, H, W)``,
    a row for each (image, class) pair, and the masks that it needs, of the same shape; or, without
    maps, with predictions, a row for each image. ``compute`` returns a scalar, or a dict: its scalars
    are reported as ``<key>_<name>``, and its tensors of more than one element, such as the points of
    a curve, are no numbers of a row and left to who asks the metric. In a distributed run a process may
    have had nothing to add, so states should be tensors, not lists.

    Args:
        key: What `evaluate` calls it: an identifier that is no other number's of an evaluation or a
            training, and that does not end in ``_undefined`` or ``_threshold``.
        title: What a column or an axis calls it.
        needs: What ``update`` takes after the maps, in order: ``"region"``, where the map should
            be (the boxes or the segmentation, as `evaluate` is told), ``"boxes"``,
            ``"segmentation"``; the images ``"images"`` ``(N, C, H, W)`` and the classes ``"target"``
            ``(N,)`` of the maps; ``"model"``, images to logits; ``"explain"``, images and classes to
            maps. With ``"segmentation"`` only the pairs of images with masks are handed on, and the
            metric is reported where it is defined on some. A metric of predictions needs, in place
            of all that, some of ``"logits"``, ``"labels"`` and ``"groups"``; one of grids the
            ``"cell"`` of each map, as `explainguide.evaluation.grid_game` makes them.
        options: What the class is built with: ``"threshold"``, that of `evaluate`; where it is
            ``"fit"``, the class's ``best_threshold`` is reported as ``<key>_threshold``.
            ``"multilabel"``, whether labels are multi-hot. ``"groups"``, the names of the data's
            groups.
        default: Whether `evaluate` reports it without being asked.
        counts_undefined: Whether the class's ``undefined`` is reported as ``<key>_undefined``.
        each: The function that the class is the mean of: it takes what ``update`` takes, and the
            ``options`` by name, and returns one score a map, ``(N,)``, NaN where it is undefined. With
            it a report has intervals, classes, and the best and worst images.

    Returns:
        A decorator that hands the class back as it was. A class that is defined again, as in a
        notebook, takes its own place.

    Raises:
        OptionError: Where a class is decorated with a key that is taken, or an unknown need or
            option; or where it is no torchmetrics class.

    Example:
        >>> import torch
        >>> from torchmetrics import MeanMetric
        >>> @map_metric("outside", title="Outside")
        ... class Outside(MeanMetric):
        ...     higher_is_better = False
        ...     def update(self, attribution, mask):
        ...         super().update((attribution * ~mask.bool()).mean((1, 2)))
        >>> MAP_METRICS["outside"].title, MAP_METRICS.pop("outside").higher_is_better
        ('Outside', False)
    """

    @operation("map_metric")
    def enter(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Metric)):
            raise OptionError(
                f"{kind!r} is no class of torchmetrics. Derive one from torchmetrics.Metric. "
                "Classes with update and compute are allowed."
            )
        _check_key(key, kind)
        known = [name for part in get_args(Need) for name in get_args(part)]
        _check_names("need", needs, tuple(known))
        _check_names("option", options, get_args(Option))
        _check_kind(kind, needs, options)
        MAP_METRICS[key] = MapMetric(
            key, kind, title, needs, options, default, counts_undefined, each
        )
        return kind

    return enter


def _check_key(key: str, kind: type[Metric]) -> None:
    """Refuse a key that `evaluate` cannot report."""
    if not key.isidentifier() or key in _RESERVED or key.endswith(_ENDINGS):
        raise OptionError(
            f"{kind.__name__} has the key {key!r}. Use {kind.__name__.lower()!r}. Identifiers that do "
            f"not end in {' or '.join(_ENDINGS)} and are none of {', '.join(_RESERVED)} are allowed."
        )


def _check_kind(kind: type[Metric], needs: tuple[Need, ...], options: tuple[Option, ...]) -> None:
    """Refuse a metric of both maps and predictions: a row a pair of the one, an image of the other."""
    predictions = [need for need in needs if need in _PREDICTIONS]
    if predictions and len(predictions) < len(needs):
        raise OptionError(
            f"{kind.__name__} needs {', '.join(map(repr, needs))}, of images and of pairs of image and "
            f"class. Make two metrics of it. Of predictions {', '.join(map(repr, _PREDICTIONS))} are "
            "allowed, and none of them beside maps."
        )
    if "groups" in options and "groups" not in needs:
        raise OptionError(
            f"{kind.__name__} has the option 'groups' and needs {', '.join(map(repr, needs))}. Add "
            "'groups' to needs. Group names are for metrics that are told an image's group."
        )


def reported(key: str, result: Any) -> dict[str, float]:
    """The numbers of what a metric's ``compute`` returned, by the names under which they are reported.

    Args:
        key: Of the metric.
        result: A scalar, or a dict; its tensors of more than one element are left out.

    Raises:
        OptionError: If it is a tensor of more than one element.

    Example:
        >>> import torch
        >>> reported("curve", {"values": torch.tensor([0.5, 0.25]), "area": torch.tensor(0.375)})
        {'curve_area': 0.375}
    """
    if isinstance(result, Mapping):
        return {f"{key}_{name}": float(v) for name, v in result.items() if not _is_curve(v)}
    if _is_curve(result):
        raise OptionError(
            f"compute of the metric {key!r} returned a tensor {tuple(result.shape)}. Return it in a "
            f"dict, beside a number: {{'values': ..., 'mean': ...}}. A scalar, or a dict, is allowed."
        )
    return {key: float(result)}


def _is_curve(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() != 1


def side_by_side(*parts: Mapping[str, Number]) -> dict[str, Number]:
    """Numbers of several sources in one row, where none takes the place of another.

    Args:
        *parts: Name to number.

    Raises:
        OptionError: If two have one name, as by a metric whose ``compute`` names it.

    Example:
        >>> side_by_side({"epoch": 1}, {"epg": 0.5})
        {'epoch': 1, 'epg': 0.5}
    """
    row: dict[str, Number] = {}
    for part in parts:
        for name, number in part.items():
            if name in row:
                raise OptionError(
                    f"two numbers are called {name!r}. Rename the metric's key, or the name in the "
                    f"dict that its compute returns. All but {', '.join(map(repr, row))} are allowed."
                )
            row[name] = number
    return row


def _check_names(what: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for name in given:
        if name not in allowed:
            raise OptionError(
                f"unknown {what} {name!r}.{did_you_mean(name, allowed)} "
                f"{', '.join(map(repr, allowed))} are allowed."
            )
