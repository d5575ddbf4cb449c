"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from explainguide.annotations.class_choice import choose_classes
from explainguide.annotations.forms import as_regions
from explainguide.attr.map_checks import at_image_size
from explainguide.datasets.batches import Batch, batches, check_data, check_device
from explainguide.errors import DataError, OptionError, check_number, check_option, operation
from explainguide.evaluation.classification import ClassificationScores, check_labels, is_multilabel
from explainguide.evaluation.explaining import Explaining, Pass, explaining
from explainguide.evaluation.grid_game import grid_game
from explainguide.evaluation.map_scores import (
    MapScores,
    PredictionScores,
    check_metrics,
    over_layers,
)
from explainguide.evaluation.record import BatchMaps
from explainguide.hooks.layers import unwrap
from explainguide.hooks.logits import check_logits, class_scores
from explainguide.hooks.reading import Output, Reading, check_reading
from explainguide.hooks.sharded import check_whole
from explainguide.hooks.tap import unread
from explainguide.metrics.table import MAP_METRICS, side_by_side
from explainguide.processes import add_up, process, together

__all__ = ["evaluate"]


@operation("evaluate")
def evaluate(
    model: nn.Module,
    data: Any,
    *,
    layer: str | Sequence[str] | None = None,
    attribution: Any = "ixg",
    output: Output | None = None,
    region: Literal["boxes", "masks"] = "boxes",
    threshold: float | Literal["fit"] = 0.5,
    fit_on: Any = None,
    metrics: Sequence[str] | None = None,
    on_batch: Callable[[BatchMaps], object] | None = None,
    grid_size: int = 3,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Classify a data set and measure the maps of every annotated class of every image.

    The model is in evaluation mode meanwhile and comes back as it was; no parameter gets a
    gradient. Works under any grad mode. Costs one forward pass a batch, and one backward pass
    through the layers above the guided one for each class of the image with most classes.

    In a distributed run every process takes its share of the images and gets the whole result.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        data: Items ``(image, labels, annotation)``; None for an image that could not be read.
            Labels are an int, or multi-hot floats.
        layer: ``"input"``, a dotted name, or several; None finds the last spatial layer.
        attribution: A name, or an object of `explainguide.attr` built with this model; or what else
            `explainguide.attr.as_explainer` takes, at one layer: an attribution of Captum's, as
            ``"captum:GuidedBackprop"``, an object of pytorch-grad-cam, a reference such as
            ``"center"``, a callable. Those cost what they cost, for each class of an image.
        output: Which of several things that the model returns are the logits: an index, a key, an
            attribute, or a callable that takes what the model returned.
        region: What a class should be found in: its ``"boxes"``, or its ``"masks"`` where there
            are any.
        threshold: Of the IoU, or ``"fit"`` for the best one on these data, which is then too good.
        fit_on: Other images, of the form of `data`, on which the threshold is fitted for each layer. It
            costs their evaluation.
        metrics: Which metrics to report beside those of the answers: keys of
            `explainguide.metrics.MAP_METRICS`, those of your own (`explainguide.metrics.map_metric`)
            too. None is those named below, and ``"worst_group_accuracy"`` where the data name their
            groups and labels are class indices. Some ask the model or the attribution many times an
            image; their noise is of the global generator.
        on_batch: Called with each batch of `data`, its maps and their scores, as by
            `explainguide.evaluation.Record`. Each process sees its own share.
        grid_size: Images in height and in width of the grids of ``"gridpg"``, which `grid_game` makes
            of the data, in a pass of their own.
        batch_size: Images a forward pass.
        workers: Processes that load images.
        device: Where to compute; None is where the model is. The model is not moved back.
        progress: Whether to show a bar.

    Returns:
        ``"f1"`` (micro, a logit from 0 on is a yes) and ``"map"`` (macro) for multi-hot labels, or
        ``"accuracy"`` and ``"worst_class_accuracy"``; ``"epg"`` and ``"iou"``, means over
        annotated (image, class) pairs, NaN without any; ``"on_object_epg"``, over the pairs of
        images with masks, where there are any; ``"epg_undefined"``, how many maps have no positive
        part or are not finite (a warning tells of these); ``"iou_threshold"`` where it was fitted,
        that of the first layer; ``"images"``, ``"pairs"``, ``"skipped"``. With several layers
        ``"epg"``, ``"iou"`` and ``"on_object_epg"`` are means over layers, and ``"epg layer4"`` and
        so on are those of each. Other metrics are reported under their keys likewise.

    Raises:
        LayerError: For a layer that cannot be explained.
        OptionError: For another option that is not allowed.
        GuidanceError: For a model that cannot be explained, or that `fully_shard` has cut in pieces.
        DataError: If no image can be read, or labels and model do not fit; if a metric needs groups and
            items have none; if ``"gridpg"`` finds too few classes that the model recognises.
    """
    check_option("region", region, ("boxes", "masks"))
    check_number("batch_size", batch_size, least=1, whole=True)
    check_number("workers", workers, least=0, whole=True)
    check_number("grid_size", grid_size, least=1, whole=True)
    chosen = check_metrics(metrics)
    if fit_on is not None and threshold != 0.5:
        raise OptionError(
            f"threshold is {threshold!r} beside fit_on. Leave it out: it is fitted on those images. "
            "One of the two is allowed."
        )
    place = None if device is None else check_device(device)
    inner = unwrap(model, compiled_parts=True)
    check_whole(inner, remedy="Load its full state dict in a model of its own.")
    reading = check_reading(output=output)
    found = explaining(inner, attribution, layer, reading=reading)
    check_data(data, name="data")
    if metrics is None and _groups(data) and not _are_multilabel(data):
        chosen.append("worst_group_accuracy")
    if place is not None:
        inner.to(place)
    how = _How(inner, found, reading, region, batch_size, workers, progress)
    kinds = {kind: [k for k in chosen if MAP_METRICS[k].takes == kind] for kind in _KINDS}
    # First, since too few recognised classes are an error, which must not cost the numbers of a pass.
    game = _play(how, data, n=grid_size) if kinds["grids"] else {}
    fitted: dict[str, dict[str, float]] = {}
    if fit_on is not None:
        check_data(fit_on, name="fit_on")
        fitted = _fit(how, fit_on, chosen)
    device = _device(inner)
    maps = {
        name: MapScores(kinds["maps"], threshold=threshold, fitted=fitted.get(name), device=device)
        for name in found.layers
    }
    named = _groups(data) if kinds["predictions"] else []
    predictions = PredictionScores(kinds["predictions"], named, device)
    return side_by_side(_measure(how, data, maps, predictions, on_batch), game)


def _groups(data: Any) -> Sequence[str]:
    """The names of a data set's groups, also inside a `Subset` or `LimitedAnnotations`."""
    while not hasattr(data, "groups") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "groups", None)
    return (
        list(names) if isinstance(names, list | tuple) else []
    )  # another's word for something else


def _are_multilabel(data: Any) -> bool:
    """Whether labels are multi-hot, as the first item that can be read has them."""
    items = (data[index] for index in range(len(data)))
    first = next((item for item in items if item is not None), None)
    return first is not None and is_multilabel(torch.as_tensor(first[1])[None])


_KINDS = ("maps", "predictions", "grids")


@dataclass(frozen=True)
class _How:
    """How images are explained, and how they are gone through."""

    model: nn.Module
    explaining: Explaining
    reading: Reading
    region: str
    batch_size: int
    workers: int
    progress: bool


def _fit(how: _How, data: Any, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each layer and each metric that takes a threshold, the one that is best on these images."""
    taking = [key for key in metrics if "threshold" in MAP_METRICS[key].options]
    if not taking:
        return {}
    device = _device(how.model)
    maps = {
        name: MapScores(taking, threshold="fit", device=device) for name in how.explaining.layers
    }
    numbers = _measure(how, data, maps, PredictionScores([], [], device))
    if not numbers["pairs"]:
        raise DataError(
            f"none of the {len(data)} images of fit_on is annotated, so that no threshold can be "
            "fitted on them. Name images with boxes, or leave fit_on out. One annotated image is "
            "enough."
        )
    return {name: scores.thresholds() for name, scores in maps.items()}


def _measure(
    how: _How,
    data: Any,
    maps: dict[str, MapScores],
    predictions: PredictionScores,
    on_batch: Callable[[BatchMaps], object] | None = None,
) -> dict[str, float]:
    """Every number, in one pass over the images."""
    count, device = len(data), _device(how.model)
    rank, world = process()
    source = batches(
        data,
        range(rank, count, world),
        batch_size=how.batch_size,
        workers=how.workers,
        device=device,
    )
    steps = -(-len(range(rank, count, world)) // how.batch_size)
    with how.explaining.on() as passing, torch.inference_mode(False), torch.no_grad():
        scores: ClassificationScores | None = None
        totals = [0, 0, 0]
        with together(device):
            for batch in tqdm(source, "evaluate", steps, disable=not how.progress, leave=False):
                totals[0] += len(batch.images)
                totals[2] += batch.skipped
                if not batch.readable:
                    continue
                logits, pairs = _step(how, passing, batch, maps, on_batch)
                check_labels(batch.labels, logits)
                if scores is None:
                    scores = ClassificationScores(
                        logits.shape[1], is_multilabel(batch.labels), device
                    )
                scores.update(logits, batch.labels)
                predictions.update(logits, batch.labels, batch.groups)
                totals[1] += pairs
    scores = _of_all(scores, device)
    if scores is None:
        raise DataError(
            f"none of the {count} images could be read. See the warnings for their "
            "names. At least one must be readable."
        )
    shared = [int(total) for total in add_up(totals, device).tolist()]
    counts = dict(zip(("images", "pairs", "skipped"), shared, strict=True))
    return side_by_side(scores.compute(), predictions.compute(), over_layers(maps), counts)


def _of_all(
    scores: ClassificationScores | None, device: torch.device
) -> ClassificationScores | None:
    """Scores in every process that has none of its own, where another process has some."""
    own = [0, 0] if scores is None else [scores.num_classes, scores.multilabel]
    num_classes, multilabel = add_up(own, device, most=True).tolist()
    if scores is None and num_classes:
        scores = ClassificationScores(int(num_classes), bool(multilabel), device)
        scores.add_nothing()
    return scores


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _step(
    how: _How,
    passing: Pass,
    batch: Batch,
    scores: dict[str, MapScores],
    on_batch: Callable[[BatchMaps], object] | None,
) -> tuple[Tensor, int]:
    """The logits of a batch, and of how many pairs the maps were scored."""
    images, annotations = batch.images, batch.annotations
    size = (int(images.shape[-2]), int(images.shape[-1]))
    with passing(images, maps=annotations.most_classes > 0) as (logits, explain):
        scores_of_classes = class_scores(logits)
        boxes = as_regions(annotations.without_masks(), scores_of_classes, size)
        choice = choose_classes(
            "all", boxes, scores_of_classes, None, negatives=0.0, generator=None
        )
        maps = {name: at_image_size(own, size) for name, own in explain(choice).items()}
    logits, valid = logits.detach(), choice.valid
    box = boxes.region(choice.classes, size)[valid]
    masks = None
    if annotations.masks is not None:
        masks = annotations.region(choice.classes, size)[valid]
    segmented = batch.segmented.to(valid.device).expand(valid.shape)[valid]
    target = box if masks is None or how.region == "boxes" else masks
    rows = torch.arange(len(images), device=valid.device).expand(valid.shape)[valid]
    each: dict[str, dict[str, Tensor]] = {}
    shown = images[rows]
    for name, own in maps.items():
        given = {
            "region": target,
            "boxes": box,
            "segmentation": masks,
            "images": shown,
            "target": choice.classes[valid],
            "model": partial(_logits, how),
            "explain": partial(_explain, how, name),
        }
        scores[name].update(own, given, segmented, multilabel=is_multilabel(batch.labels))
        if on_batch is not None:
            each[name] = scores[name].each(own, given, segmented)
    if on_batch is not None:
        on_batch(_told(batch, logits, rows, choice.classes[valid], target, maps, each))
    return logits, int(valid.sum())


def _logits(how: _How, images: Tensor) -> Tensor:
    """What the model says of images, for metrics that ask it; no pass is read."""
    with unread(), torch.no_grad():
        output = how.model(images)
    return check_logits(output, reading=how.reading, images=len(images))


def _explain(how: _How, layer: str, images: Tensor, target: Tensor) -> Tensor:
    """The maps of other images, for metrics that ask for them: what makes them is built only then."""
    return how.explaining.explainer(layer)(images, target)


def _play(how: _How, data: Any, *, n: int) -> dict[str, float]:
    """The grid pointing game at every layer: means, and those of each of several layers."""
    multilabel = _are_multilabel(data)
    games = {
        name: grid_game(
            how.model,
            # At the layer's resolution, so that nothing flows from one cell into another.
            how.explaining.explainer(name, interpolate=False),
            data,
            n=n,
            by="sigmoid" if multilabel else "softmax",
            output=how.reading.output,
            examples=0,
            batch_size=how.batch_size,
            workers=how.workers,
            progress=how.progress,
        ).numbers
        for name in how.explaining.layers
    }
    first = next(iter(games.values()))
    scores = [game["gridpg"] for game in games.values()]
    undefined = sum(game["gridpg_undefined"] for game in games.values())
    numbers = {
        "gridpg": sum(scores) / len(scores),
        "gridpg_undefined": undefined,
        "gridpg_grids": first["grids"],
    }
    if len(games) > 1:
        for name, game in games.items():
            for key in ("gridpg", "gridpg_undefined"):
                numbers[f"{key} {name}"] = game[key]
    return numbers


def _told(
    batch: Batch,
    logits: Tensor,
    rows: Tensor,
    classes: Tensor,
    regions: Tensor,
    maps: dict[str, Tensor],
    scores: dict[str, dict[str, Tensor]],
) -> BatchMaps:
    return BatchMaps(
        batch.indices,
        batch.images,
        batch.labels,
        batch.groups,
        logits,
        rows,
        classes,
        regions,
        maps,
        scores,
    )
