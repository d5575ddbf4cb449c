"""The settings of a training, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from explainguide.errors import OptionError, check_option, operation
from explainguide.guidance.options import GuideOptions
from explainguide.guidance.settings import Shown, check_numbers, named_settings, setting

__all__ = ["TrainConfig"]

# What may change when a training goes on: how it runs, not what it computes. Not the workers:
# random transforms draw from each process's own numbers.
_FREE = ("output_dir", "device", "tensorboard", "log_interval", "compile")


_shown = partial(Shown, group="guidance")


@named_settings
@dataclass(frozen=True, kw_only=True)
class TrainConfig(GuideOptions):
    r"""Settings of :func:`explainguide.training.train`.

    The loss is :math:`w\, L_{class} + \lambda \sum_l w_l\, loss(A_l, M)`.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Images a forward pass.
        lr: Learning rate, the highest of the schedule.
        schedule: ``"cosine"`` (down to 0), ``"constant"``, or ``"one-cycle"`` (up, then down).
        optimizer: ``"adamw"``, ``"adam"``, or ``"sgd"`` (with momentum 0.9).
        weight_decay: Of the optimizer.
        clip_grad_norm: Largest norm of the gradient; None leaves it.
        lam: Weight of the localization loss; 0 trains without guidance, at no extra cost. None is
            1, or, where no training image is annotated, 0, which a warning says; a weight that is
            given is refused there.
        every: The localization loss is part of each `every`-th step of the optimizer, from the first
            on, and counted over all epochs; the steps between are plain ones. `lam` is the weight in
            the steps that have it and is not scaled, so that the mean gradient over steps is that of
            lam / every: to keep it, multiply `lam` by `every`.
        layer, layer_weights, attribution, attribution_options, loss, loss_options, target, score,
            negatives, reduction, output, layout, grid, prefix_tokens, image_size, image_argument,
            fast, rows: As `explainguide.guidance.GuideOptions`; by name only. A mean is over all
            annotated images of a step: of all its batches, and of all processes.
        class_loss: ``"task"`` is what the labels ask for, cross-entropy or, for multi-hot labels,
            binary cross-entropy; ``"confidence-boosting"`` asks a trained model to stay sure of its
            own answers (`explainguide.losses.confidence_boosting`).
        class_weight: w, the weight of the classification loss.
        temperature: Of confidence boosting.
        region: ``"boxes"``, or ``"masks"`` where the data have them.
        annotated: Fraction of the training images that keep their annotation.
        dilate: Growth of the boxes, as a fraction of their side, on each side; training only.
        threshold: Of the IoU in evaluation.
        fit_share: Fraction of the training images that are kept aside and never trained on: after each
            epoch the threshold of the IoU is fitted on those of them that are annotated, and takes the
            place of `threshold`. 0 keeps none.
        seed: Of the order, the class draw, the choice of annotated images, and all else.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        grad_accumulation: Batches whose gradients make one step; equal to one large batch, up to
            BatchNorm.
        log_interval: Steps between two readings of the losses, for the progress bar and for the check
            that they are finite, each of which waits for the device. Before that check a step that is
            not finite has no gradient; but momentum, weight decay and the steps after it move the
            weights. 1 checks each step before it moves anything.
        workers: Processes that load images.
        compile: Whether to compile what lies before the first guided layer (torch.compile), to the
            same values up to rounding. The maps of an evaluation are made without; its batches that
            have none run compiled.
        output_dir: Folder of checkpoints and logs; None writes nothing.
        tensorboard: Whether to log for TensorBoard too.
        device: ``"auto"`` or ``"cpu"``.

    Raises:
        OptionError: For a value that is not allowed.

    Example:
        >>> config = TrainConfig(epochs=3, lam=0.3, loss="l1")
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
    """

    epochs: int = setting(10, Shown("passes over the training images", least=1))
    batch_size: int = setting(32, Shown("images a forward pass", least=1))
    lr: float = setting(1e-3, Shown("highest learning rate", least=0, above=True))
    schedule: str = setting("cosine", Shown(choices=("cosine", "constant", "one-cycle")))
    optimizer: str = setting("adamw", Shown(choices=("adamw", "adam", "sgd")))
    weight_decay: float = setting(0.01, Shown("of the optimizer", least=0))
    clip_grad_norm: float | None = setting(
        None, Shown("largest norm of the gradient", kind=float, least=0, above=True)
    )
    lam: float | None = setting(
        None,
        _shown("weight of the localization loss; 0 trains without", kind=float, unset="1", least=0),
    )
    every: int = setting(
        1, _shown("localization loss in each N-th step only; lam is not scaled", least=1)
    )
    # A value an image ("none") has no place in a training.
    reduction: str = setting("mean", _shown("over annotated images", choices=("mean", "sum")))
    class_loss: str = setting(
        "task",
        _shown("what the labels ask for, or staying sure", choices=("task", "confidence-boosting")),
    )
    class_weight: float = setting(1.0, _shown("weight of the classification loss", least=0))
    temperature: float = setting(1.0, _shown("of confidence boosting", least=0, above=True))
    region: str = setting(
        "boxes", _shown("where a class should be found", choices=("boxes", "masks"))
    )
    annotated: float = setting(
        1.0, _shown("fraction of the training images with annotation", least=0, most=1)
    )
    dilate: float = setting(
        0.0, _shown("growth of the boxes on each side, as a fraction of it", least=0)
    )
    threshold: float = setting(0.5, _shown("of the IoU in evaluation", least=0, most=1))
    fit_share: float = setting(
        0.0,
        _shown("fraction of the training images kept aside to fit that threshold", least=0, most=1),
    )
    seed: int = setting(0, Shown("of everything random", least=0))
    mixed_precision: str = setting("no", Shown(choices=("no", "fp16", "bf16")))
    grad_accumulation: int = setting(1, Shown("batches a step", least=1))
    log_interval: int = setting(50, Shown("steps between two readings of the losses", least=1))
    workers: int = setting(0, Shown("processes that load images", least=0))
    compile: bool = setting(False, Shown("compile what lies before the first guided layer"))
    output_dir: str | None = setting(None)
    tensorboard: bool = setting(False, Shown("log for TensorBoard too"))
    device: str = setting("auto", Shown(choices=("auto", "cpu")))

    @operation("TrainConfig")
    def __post_init__(self) -> None:
        if self.output_dir is not None:
            object.__setattr__(self, "output_dir", str(self.output_dir))
        for field in fields(self):
            choices = field.metadata["shown"].choices
            if choices:
                check_option(field.name, getattr(self, field.name), choices)
        check_numbers(self)
        if self.temperature != 1 and self.class_loss != "confidence-boosting":
            raise OptionError(
                f"temperature is {self.temperature} with class_loss="
                f"{self.class_loss!r}. Use class_loss='confidence-boosting'. Other losses have no "
                "temperature; 1 is allowed."
            )
        if self.fit_share and self.threshold != 0.5:
            raise OptionError(
                f"threshold is {self.threshold:g} with fit_share={self.fit_share:g}. Leave one of them "
                "out: the threshold is fitted on the images kept aside. The default 0.5 is allowed."
            )
        for name in ("first_label", "sync_dist"):
            if getattr(self, name) != getattr(GuideOptions, name):
                raise OptionError(
                    f"{name} is {getattr(self, name)!r}. Leave it out: data sets count their classes "
                    "from 0, and a mean is over all processes. The default is allowed."
                )
        self._check()
        self.to_dict()  # which refuses what cannot be saved

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What another training computed differently, in words; empty where it can go on.

        Args:
            before: The other's settings, by `to_dict`.
        """
        # A setting that an older version did not have was what is now its default.
        before = {**TrainConfig().to_dict(), **before}
        return [
            f"{name} was {json.dumps(before[name])}, now {json.dumps(value)}"
            for name, value in self.to_dict().items()
            if name not in _FREE and before[name] != value
        ]
