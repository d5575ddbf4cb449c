r"""The reference training: classification and the localization loss together, on Accelerate.

Every epoch begins by seeding all random numbers from (seed, epoch), and a checkpoint is written at
its end. A run that is killed repeats the epoch in which it died and so goes on to the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import Subset

from explainguide.annotations import LimitedAnnotations
from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.batches import check_data, count_annotated, stream_seed
from explainguide.errors import (
    DataError,
    GuidanceError,
    OptionError,
    operation,
    warn,
)
from explainguide.evaluation.measure import evaluate
from explainguide.hooks.layers import unwrap
from explainguide.hooks.sharded import check_whole
from explainguide.metrics.table import side_by_side
from explainguide.processes import process, together
from explainguide.training.config import TrainConfig
from explainguide.training.epochs import TrainingRun
from explainguide.training.run_folder import History, RunFolder

__all__ = ["History", "TrainConfig", "train"]

_NOTHING_TO_MEASURE = (
    "no image of val_data is annotated, so EPG and IoU are not known. Give boxes (--val-boxes for "
    "--data folder) to measure them."
)


@operation("train")
def train(
    model: nn.Module,
    train_data: Any,
    val_data: Any,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    info: dict[str, Any] | None = None,
    on_epoch: Callable[[dict[str, float]], object] | None = None,
) -> History:
    r"""Train a model in place, evaluate it after every epoch, keep what is worth keeping.

    With an `output_dir` these files appear in it, each written whole or not at all: ``last.pt``
    (everything needed to go on), ``epoch_003.pt`` and so on for the epochs on the Pareto front of
    (F1 or accuracy, EPG, IoU), ``log.csv`` with one row an epoch, ``config.json``, and at the end
    ``weights.safetensors``.

    In a distributed run each process takes its share of every batch, and the weights are those of
    one process with batches as large as all of theirs together, up to BatchNorm and random draws.
    Where one process stops with an error, all do.

    A batch of one image is left out where a BatchNorm would see one value a channel of it.

    Each module is in the mode, training or evaluation, that it was in before; after an error too.

    Costs, where an image is annotated, about one more backward pass through the layers above the
    guided one, differentiated once more; next to nothing for batches without annotation.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        train_data: Items ``(image, labels, annotation)``; None for an image that could not be read.
            Labels are an int (cross-entropy), or multi-hot floats (binary cross-entropy).
        val_data: The same, for evaluation.
        config: The settings.
        resume: Go on after the last whole epoch in `output_dir`, or begin where there is none. On
            one CPU process the final weights are bitwise those of an uninterrupted run.
        progress: Whether to show a bar and, at the end, a line on images that could not be read.
        info: Plain values to keep in the checkpoints; with ``"name"`` and ``"num_classes"``, as
            `explainguide.models.build_model` takes them, `explainguide.checkpoints.load_model`
            needs nothing but the file.
        on_epoch: Called after each epoch, in every process, with the row of numbers that the history
            gets; an exception ends the training, and the checkpoints stay.

    Returns:
        One row of numbers an epoch, the epochs on the Pareto front, and the count of images that
        could not be read.

    Raises:
        OptionError: If the folder holds a training and `resume` is not set, the settings differ
            from those of the training that should go on, or `lam` is given and nothing is
            annotated.
        DataError: If a file cannot be read or written.
        GuidanceError: If the loss is not finite, or another process stopped with an error; the
            checkpoints stay as they are. For a model that `fully_shard` has cut in pieces.
        LayerError, AnnotationError, ShapeError: As `ExplanationGuidance`.
    """
    if not isinstance(config, TrainConfig | None):
        fix = (
            "TrainConfig.from_dict(config)" if isinstance(config, dict) else "TrainConfig(epochs=3)"
        )
        raise OptionError(
            f"config is a {type(config).__name__}. Use {fix}. A TrainConfig is allowed, or None "
            "for its defaults."
        )
    config = config or TrainConfig()
    count = check_data(train_data, name="train_data")
    check_data(val_data, name="val_data")
    if config.annotated < 1:
        train_data = LimitedAnnotations(train_data, config.annotated, seed=config.seed)
    train_data, kept_aside = _keep_aside(train_data, config)
    accelerator = _accelerator(config)
    main = process()[0] == 0  # a launched process joins the others when Accelerate is set up
    with together(accelerator.device):
        config = _check_annotated(config, train_data, val_data)
        inner = unwrap(model, compiled_parts=True)
        check_whole(inner, remedy="Call train before it, or guide a loop of your own.")
        placed = config.options.place(inner)
        layers = list(placed.layers)
        layer = layers[0] if len(layers) == 1 else layers
    folder = RunFolder(config, info or {}, images=count, main=main)
    history = folder.history
    run = TrainingRun(inner, train_data, config, layer, accelerator)
    try:
        run.prepare()
        with together(accelerator.device):
            with run.guide(epoch=1):  # settings that do not fit the model, before any file
                pass
            payload = folder.open(resume=resume)
            if payload is not None:
                run.load(payload)
        for epoch in range(len(history.rows) + 1, config.epochs + 1):
            began = time.perf_counter()
            losses = run.epoch(epoch, history, progress=progress and main)
            if math.isnan(losses["loss"]):  # one that is not finite has stopped the epoch
                raise DataError(
                    f"none of the {len(train_data)} training images could be read. See the "
                    "warnings for their names. At least one must be readable."
                )
            scores = evaluate(
                inner,
                val_data,
                layer=layer,
                attribution=placed.method,
                region=config.region,  # type: ignore[arg-type]
                threshold=config.threshold,
                fit_on=kept_aside,
                batch_size=config.batch_size,
                workers=config.workers,
            )
            if epoch == 1 and config.lam:
                _say_what_is_missing(losses, scores, val_data, every=config.every)
            skipped = losses.pop("skipped") + scores.pop("skipped")
            seconds = time.perf_counter() - began
            last = {"skipped": skipped, "seconds": seconds}
            row = side_by_side({"epoch": epoch}, losses, scores, last)
            with together(accelerator.device):
                folder.finish_epoch(row, run.state())
            if on_epoch is not None:
                on_epoch(dict(row))
        with together(accelerator.device):
            folder.finish(inner.state_dict(), layer=layer)
    finally:
        folder.close()
        run.close()
    if progress and main and history.skipped:
        print(
            f"{history.skipped} images could not be read in an epoch and were left out; the "
            "warnings name them."
        )
    return history


def _keep_aside(train_data: Any, config: TrainConfig) -> tuple[Any, Any]:
    """The images to train on, and those to fit the threshold of the IoU on; None without any.

    Images kept aside are annotated as sparsely as the others, so that they cost no more boxes.
    """
    if not config.fit_share:
        return train_data, None
    seed = stream_seed(config.seed, 0, 0)  # not that of the annotated ones, who would all be drawn
    aside = draw_annotated(len(train_data), config.fit_share, seed, option="fit_share")
    if aside.all():
        raise OptionError(
            f"fit_share is {config.fit_share:g}, which leaves none of {len(train_data)} images to "
            "train on. Use 0.1. A smaller fraction is allowed."
        )
    kept = Subset(train_data, torch.nonzero(aside).flatten().tolist())
    if count_annotated(kept) == 0:
        raise OptionError(
            f"fit_share is {config.fit_share:g}, but none of the {len(kept)} images kept aside is "
            "annotated, so that no threshold can be fitted on them. Use a larger share, or annotate "
            "more. One annotated image among them is enough."
        )
    return Subset(train_data, torch.nonzero(~aside).flatten().tolist()), kept


def _check_annotated(config: TrainConfig, train_data: Any, val_data: Any) -> TrainConfig:
    """The settings with a number for lam, which is 0 where it is not given and nothing is annotated.

    Raises:
        OptionError: If it is given and nothing is annotated.
    """
    nothing = count_annotated(train_data) == 0
    if nothing and config.lam:
        share = f" (annotated={config.annotated:g})" if config.annotated < 1 else ""
        raise OptionError(
            f"lam is {config.lam:g}, but no image of train_data is annotated{share}, so "
            "that there is nothing to guide with. Give boxes (--boxes for --data folder), or lam=0. "
            "One annotated image is enough."
        )
    if nothing and config.lam is None:
        _warn(
            "no image of train_data is annotated, so the training goes without guidance (lam=0). "
            "Give boxes (--boxes for --data folder) to guide it."
        )
    lam = config.lam if config.lam is not None else 0.0 if nothing else 1.0
    if lam and count_annotated(val_data) == 0:
        _warn(_NOTHING_TO_MEASURE)
    return replace(config, lam=lam)


def _say_what_is_missing(
    losses: dict[str, float], scores: dict[str, float], val_data: Any, *, every: int
) -> None:
    """After the first epoch, of data sets that do not say it before."""
    if math.isnan(losses["loss_loc"]) and every > 1:
        _warn(
            f"no image of the steps of the first epoch that are guided was annotated (every={every}), "
            "so nothing was guided in it. Give more annotations, larger batches, or a smaller every."
        )
    elif math.isnan(losses["loss_loc"]):
        _warn(
            "no training image of the first epoch was annotated, so nothing was guided. Give "
            "annotations, or set lam=0."
        )
    if not scores["pairs"] and count_annotated(val_data) is None:
        _warn(_NOTHING_TO_MEASURE)


def _warn(text: str) -> None:
    if process()[0] == 0:
        warn(text)


def _accelerator(config: TrainConfig) -> Accelerator:
    # Accelerate keeps the settings of the first training of a process; each has its own here.
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.device == "cpu")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise GuidanceError(
            f"Accelerate is set up for {accelerator.distributed_type.value}, which cuts the model "
            "in pieces. Launch with --multi_gpu. A copy of the model in every process is allowed."
        )
    return accelerator
