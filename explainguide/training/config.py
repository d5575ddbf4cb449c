"""The settings of a training, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from explainguide.attr import ATTRIBUTIONS
from explainguide.errors import OptionError, check_option, did_you_mean, operation
from explainguide.losses import CLASS_LOSSES, LOSSES
from explainguide.losses.table import with_options

__all__ = ["TrainConfig"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": ("cosine", "constant", "one-cycle"),
    "optimizer": ("adamw", "adam", "sgd"),
    "attribution": tuple(ATTRIBUTIONS),
    "loss": tuple(LOSSES),
    "target": ("sample", "all", "predicted"),
    "score": ("logit", "log_prob", "sum_log_probs"),
    "reduction": ("mean", "sum"),
    "class_loss": CLASS_LOSSES,
    "region": ("boxes", "masks"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "device": ("auto", "cpu"),
}
_LEAST: dict[str, float] = {
    "epochs": 1,
    "batch_size": 1,
    "grad_accumulation": 1,
    "workers": 0,
    "seed": 0,
    "class_weight": 0,
    "weight_decay": 0,
    "dilate": 0,
}
_WHOLE = ("epochs", "batch_size", "grad_accumulation", "workers", "seed")
# What may change when a training goes on: how it runs, not what it computes. Not the workers:
# random transforms draw from each process's own numbers.
_FREE = ("output_dir", "device", "tensorboard")


@dataclass(frozen=True)
class TrainConfig:
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
        layer: ``"input"``, a dotted name, or several; None finds the last spatial layer.
        layer_weights: One factor a layer.
        attribution, loss, target, score, negatives, reduction: As
            `explainguide.ExplanationGuidance` takes them; names only. A mean is over all annotated
            images of a step: of all its batches, and of all processes.
        output: Which of several things that the model returns are the logits: an index, a key or an
            attribute.
        loss_options: Keyword arguments of the loss, such as ``{"normalize": False}``.
        class_loss: ``"task"`` is what the labels ask for, cross-entropy or, for multi-hot labels,
            binary cross-entropy; ``"confidence-boosting"`` asks a trained model to stay sure of its
            own answers (`explainguide.losses.confidence_boosting`).
        class_weight: w, the weight of the classification loss.
        temperature: Of confidence boosting.
        region: ``"boxes"``, or ``"masks"`` where the data have them.
        annotated: Fraction of the training images that keep their annotation.
        dilate: Growth of the boxes, as a fraction of their side, on each side; training only.
        threshold: Of the IoU in evaluation.
        seed: Of the order, the class draw, the choice of annotated images, and all else.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        grad_accumulation: Batches whose gradients make one step; equal to one large batch, up to
            BatchNorm.
        workers: Processes that load images.
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

    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip_grad_norm: float | None = None
    lam: float | None = None
    layer: str | tuple[str, ...] | None = None
    layer_weights: tuple[float, ...] | None = None
    attribution: str = "ixg"
    loss: str = "energy"
    loss_options: dict[str, Any] = field(default_factory=dict)
    target: str = "sample"
    score: str = "logit"
    negatives: float = 0.0
    reduction: str = "mean"
    output: int | str | None = None
    class_loss: str = "task"
    class_weight: float = 1.0
    temperature: float = 1.0
    region: str = "boxes"
    annotated: float = 1.0
    dilate: float = 0.0
    threshold: float = 0.5
    seed: int = 0
    mixed_precision: str = "no"
    grad_accumulation: int = 1
    workers: int = 0
    output_dir: str | None = None
    tensorboard: bool = False
    device: str = "auto"

    @operation("TrainConfig")
    def __post_init__(self) -> None:
        for name in ("layer", "layer_weights"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.output_dir is not None:
            object.__setattr__(self, "output_dir", str(self.output_dir))
        for name, allowed in _CHOICES.items():
            check_option(name, getattr(self, name), allowed)
        for name, least in _LEAST.items():
            _check_number(name, getattr(self, name), least)
        for name in ("lr", "temperature"):
            _check_number(name, getattr(self, name), 0, above=True)
        if self.clip_grad_norm is not None:
            _check_number("clip_grad_norm", self.clip_grad_norm, 0, above=True)
        if self.lam is not None:
            _check_number("lam", self.lam, 0)
        if isinstance(self.output, bool) or not isinstance(self.output, int | str | None):
            raise OptionError(
                f"output is {self.output!r}. Say which of the model's outputs are the "
                "logits, such as 1 or 'logits'. An index, a key or an attribute is allowed."
            )
        for name in ("annotated", "negatives", "threshold"):
            _check_number(name, getattr(self, name), 0, most=1)
        if self.temperature != 1 and self.class_loss != "confidence-boosting":
            raise OptionError(
                f"temperature is {self.temperature} with class_loss="
                f"{self.class_loss!r}. Use class_loss='confidence-boosting'. Other losses have no "
                "temperature; 1 is allowed."
            )
        if not isinstance(self.loss_options, Mapping) or not all(
            isinstance(value, bool | int | float | str) for value in self.loss_options.values()
        ):
            raise OptionError(
                f"loss_options is {self.loss_options!r}. Use a dict such as "
                "{'normalize': False}. Keyword arguments of the loss, numbers and words, are allowed."
            )
        object.__setattr__(self, "loss_options", dict(self.loss_options))
        with_options(self.loss, self.loss_options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        plain = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    @operation("TrainConfig")
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The settings that `to_dict` gave.

        Raises:
            OptionError: For a name that is no setting.
        """
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise OptionError(
                    f"unknown setting {name!r}.{did_you_mean(name, names)} "
                    f"{', '.join(names)} are allowed."
                )
        return cls(**values)

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


def _check_number(
    name: str, value: Any, least: float, *, most: float = float("inf"), above: bool = False
) -> None:
    whole = name in _WHOLE
    kinds = (int,) if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if good and math.isfinite(value) and least <= value <= most and not (above and value <= least):
        return
    form = f"{'A whole' if whole else 'A'} number"
    limit = (
        f"above {least:g}" if above else f"from {least:g} {'on' if most > 1 else f'to {most:g}'}"
    )
    hint = f" Did you mean {value / 100:g}?" if good and most == 1 and 1 < value <= 100 else ""
    raise OptionError(f"{name} is {value!r}.{hint} {form} {limit} is allowed.")
