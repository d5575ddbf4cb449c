"""The rows of ``explainguide evaluate``: a model, an attribution and a layer each, and its numbers."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Subset

import explainguide
from explainguide.attr import LayerMap
from explainguide.attr.any_attribution import as_explainer, is_own
from explainguide.attr.references import REFERENCES
from explainguide.cli.judged import Judged, Named
from explainguide.cli.layers import list_stages
from explainguide.cli.settings import given_settings
from explainguide.errors import DataError, ExplainGuideError, operation
from explainguide.evaluation.grid_game import GridGame, grid_game
from explainguide.evaluation.measure import evaluate
from explainguide.evaluation.record import BatchMaps, Record, Scores
from explainguide.files import replace_file
from explainguide.guidance.options import EXPLAINING, GuideOptions, explaining
from explainguide.hooks.layers import INPUT
from explainguide.hooks.probe import automatic_layer, probe_layers
from explainguide.hooks.reading import Reading
from explainguide.processes import process

__all__ = ["EXPLAINED", "Row", "ScoreFolder", "measure", "middle_and_last"]

# The options of maps that the command has, but for the attribution, of which it takes several.
EXPLAINED = tuple(name for name in EXPLAINING if name != "attribution")
# The options that decide, beside `Judged.images`, which images are judged and how they look.
_DECIDES = ("limit", "size", "fit_on", "fit_boxes")


class _Job(NamedTuple):
    """An attribution of a model at one layer or several, which take one pass over the images.

    Attributes:
        name: What tables call it.
        attribution: As `evaluate` takes it.
        layers: Their names.
        settings: All that its maps depend on besides, in plain values.
        output: Which of several things that the model returns are the logits.
    """

    name: str
    attribution: Any
    layers: list[str]
    settings: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Row:
    """What was measured of one model, attribution and layer.

    Attributes:
        model: What it is called.
        attribution: Its name.
        layer: Dotted name, or ``"input"``.
        numbers: As `evaluate` returns them, of this layer alone.
        scores: One by one; of this layer, and perhaps of others.
        judged: The model and its images.
        job: The attribution.
        reference: Whether the attribution knows nothing of the model.
    """

    model: str
    attribution: str
    layer: str
    numbers: Mapping[str, float]
    scores: Scores
    judged: Judged
    job: _Job
    reference: bool = False

    def skipped(self) -> list[str]:
        """The names of the images that could not be read."""
        names, read = self.judged.names, set(self.scores.images.tolist())
        return [name for index, name in enumerate(names) if index not in read]

    def look(self, images: Sequence[int]) -> dict[tuple[int, int], Tensor]:
        """The maps of some items of the data set, by item and class, ``(H, W)`` each."""
        chosen = sorted(set(images))
        found: dict[tuple[int, int], Tensor] = {}

        def keep(batch: BatchMaps) -> None:
            items = [chosen[index] for index in batch.indices.tolist()]
            pairs = zip(batch.rows.tolist(), batch.classes.tolist(), strict=True)
            maps = batch.maps.get(self.layer, ())
            for (row, k), own in zip(pairs, maps, strict=True):
                found[items[row], k] = own.cpu()

        evaluate(
            self.judged.model,
            Subset(self.judged.data, chosen),
            layer=self.job.layers,
            attribution=self.job.attribution,
            output=self.job.output,
            metrics=[],
            on_batch=keep,
        )
        return found

    def play(self, n: int, *, examples: int) -> GridGame:
        """The grid pointing game once more, with grids to look at and the maps of the first cell."""
        method = self.job.attribution
        # As `evaluate` plays it: nothing flows from one cell into another.
        if isinstance(method, LayerMap):
            explainer = as_explainer(method.at(self.layer), self.judged.model, interpolate=False)
        else:
            explainer = copy.copy(method)
            explainer.interpolate = False
        return grid_game(
            self.judged.model,
            explainer,
            self.judged.data,
            n=n,
            output=self.job.output,
            by="sigmoid" if self.scores.labels.ndim == 2 else "softmax",
            examples=examples,
            keep_cell=0,
        )


class ScoreFolder:
    """Keeps what was measured, so that an interrupted command goes on.

    Args:
        path: The folder; it is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def kept(
        self, key: Mapping[str, Any], compute: Callable[[], tuple[dict[str, float], Scores]]
    ) -> tuple[dict[str, float], Scores]:
        """What was measured with these settings, or what is computed now.

        Args:
            key: All that the numbers depend on, in plain values.
            compute: Measures.
        """
        text = json.dumps(key, sort_keys=True, default=str)
        file = self._path / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if file.exists():
            found = json.loads(file.read_text())
            if found["key"] == json.loads(text):
                return found["numbers"], Scores.from_dict(found["scores"])
        numbers, scores = compute()
        content = {"key": json.loads(text), "numbers": numbers, "scores": scores.to_dict()}
        replace_file(file, lambda opened: opened.write(json.dumps(content).encode()))
        return numbers, scores


def measure(
    named: Named,
    judged: Judged,
    args: argparse.Namespace,
    *,
    metrics: Sequence[str],
    threshold: Any,
    references: Sequence[str],
    folder: ScoreFolder | None,
    failed: Callable[[str], object],
) -> Iterator[Row]:
    """Judge a model by every attribution that is named.

    Args:
        named: What it is called.
        judged: The model and its images.
        args: The options of the command.
        metrics: Their keys.
        threshold: Of the IoU; None for the training's.
        references: Names of references that are judged too.
        folder: Where the numbers are kept.
        failed: Is told of an attribution that cannot be computed; the others go on.

    Yields:
        A row for each attribution and layer.
    """
    asked: list[str | None] = list(dict.fromkeys(args.attribution or [None]))
    for name in (*asked, *references):
        try:
            jobs = list(_jobs(name, judged, args, failed))
        except ExplainGuideError as error:
            if len(asked) == 1:
                raise
            failed(str(error))
            continue
        for job in jobs:
            try:
                numbers, scores = _evaluate(
                    job,
                    named,
                    judged,
                    args,
                    metrics=metrics,
                    threshold=threshold,
                    folder=folder,
                )
            except ExplainGuideError as error:
                own_alone = len(asked) == 1 and isinstance(job.attribution, LayerMap)
                if own_alone or isinstance(
                    error, DataError
                ):  # of the data: the others would fail too
                    raise
                failed(str(error))
                continue
            for layer in job.layers:
                own = _of_layer(numbers, layer, job.layers)
                reference = name in REFERENCES
                yield Row(named.label, job.name, layer, own, scores, judged, job, reference)


def _jobs(
    name: str | None, judged: Judged, args: argparse.Namespace, failed: Callable[[str], object]
) -> Iterator[_Job]:
    """What must be computed for an attribution, the training's where none is named."""
    own = name is None or is_own(name)
    options = _options(args, judged.config, name if own else None)
    asked: Any = options.layer
    if args.ml_att:
        asked = ["input", *middle_and_last(judged.model, options.reading)]
    if own:
        placed = replace(options, layer=asked).place(judged.model)
        settings = {key: value for key, value in options.to_dict().items() if key in EXPLAINING}
        yield _Job(
            str(options.attribution), placed.method, list(placed.layers), settings, options.output
        )
        return
    assert name is not None
    given = given_settings(args, GuideOptions, only=("attribution_options",))
    arguments = None if name in REFERENCES else given.get("attribution_options")
    reading = {
        key: value for key, value in vars(options.reading).items() if key != "image_argument"
    }
    explainer = partial(as_explainer, name, judged.model, arguments=arguments, **reading)
    layers: list[Any] = [None]
    for layer in layers:
        try:
            with operation("--attribution"):
                found = explainer(layer=layer)
        except ExplainGuideError as error:
            failed(str(error))
            continue
        if layer is None and found.layer != INPUT and (args.layer or args.ml_att):
            layers += [asked] if isinstance(asked, str) else list(asked)  # it can be placed
            continue
        yield _Job(name, found, [found.layer], {"arguments": arguments, **reading}, options.output)


def _options(
    args: argparse.Namespace, config: Mapping[str, Any], attribution: str | None
) -> GuideOptions:
    """Those of the training, but for what is given; another attribution has no options of the old."""
    given = given_settings(args, GuideOptions, only=EXPLAINED)
    if attribution is not None:
        given = {"attribution_options": {}, **given, "attribution": attribution}
    return explaining({**config, **given})


def middle_and_last(model: nn.Module, reading: Reading) -> list[str]:
    """The last spatial layer, and before it the one half way among the model's stages or blocks."""
    layers = probe_layers(model, reading=reading)
    last = automatic_layer(model, layers)
    stages = [layer.name for layer in list_stages(model, layers, last)]
    before = stages[: stages.index(last)]
    return [*([before[len(before) // 2]] if before else []), last]


def _evaluate(
    job: _Job,
    named: Named,
    judged: Judged,
    args: argparse.Namespace,
    *,
    metrics: Sequence[str],
    threshold: Any,
    folder: ScoreFolder | None,
) -> tuple[dict[str, float], Scores]:
    """The numbers, from the folder where they are there already."""
    saver = None
    if args.save_maps is not None:
        saver = _MapFiles(Path(args.save_maps), named, job, judged)
    usual = judged.config["threshold"] if judged.fit_on is None else 0.5
    how = {
        "region": args.region or judged.config["region"],
        "threshold": usual if threshold is None else threshold,
        "metrics": list(metrics),
        "grid_size": args.grid_size,
        "batch_size": args.batch_size,
    }

    def compute() -> tuple[dict[str, float], Scores]:
        record = Record()

        def keep(batch: BatchMaps) -> None:
            record.add(batch)
            if saver is not None:
                saver.add(batch)

        numbers = evaluate(
            judged.model,
            judged.data,
            layer=job.layers,
            attribution=job.attribution,
            output=job.output,
            fit_on=judged.fit_on,
            workers=args.workers,
            progress=process()[0] == 0 and not args.quiet,
            on_batch=keep,
            **how,
        )
        return numbers, record.finish()

    if folder is None or saver is not None or process()[1] > 1:
        return compute()
    key = {
        **how,
        "attribution": job.name,
        "settings": job.settings,
        "layers": job.layers,
        "version": explainguide.__version__,
        "threshold of": None if judged.fit_on is None else "fit_on",
        "model": named.model,
        "file": _fingerprint(named.file),
        "images": judged.images,
        "options": {name: value for name, value in vars(args).items() if name in _DECIDES},
    }
    return folder.kept(key, compute)


def _fingerprint(file: str | None) -> str | None:
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _of_layer(numbers: Mapping[str, float], layer: str, layers: Sequence[str]) -> dict[str, float]:
    """The numbers of one of several layers, under their plain names."""
    if len(layers) < 2:
        return dict(numbers)
    of_layers = {f"{key} {name}" for key in numbers for name in layers} & set(numbers)
    own = {
        key: numbers[f"{key} {layer}"] if f"{key} {layer}" in of_layers else value
        for key, value in numbers.items()
        if key not in of_layers
    }
    return own


class _MapFiles:
    """Writes the maps of each image to a file of its name."""

    def __init__(self, folder: Path, named: Named, job: _Job, judged: Judged) -> None:
        self._folder = folder / _word(named.label) / _word(job.name)
        self._names, self._classes = judged.names, judged.classes

    def add(self, batch: BatchMaps) -> None:
        """Write those of a batch."""
        rows, classes = batch.rows.cpu(), batch.classes.cpu().numpy()
        maps = {layer: own.float().cpu().numpy() for layer, own in batch.maps.items()}
        for row, index in enumerate(batch.indices.tolist()):
            of_image = (rows == row).numpy()
            if not of_image.any():
                continue
            content = {
                "classes": classes[of_image],
                "names": np.asarray([self._classes[k] for k in classes[of_image]]),
            }
            for layer, own in maps.items():
                file = self._folder / _word(layer) / f"{self._names[index]}.npz"
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    replace_file(file, partial(np.savez_compressed, maps=own[of_image], **content))
                except OSError as error:
                    raise DataError(
                        f"'{file}' could not be written ({error.strerror or error}). Name another "
                        "folder with --save-maps, or free some space. Files before it are whole."
                    ) from error


def _word(text: str) -> str:
    """A name that every file system takes; another one for another text."""
    word = re.sub(r"[^\w.+-]+", "_", text).strip("_.")
    return word if word == text else f"{word}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
