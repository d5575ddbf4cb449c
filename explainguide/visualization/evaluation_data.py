"""What the evaluation page shows: scores with intervals, and pictures; classes that only hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from explainguide.errors import (
    OptionError,
    ShapeError,
    check_number,
    check_option,
    constructor,
    did_you_mean,
)
from explainguide.visualization.overlays import Sign

__all__ = [
    "Bars",
    "Difference",
    "EvaluationPage",
    "Example",
    "Gallery",
    "LayerTable",
    "MeanMap",
    "MeanMaps",
    "MetricNote",
    "Pareto",
    "Result",
    "Score",
    "ShownMap",
    "result_rows",
]

Better = Literal["higher", "lower", "neither"]
Kind = Literal["grid", "best", "worst", "before_after"]


@dataclass(frozen=True)
class MetricNote:
    """What a metric means, for who reads its column.

    Attributes:
        title: Heading of the column: ``"EPG"``.
        meaning: A plain sentence.
        better: Which direction is good; with ``"neither"`` nothing is marked.
        low: The least value that there is; None where there is none.
        high: The greatest.
        percent: Whether values are shares, shown in percent.
    """

    title: str
    meaning: str
    better: Better = "higher"
    low: float | None = 0.0
    high: float | None = 1.0
    percent: bool = True


@dataclass(frozen=True)
class Score:
    """A figure with its interval.

    Attributes:
        value: None and NaN are undefined.
        low: Lower end of the interval; None and NaN for none.
        high: Upper end.
        undefined: How many maps had no value, and are left out.
        total: Of how many; None where that is not known.
        note: A few words under the figure: ``"below a centred Gaussian"``.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: int = 0
    total: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A row of the page: what was judged, and its scores.

    Attributes:
        model: A checkpoint or a model.
        scores: By the metric's key.
        attribution: The method; "" where only the classification was judged.
        layer: Where its maps come from.
        notes: Sentences to read with the row, such as that it does not beat a centred Gaussian.
        reference: Whether it is a baseline, such as that Gaussian.
    """

    model: str
    scores: Mapping[str, Score]
    attribution: str = ""
    layer: str = ""
    notes: Sequence[str] = ()
    reference: bool = False

    @property
    def label(self) -> str:
        """Model, method and layer in one line."""
        return " · ".join(part for part in (self.model, self.attribution, self.layer) if part)


@dataclass(frozen=True)
class Difference:
    """What a row has more than another one on the same images.

    Attributes:
        first: Label of the row that is subtracted.
        second: Label of the other.
        scores: By the metric's key: second minus first, with a paired interval.
        images: How many images both saw.
    """

    first: str
    second: str
    scores: Mapping[str, Score]
    images: int


@dataclass(frozen=True)
class Bars:
    """A bar for each class, or for each group.

    Attributes:
        title: ``"By class"``.
        metric: Its key.
        rows: Name of the class to the label of what was judged to its score.
        text: Plain text above the bars.
    """

    title: str
    metric: str
    rows: Mapping[str, Mapping[str, Score]]
    text: str = ""


@dataclass(frozen=True)
class Pareto:
    """Two metrics of several models against each other.

    Attributes:
        x: Key of the horizontal metric.
        y: Key of the vertical one.
        points: Label to (x, y).
        front: The labels of those that no other dominates, as
            `explainguide.metrics.pareto_front` finds them.
    """

    x: str
    y: str
    points: Mapping[str, tuple[float, float]]
    front: Collection[str] = ()


@dataclass(frozen=True)
class MeanMap:
    """The mean of the maps of a bin.

    Attributes:
        label: Which percentiles: ``"0 to 2%"``.
        count: How many maps.
        attribution: ``(h, w)``, signed, an array or tensor; None for a bin without maps.
    """

    label: str
    count: int
    attribution: Any = None


@dataclass(frozen=True)
class MeanMaps:
    """Maps that are sorted by their score and averaged in bins (AggAtt).

    Attributes:
        of: Label of the row.
        metric: Key of the metric that they are sorted by.
        bins: In the order of the page.
        sign: As in `explainguide.visualization.overlay`.
    """

    of: str
    metric: str
    bins: Sequence[MeanMap]
    sign: Sign = "positive"


@dataclass(frozen=True)
class LayerTable:
    """Methods by layer (ML-Att).

    Attributes:
        metric: Its key.
        methods: Method to the name of the layer to its score. Layers stand in the order in which
            they are first met.
    """

    metric: str
    methods: Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True)
class ShownMap:
    """A map on an image.

    Attributes:
        label: Whose it is.
        attribution: ``(h, w)``, signed, at any resolution, an array or tensor.
        score: Its score; None and NaN are undefined.
    """

    label: str
    attribution: Any
    score: float | None = None


@dataclass(frozen=True)
class Example:
    """An image with its maps.

    Attributes:
        image: A PIL image; an array ``(H, W, 3)``, 0 to 255 or in [0, 1]; or a tensor
            ``(3, H, W)`` in [0, 1].
        name: Of its file.
        class_name: The class that is explained.
        maps: One, or one of each of several models.
        boxes: ``(M, 4)`` as x1, y1, x2, y2 in pixels of the image, or None.
    """

    image: Any
    name: str
    class_name: str
    maps: Sequence[ShownMap]
    boxes: Any = None


@dataclass(frozen=True)
class Gallery:
    """Examples under one heading.

    Attributes:
        kind: ``"grid"`` (a box is the cell of the class), ``"best"``, ``"worst"``, or
            ``"before_after"`` (each example has the maps of two models).
        metric: Key of the metric of the scores.
        examples: In the order of the page.
        of: Label of the row, for the heading.
        sign: As in `explainguide.visualization.overlay`.
    """

    kind: Kind
    metric: str
    examples: Sequence[Example]
    of: str = ""
    sign: Sign = "positive"


@dataclass(frozen=True)
class EvaluationPage:
    """All that `write_evaluation` writes; whatever is left out has no section.

    Attributes:
        title: Heading and window title.
        metrics: Key to its meaning, in the order of the columns.
        results: The rows.
        summary: Plain text; an empty line starts a new paragraph.
        confidence: Of the intervals, in (0, 1).
        differences: Rows that saw the same images.
        bars: Charts by class, by group.
        trade_offs: Plots of two metrics.
        layer_tables: Methods by layer.
        mean_maps: Mean maps by percentile.
        galleries: Images with maps.
        not_shown: Sentences on what the page does not show.
        provenance: Versions, command, data set, seed, date, number of images, as plain text.
        skipped: Name of each image that was skipped, to the reason.

    Raises:
        OptionError: For a metric that has no meaning here, a row that is not there, a metric of an
            unknown direction, a kind of gallery that there is not.
        ShapeError: Without a row or a metric.
    """

    title: str
    metrics: Mapping[str, MetricNote]
    results: Sequence[Result]
    summary: str = ""
    confidence: float = 0.95
    differences: Sequence[Difference] = ()
    bars: Sequence[Bars] = ()
    trade_offs: Sequence[Pareto] = ()
    layer_tables: Sequence[LayerTable] = ()
    mean_maps: Sequence[MeanMaps] = ()
    galleries: Sequence[Gallery] = ()
    not_shown: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @constructor
    def __post_init__(self) -> None:
        """Refuse what names a metric or a row that the page has not."""
        if not self.results or not self.metrics:
            raise ShapeError(
                f"got {len(self.results)} results and {len(self.metrics)} metrics. Pass at least "
                "one of each."
            )
        check_number("confidence", self.confidence, least=0, most=1, above=True)
        for key, note in self.metrics.items():
            check_option(f"direction of metrics[{key!r}]", note.better, get_args(Better))
        for gallery in self.galleries:
            check_option("kind of gallery", gallery.kind, get_args(Kind))
        for metric in self._named_metrics():
            check_option("metric", metric, self.metrics)
        labels = [result.label for result in self.results]
        for label in labels:
            if labels.count(label) > 1:
                raise OptionError(
                    f"results has {label!r} twice. Give the models names of their own. Model, "
                    "attribution and layer together must name one row."
                )
        for label in [end for d in self.differences for end in (d.first, d.second)]:
            if label not in labels:
                raise OptionError(
                    f"differences has an unknown row {label!r}.{did_you_mean(label, labels)} "
                    f"The rows are {', '.join(map(repr, labels))}."
                )
        for plot in self.trade_offs:
            for label in plot.front:
                if label not in plot.points:
                    raise OptionError(
                        f"a front has {label!r}, which is no point.{did_you_mean(label, plot.points)} "
                        f"The points are {', '.join(map(repr, plot.points))}."
                    )

    def _named_metrics(self) -> list[str]:
        keys = [key for result in self.results for key in result.scores]
        keys += [key for difference in self.differences for key in difference.scores]
        keys += [key for plot in self.trade_offs for key in (plot.x, plot.y)]
        keys += [part.metric for part in self.bars] + [part.metric for part in self.layer_tables]
        return keys + [part.metric for part in self.mean_maps] + [g.metric for g in self.galleries]


def result_rows(results: Sequence[Result]) -> list[dict[str, object]]:
    """The results as flat rows, for a terminal and for other programs.

    Args:
        results: As the page has them.

    Returns:
        A dict each: ``"model"``, ``"attribution"``, ``"layer"``; for each metric its key, and where
        there are any ``"<key> low"``, ``"<key> high"`` and ``"<key> undefined"``; ``"notes"`` where a
        row has some. Write them with `explainguide.tables.rows_as_csv` and the functions beside it.

    Example:
        >>> result_rows([Result("a.pt", {"epg": Score(0.6, 0.5, 0.7)}, "ixg", "layer4")])[0]
        {'model': 'a.pt', ..., 'epg': 0.6, 'epg low': 0.5, 'epg high': 0.7}
    """
    rows = []
    for result in results:
        row: dict[str, object] = {
            "model": result.model,
            "attribution": result.attribution,
            "layer": result.layer,
        }
        for key, score in result.scores.items():
            row[key] = score.value
            ends = {"low": score.low, "high": score.high, "undefined": score.undefined or None}
            row |= {f"{key} {name}": end for name, end in ends.items() if end is not None}
        notes = [*result.notes, *(score.note for score in result.scores.values() if score.note)]
        if notes:
            row["notes"] = "; ".join(notes)
        rows.append(row)
    return rows
