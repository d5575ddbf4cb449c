"""Every number of a model on a data set: how well it classifies, and what it looks at."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from explainguide.annotations.regions import as_regions, choose_classes
from explainguide.attr import LayerMap
from explainguide.attr.base import gather, usable
from explainguide.datasets.batches import Batch, batches, check_data
from explainguide.errors import DataError, OptionError, check_option, operation
from explainguide.evaluation.classification import ClassificationScores, check_labels, is_multilabel
from explainguide.guidance.options import named_attribution, place
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.layers import resolve_layers, unwrap
from explainguide.hooks.logits import check_logits, class_scores
from explainguide.hooks.probe import automatic_layer, probe_layers
from explainguide.hooks.reading import Output, check_reading
from explainguide.hooks.tap import ForwardPass, Tap
from explainguide.metrics import EnergyPointingGame, LocalizationIoU, OnObjectEnergy
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
        batch_size: Images a forward pass.
        workers: Processes that load images.
        device: Where to compute; None is where the model is. The model is not moved back.
        progress: Whether to show a bar.

    Returns:
        ``"f1"`` (micro, a logit from 0 on is a yes) and ``"map"`` (macro) for multi-hot labels, or
        ``"accuracy"`` and ``"worst_class_accuracy"``; ``"epg"`` and ``"iou"``, means over
        annotated (image, class) pairs, NaN without any; ``"on_object_epg"``, over the pairs of
        images with masks, where there are any; ``"epg_undefined"``, how many maps have no positive
        part; ``"iou_threshold"`` where it was fitted; ``"images"``, ``"pairs"``, ``"skipped"``.
        With several layers ``"epg"``, ``"iou"`` and ``"on_object_epg"`` are means over layers, and
        ``"epg layer4"`` and so on are those of each.

    Raises:
        LayerError: For a layer that cannot be explained.
        OptionError: For another option that is not allowed.
        DataError: If no image can be read, or labels and model do not fit.
    """
    check_option("region", region, ("boxes", "masks"))
    if isinstance(layer, tuple):
        layer = list(layer)
    inner = unwrap(model)
    method = _method(attribution, inner, layer, output)
    count = check_data(data, name="data")
    if layer is None and method.layer is not None:
        layer = method.layer
    if layer is None:
        layer = automatic_layer(inner, probe_layers(inner, reading=method.reading))
    modules = resolve_layers(inner, layer)
    if device is not None:
        inner.to(device)
    place = _device(inner)
    rank, world = process()
    source = batches(
        data,
        range(rank, count, world),
        batch_size=batch_size,
        workers=workers,
        device=place,
    )
    steps = -(-len(range(rank, count, world)) // batch_size)
    with _explaining(inner, modules, method) as tap, torch.inference_mode(False), torch.no_grad():
        found: ClassificationScores | None = None
        maps = {name: _MapScores(threshold, place) for name in modules}
        totals = [0, 0, 0]
        with together(place):
            for batch in tqdm(source, "evaluate", steps, disable=not progress, leave=False):
                totals[0] += len(batch.images)
                totals[2] += batch.skipped
                if not batch.readable:
                    continue
                logits, pairs = _step(inner, modules, tap, method, batch, region, maps)
                check_labels(batch.labels, logits)
                if found is None:
                    found = ClassificationScores(
                        logits.shape[1], is_multilabel(batch.labels), place
                    )
                found.update(logits, batch.labels)
                totals[1] += pairs
    found = _of_all(found, place)
    if found is None:
        raise DataError(
            f"none of the {count} images could be read. See the warnings for their "
            "names. At least one must be readable."
        )
    shared = [int(total) for total in add_up(totals, place).tolist()]
    counts = dict(zip(("images", "pairs", "skipped"), shared, strict=True))
    return {**found.compute(), **_map_results(maps, threshold), **counts}


def _of_all(
    found: ClassificationScores | None, device: torch.device
) -> ClassificationScores | None:
    """Scores in every process that has none of its own, where another process has some."""
    own = [0, 0] if found is None else [found.num_classes, found.multilabel]
    num_classes, multilabel = add_up(own, device, most=True).tolist()
    if found is None and num_classes:
        found = ClassificationScores(int(num_classes), bool(multilabel), device)
        found.add_nothing()
    return found


def _method(
    attribution: str | LayerMap,
    model: nn.Module,
    layer: str | Sequence[str] | None,
    output: Output | None,
) -> LayerMap:
    if isinstance(attribution, LayerMap):
        if attribution.model is not model:
            raise OptionError(
                f"the attribution {type(attribution).__name__} was built for another "
                "model. Build it with the model that is evaluated. A name is allowed too."
            )
        if output not in (None, attribution.reading.output):
            raise OptionError(
                f"output is {output!r}, but the attribution was built with "
                f"{attribution.reading.output!r}. Leave out one of the two. They must agree."
            )
        return place(attribution, layer)
    reading = check_reading(output=output)
    return named_attribution(attribution, model, layer, reading=reading)


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _explaining(
    model: nn.Module, modules: dict[str, nn.Module | None], method: LayerMap
) -> Iterator[Tap]:
    """Evaluation mode and a tap, both undone on the way out."""
    tap = method.tap(modules)
    try:
        with evaluating(model), tap.alone():
            yield tap
    finally:
        tap.remove()


def _step(
    model: nn.Module,
    modules: dict[str, nn.Module | None],
    tap: Tap,
    method: LayerMap,
    batch: Batch,
    region: str,
    scores: dict[str, _MapScores],
) -> tuple[Tensor, int]:
    """The logits of a batch, and of how many pairs the maps were scored."""
    if not batch.annotations.most_classes:
        output = model(batch.images)
        return check_logits(output, reading=method.reading, images=len(batch.images)), 0
    images = batch.images
    size = (int(images.shape[-2]), int(images.shape[-1]))
    with torch.enable_grad():
        model(usable(images))
        passed = cast(ForwardPass, tap.last)
        logits = method.logits(passed)
        scores_of_classes = class_scores(logits)
        annotations = batch.annotations
        boxes = as_regions(annotations.without_masks(), scores_of_classes, size)
        choice = choose_classes(
            "all", boxes, scores_of_classes, None, negatives=0.0, generator=None
        )
        evidence = gather(
            method,
            modules,
            tap,
            passed,
            score=lambda z: torch.where(
                choice.valid, class_scores(z).gather(1, choice.classes.T).T, 0
            ),
            create_graph=False,
        )
        maps = method.maps(evidence)
    tap.forget()
    valid = choice.valid
    box = boxes.region(choice.classes, size)[valid]
    masks = None
    if annotations.masks is not None:
        masks = annotations.region(choice.classes, size)[valid]
    segmented = batch.segmented.to(valid.device).expand(valid.shape)[valid]
    for name, found in maps.items():
        pairs = found.detach()[valid][:, None]
        if pairs.shape[-2:] != size:
            pairs = F.interpolate(pairs, size, mode="bilinear", align_corners=False)
        target = box if masks is None or region == "boxes" else masks
        scores[name].update(pairs[:, 0], target, box, masks, segmented)
    return logits.detach(), int(valid.sum())


class _MapScores:
    """The localization metrics of one layer."""

    def __init__(self, threshold: float | Literal["fit"], device: torch.device) -> None:
        self.epg = EnergyPointingGame().to(device)
        self.iou = LocalizationIoU(threshold=threshold).to(device)
        self.on_object = OnObjectEnergy().to(device)

    def update(
        self, maps: Tensor, target: Tensor, box: Tensor, masks: Tensor | None, segmented: Tensor
    ) -> None:
        self.epg.update(maps, target)
        self.iou.update(maps, target)
        if masks is not None:  # rows of boxes alone are left out
            self.on_object.update(maps[segmented], masks[segmented], box[segmented])

    def compute(self) -> dict[str, float]:
        with warnings.catch_warnings():
            # Without annotations there is nothing to update, and NaN says so.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            found = {name: float(getattr(self, name).compute()) for name in ("epg", "iou")}
            on_object = float(self.on_object.compute())
        if on_object == on_object:
            found["on_object_epg"] = on_object
        found["epg_undefined"] = self.epg.undefined
        return found


def _map_results(
    scores: dict[str, _MapScores], threshold: float | Literal["fit"]
) -> dict[str, float]:
    each = {name: score.compute() for name, score in scores.items()}
    first = next(iter(each.values()))
    total = {key: sum(e[key] for e in each.values()) for key in first}
    found = {
        key: value if key.endswith("_undefined") else value / len(each)
        for key, value in total.items()
    }
    if threshold == "fit":
        found["iou_threshold"] = next(iter(scores.values())).iou.best_threshold
    if len(each) > 1:
        found |= {f"{k} {name}": v for name, e in each.items() for k, v in e.items()}
    return found
