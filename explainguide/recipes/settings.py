"""What a recipe is: the settings of a published method, and what can be done with them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, fields
from inspect import signature
from typing import Any

from torch import Tensor, nn

from explainguide.errors import LayerError, OptionError, did_you_mean, operation
from explainguide.guidance.guide import ExplanationGuidance
from explainguide.hooks.layers import INPUT, list_layers, unwrap
from explainguide.losses import classification_loss
from explainguide.losses.table import with_options
from explainguide.training.config import TrainConfig

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    r"""The settings of a published method.

    .. math:: L = w\, L_{class} + \lambda \sum_l w_l\, loss(A_l(x, k), M_k)

    What a paper does not say, or says for a program with another loss, is None, and `config` takes
    the default of `TrainConfig` for it. A copy with other values is `dataclasses.replace`.

    Attributes:
        name: What `recipe` calls it.
        text: What it does, in a sentence.
        source: Paper, equations, tables.
        advice: What to know before it is used, the learning rate above all.
        attribution, loss, layer, layer_weights, target, score, reduction: As
            `ExplanationGuidance` takes them. The weights and :math:`\lambda` belong to the
            reduction.
        loss_options: Keyword arguments of the loss.
        lam: :math:`\lambda`; one of `lambdas` where there are several.
        lambdas: The values that the paper tries, for this loss.
        region: What M is: ``"boxes"`` or ``"masks"``.
        class_loss, class_weight, temperature: As in `TrainConfig`.
        lr, batch_size, epochs, optimizer, weight_decay, schedule: Likewise.
    """

    name: str
    text: str
    source: str
    advice: str
    attribution: str
    loss: str
    lam: float
    layer: str | tuple[str, ...] | None = None
    layer_weights: tuple[float, ...] | None = None
    loss_options: dict[str, Any] = field(default_factory=dict)
    target: str = "sample"
    score: str = "logit"
    reduction: str = "mean"
    lambdas: tuple[float, ...] = ()
    region: str = "boxes"
    class_loss: str = "task"
    class_weight: float = 1.0
    temperature: float = 1.0
    lr: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    schedule: str | None = None

    @operation("Recipe.guide")
    def guide(self, model: nn.Module, **overrides: Any) -> ExplanationGuidance:
        """Guide a model by this recipe.

        Args:
            model: As `ExplanationGuidance` takes it.
            **overrides: Options of `ExplanationGuidance` that come before the recipe's.

        Raises:
            OptionError: For an option that `ExplanationGuidance` has not.
            LayerError: If the model has not the recipe's layers.
            GuidanceError: As `ExplanationGuidance`.

        Example:
            >>> from explainguide import recipe
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
            >>> recipe("rrr").guide(model).layers
            ['input']
        """
        allowed = [name for name in signature(ExplanationGuidance).parameters if name != "model"]
        for name in overrides:
            if name not in allowed:
                raise OptionError(
                    f"unknown option {name!r}.{did_you_mean(name, allowed)} "
                    f"{', '.join(allowed)} are allowed."
                )
        if "layer" not in overrides:
            self.check_layers(model)
        loss = with_options(self.loss, self.loss_options)
        return ExplanationGuidance(model, **{**self._named(allowed), "loss": loss, **overrides})

    def config(self, **overrides: Any) -> TrainConfig:
        """The settings of a training by this recipe.

        Args:
            **overrides: Settings of `TrainConfig` that come before the recipe's. Another `loss`
                leaves the recipe's `loss_options` out.

        Raises:
            OptionError: For a setting that `TrainConfig` has not, or a value that it refuses.

        Example:
            >>> from explainguide import recipe
            >>> recipe("model-guidance/final").config(epochs=5).reduction
            'sum'
        """
        found = self._named([f.name for f in fields(TrainConfig)])
        found = {name: value for name, value in found.items() if value is not None}
        if overrides.get("loss", self.loss) != self.loss:
            del found["loss_options"]
        return TrainConfig.from_dict({**found, **overrides})

    def total_loss(self, logits: Tensor, labels: Tensor, loss_loc: Tensor) -> Tensor:
        """Classification and localization loss together, each with its weight.

        Args:
            logits: ``(N, K)``.
            labels: Class indices ``(N,)``, or multi-hot ``(N, K)`` floats.
            loss_loc: What `ExplanationGuidance.loss_loc` returned, a scalar.

        Returns:
            A scalar, to call ``backward`` on.
        """
        answers = classification_loss(
            logits, labels, class_loss=self.class_loss, temperature=self.temperature
        )
        return self.class_weight * answers + self.lam * loss_loc

    def check_layers(self, model: nn.Module) -> None:
        """Refuse a model that has not the recipe's layers.

        Args:
            model: The classifier.

        Raises:
            LayerError: With the names that are missing, and what to do.
        """
        names = (self.layer,) if isinstance(self.layer, str) else self.layer or ()
        known = {INPUT, *list_layers(unwrap(model))}
        missing = [name for name in names if name not in known]
        if missing:
            raise LayerError(
                f"recipe {self.name!r} guides {', '.join(map(repr, names))}, as a ResNet "
                f"calls its stages; this {type(model).__name__} has no "
                f"{', '.join(map(repr, missing))}. Name {len(names)} layers of the model from "
                "shallow to deep with layer=[...] (--layer), or fewer with layer_weights=[...] too. "
                "`explainguide layers` lists those that are allowed."
            )

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.loss_options.items())
        tried = f" (of {', '.join(f'{v:g}' for v in self.lambdas)})" if self.lambdas else ""
        answers = self.class_loss + (f", T = {self.temperature:g}" if self.temperature != 1 else "")
        names = ("optimizer", "lr", "weight_decay", "schedule", "batch_size", "epochs")
        training = [f"{n}={v}" for n in names if (v := getattr(self, n)) is not None]
        rows = {
            "source": self.source,
            "layer": _listed(self.layer) or "found automatically",
            "layer weights": _listed(self.layer_weights),
            "attribution": f"{self.attribution} of the {self.score}, target {self.target}",
            "loss": f"{self.loss}{f'({options})' if options else ''}, against {self.region}",
            "lambda": f"{self.lam:g}{tried}, with reduction {self.reduction}",
            "classification": f"{self.class_weight:g} * {answers}",
            "training": ", ".join(training),
            "advice": self.advice,
        }
        lines = [f"{self.name}: {self.text}"]
        for name, value in rows.items():
            if value:
                lines += textwrap.wrap(
                    value,
                    96,
                    initial_indent=f"  {name:<16}",
                    subsequent_indent=" " * 18,
                    break_on_hyphens=False,
                )
        return "\n".join(lines)

    def _named(self, names: list[str]) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}


def _listed(values: str | tuple[Any, ...] | None) -> str:
    return values if isinstance(values, str) else ", ".join(map(str, values or ()))
