r"""The reference training: classification and the localization loss together, on Accelerate.

Every epoch begins by seeding all random numbers from (seed, epoch), and a checkpoint is written at
its end. A run that is killed repeats the epoch in which it died and so goes on to the same weights.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from explainguide.batches import check_data
from explainguide.epochs import Run
from explainguide.errors import DataError
from explainguide.evaluation import evaluate
from explainguide.layers import resolve_layers, unwrap
from explainguide.options import named_attribution
from explainguide.probe import automatic_layer, probe_layers
from explainguide.run_folder import History, RunFolder
from explainguide.training_config import TrainConfig

__all__ = ["History", "TrainConfig", "train"]

_CALLER = "train"


def train(
    model: nn.Module,
    train_data: Any,
    val_data: Any,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    info: dict[str, Any] | None = None,
) -> History:
    r"""Train a model in place, evaluate it after every epoch, keep what is worth keeping.

    With an `output_dir` these files appear in it, each written whole or not at all: ``last.pt``
    (everything needed to go on), ``epoch_003.pt`` and so on for the epochs on the Pareto front of
    (F1 or accuracy, EPG, IoU), ``log.csv`` with one row an epoch, ``config.json``, and at the end
    ``weights.safetensors``.

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

    Returns:
        One row of numbers an epoch, the epochs on the Pareto front, and the count of images that
        could not be read.

    Raises:
        OptionError: If the folder holds a training and `resume` is not set, or the settings differ
            from those of the training that should go on.
        DataError: If a file cannot be read or written.
        GuidanceError: If the loss is not finite; the checkpoints stay as they are.
        LayerError, AnnotationError, ShapeError: As `ExplanationGuidance`.
    """
    config = config or TrainConfig()
    count = check_data(train_data, name="train_data", caller=_CALLER)
    check_data(val_data, name="val_data", caller=_CALLER)
    accelerator = _accelerator(config)
    inner = unwrap(model, caller=_CALLER)
    layer = config.layer
    if layer is None:  # of the attribution's own choice, where it has one
        layer = named_attribution(config.attribution, inner, None, caller=_CALLER).layer
    if layer is None:
        layer = automatic_layer(inner, probe_layers(inner, caller=_CALLER), caller=_CALLER)
    resolve_layers(inner, _as_list(layer), caller=_CALLER)
    folder = RunFolder(config, info or {}, images=count, main=accelerator.is_main_process)
    history = folder.history
    run = Run(model, train_data, config, _as_list(layer), accelerator)
    try:
        with run.guide(epoch=1):  # settings that do not fit the model, before anything is written
            pass
        payload = folder.open(resume=resume)
        if payload is not None:
            run.load(payload)
        for epoch in range(len(history.rows) + 1, config.epochs + 1):
            began = time.perf_counter()
            losses = run.epoch(epoch, history, progress=progress and accelerator.is_main_process)
            if math.isnan(losses["loss"]):  # a loss that is not finite stops its own step
                raise DataError(
                    f"train: none of the {len(train_data)} training images could be read. See the "
                    "warnings for their names. At least one must be readable."
                )
            scores = evaluate(
                run.inner,
                val_data,
                layer=_as_list(layer),
                attribution=config.attribution,
                region=config.region,  # type: ignore[arg-type]
                threshold=config.threshold,
                batch_size=config.batch_size,
                workers=config.workers,
            )
            skipped = losses.pop("skipped") + scores.pop("skipped")
            row = {"epoch": epoch, **losses, **scores, "skipped": skipped}
            row["seconds"] = time.perf_counter() - began
            folder.finish_epoch(row, run.state())
        folder.finish(run.inner.state_dict(), layer=_as_list(layer))
    finally:
        folder.close()
        run.close()
    if progress and accelerator.is_main_process and history.skipped:
        print(
            f"{history.skipped} images could not be read in an epoch and were left out; the "
            "warnings name them."
        )
    return history


def _as_list(layer: str | tuple[str, ...]) -> str | list[str]:
    return layer if isinstance(layer, str) else list(layer)


def _accelerator(config: TrainConfig) -> Accelerator:
    # Accelerate keeps the settings of the first training of a process; each has its own here.
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    return Accelerator(mixed_precision=config.mixed_precision, cpu=config.device == "cpu")
