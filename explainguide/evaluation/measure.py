"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from explainguide.annotations.class_choice import choose_classes
from explainguide.annotations.forms import as_regions
from explainguide.attr import LayerMap
from explainguide.attr.evidence import explain, passing
from explainguide.attr.placement import place_attribution
from explainguide.datasets.batches import Batch, batches, check_data, check_device
from explainguide.errors import DataError, check_number, check_option, operation
from explainguide.evaluation.classification import ClassificationScores, check_labels, is_multilabel
from explainguide.evaluation.map_scores import MapScores, check_metrics, over_layers
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.layers import unwrap
from explainguide.hooks.logits import check_logits, class_scores
from explainguide.hooks.reading import Output, check_reading
from explainguide.hooks.sharded import check_whole
from explainguide.hooks.tap import Tap
from explainguide.metrics.table import side_by_side
from explainguide.processes import add_up, process, together

__all__ = ["evaluate"]


@operation("evaluate")
def evaluate(
    model: nn.Module,
    data: Any,
    *,
    layer: str | Sequence[str] | None = None,
    attribution: str | LayerMap = "ixg",
    output: Output | None = None,
    region: Literal["boxes", "masks"] = "boxes",
    threshold: float | Literal["fit"] = 0.5,
    metrics: Sequence[str] | None = None,
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
        attribution: A name, or an object of `explainguide.attr` built with this model.
        output: Which of several things that the model returns are the logits: an index, a key, an
            attribute, or a callable that takes what the model returned.
        region: What a class should be found in: its ``"boxes"``, or its ``"masks"`` where there
            are any.
        threshold: Of the IoU, or ``"fit"`` for the best one on these data.
        metrics: Which metrics of the maps to report: keys of `explainguide.metrics.MAP_METRICS`, those
            of your own (`explainguide.metrics.map_metric`) too. None is those named below.
        batch_size: Images a forward pass.
        workers: Processes that load images.
        device: Where to compute; None is where the model is. The model is not moved back.
        progress: Whether to show a bar.

    Returns:
        ``"f1"`` (micro, a logit from 0 on is a yes) and ``"map"`` (macro) for multi-hot labels, or
        ``"accuracy"`` and ``"worst_class_accuracy"``; ``"epg"`` and ``"iou"``, means over
        annotated (image, class) pairs, NaN without any; ``"on_object_epg"``, over the pairs of
        images with masks, where there are any; ``"epg_undefined"``, how many maps have no positive
        part or are not finite (a warning tells of these); ``"iou_threshold"`` where it was fitted, on
        the first layer; ``"images"``, ``"pairs"``, ``"skipped"``. With several layers ``"epg"``,
        ``"iou"`` and ``"on_object_epg"`` are means over layers, and ``"epg layer4"`` and so on are
        those of each.

    Raises:
        LayerError: For a layer that cannot be explained.
        OptionError: For another option that is not allowed.
        GuidanceError: For a model that cannot be explained, or that `fully_shard` has cut in pieces.
        DataError: If no image can be read, or labels and model do not fit.
    """
    check_option("region", region, ("boxes", "masks"))
    check_number("batch_size", batch_size, least=1, whole=True)
    check_number("workers", workers, least=0, whole=True)
    chosen = check_metrics(metrics)
    place = None if device is None else check_device(device)
    inner = unwrap(model, compiled_parts=True)
    check_whole(inner, remedy="Load its full state dict in a model of its own.")
    method, layers = place_attribution(
        inner,
        attribution,
        layer,
        reading=check_reading(output=output),
        movable=True,
    )
    count = check_data(data, name="data")
    if place is not None:
        inner.to(place)
    device = _device(inner)
    rank, world = process()
    source = batches(
        data,
        range(rank, count, world),
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    steps = -(-len(range(rank, count, world)) // batch_size)
    with _explaining(method, layers) as tap, torch.inference_mode(False), torch.no_grad():
        scores: ClassificationScores | None = None
        maps = {name: MapScores(chosen, threshold=threshold, device=device) for name in layers}
        totals = [0, 0, 0]
        with together(device):
            for batch in tqdm(source, "evaluate", steps, disable=not progress, leave=False):
                totals[0] += len(batch.images)
                totals[2] += batch.skipped
                if not batch.readable:
                    continue
                logits, pairs = _step(method, tap, batch, region, maps)
                check_labels(batch.labels, logits)
                if scores is None:
                    scores = ClassificationScores(
                        logits.shape[1], is_multilabel(batch.labels), device
                    )
                scores.update(logits, batch.labels)
                totals[1] += pairs
    scores = _of_all(scores, device)
    if scores is None:
        raise DataError(
            f"none of the {count} images could be read. See the warnings for their "
            "names. At least one must be readable."
        )
    shared = [int(total) for total in add_up(totals, device).tolist()]
    counts = dict(zip(("images", "pairs", "skipped"), shared, strict=True))
    return side_by_side(scores.compute(), over_layers(maps), counts)


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


@contextmanager
def _explaining(method: LayerMap, layers: dict[str, nn.Module | None]) -> Iterator[Tap]:
    """Evaluation mode and a tap, both undone on the way out."""
    tap = method.tap(layers)
    try:
        with evaluating(method.model), tap.alone():
            yield tap
    finally:
        tap.remove()


def _step(
    method: LayerMap, tap: Tap, batch: Batch, region: str, scores: dict[str, MapScores]
) -> tuple[Tensor, int]:
    """The logits of a batch, and of how many pairs the maps were scored."""
    images, annotations = batch.images, batch.annotations
    if not annotations.most_classes:
        output = method.model(images)
        return check_logits(output, reading=method.reading, images=len(images)), 0
    size = (int(images.shape[-2]), int(images.shape[-1]))
    with passing(tap, images) as passed:
        logits = method.logits(passed)
        scores_of_classes = class_scores(logits)
        boxes = as_regions(annotations.without_masks(), scores_of_classes, size)
        choice = choose_classes(
            "all", boxes, scores_of_classes, None, negatives=0.0, generator=None
        )
        maps, _ = explain(
            method,
            tap,
            passed,
            score=lambda z: torch.where(
                choice.valid, class_scores(z).gather(1, choice.classes.T).T, 0
            ),
            create_graph=False,
        )
    tap.forget()
    valid = choice.valid
    box = boxes.region(choice.classes, size)[valid]
    masks = None
    if annotations.masks is not None:
        masks = annotations.region(choice.classes, size)[valid]
    segmented = batch.segmented.to(valid.device).expand(valid.shape)[valid]
    for name, layer_maps in maps.items():
        pairs = layer_maps.detach()[valid][:, None]
        if pairs.shape[-2:] != size:
            pairs = F.interpolate(pairs, size, mode="bilinear", align_corners=False)
        target = box if masks is None or region == "boxes" else masks
        scores[name].update(pairs[:, 0], target, box, masks, segmented)
    return logits.detach(), int(valid.sum())
