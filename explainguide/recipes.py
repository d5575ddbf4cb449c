"""Published methods as settings: a layer, an attribution, a loss, its weight, and how to train.

A recipe is no code of its own: `Recipe.guide` builds the `ExplanationGuidance` that anyone could
build by hand, and `Recipe.config` the `TrainConfig`.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import (
    LayerError,
    OptionError,
    Table,
    check_option,
    did_you_mean,
    operation,
)
from explainguide.guidance.guide import ExplanationGuidance
from explainguide.guidance.options import GuideOptions
from explainguide.guidance.settings import named_settings
from explainguide.hooks.layers import INPUT, list_layers, unwrap
from explainguide.losses import classification_loss
from explainguide.training.config import TrainConfig

__all__ = ["RECIPES", "Recipe", "recipe"]


@named_settings
@dataclass(frozen=True, kw_only=True)
class Recipe(GuideOptions):
    r"""The settings of a published method.

    .. math:: L = w\, L_{class} + \lambda \sum_l w_l\, loss(A_l(x, k), M_k)

    What a paper does not say, or says for a program with another loss, is None, and `config` takes
    the default of `TrainConfig` for it. A copy with other values is `dataclasses.replace`.

    Attributes:
        name: What `recipe` calls it.
        text: What it does, in a sentence.
        source: Paper, equations, tables.
        advice: What to know before it is used, the learning rate above all.
        layer, attribution, loss, reduction and all the other options of a guide: As
            `explainguide.guidance.GuideOptions`. The weights and :math:`\lambda` belong to the
            reduction.
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
    lam: float
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
    def guide(
        self, model: nn.Module, *, generator: torch.Generator | None = None, **overrides: Any
    ) -> ExplanationGuidance:
        """Guide a model by this recipe.

        Args:
            model: As `ExplanationGuidance` takes it.
            generator: For the draw of classes.
            **overrides: Options of `ExplanationGuidance` that come before the recipe's. Another
                loss or attribution leaves the recipe's options of it out.

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
        allowed = [field.name for field in fields(GuideOptions)]
        for name in overrides:
            if name not in allowed:
                raise OptionError(
                    f"unknown option {name!r}.{did_you_mean(name, allowed)} "
                    f"{', '.join([*allowed, 'generator'])} are allowed."
                )
        if "layer" not in overrides:
            self.check_layers(model)
        options = replace(self.options, **{**self._own_options(overrides), **overrides})
        return options.build(model, generator=generator)

    def config(self, **overrides: Any) -> TrainConfig:
        """The settings of a training by this recipe.

        Args:
            **overrides: Settings of `TrainConfig` that come before the recipe's. Another
                loss or attribution leaves the recipe's options of it out.

        Raises:
            OptionError: For a setting that `TrainConfig` has not, or a value that it refuses.

        Example:
            >>> from explainguide import recipe
            >>> recipe("model-guidance/final").config(epochs=5).reduction
            'sum'
        """
        taken = {field.name for field in fields(TrainConfig)}
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        settings = {name: v for name, v in settings.items() if name in taken and v is not None}
        return TrainConfig.from_dict({**settings, **self._own_options(overrides), **overrides})

    def _own_options(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """No options of a loss or an attribution in place of which another is given."""
        return {
            f"{name}_options": {}
            for name in ("loss", "attribution")
            if overrides.get(name, getattr(self, name)) != getattr(self, name)
            and f"{name}_options" not in overrides
        }

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
        known = {INPUT, *list_layers(unwrap(model, compiled_parts=True))}
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
        attribution, loss = self.names()
        tried = f" (of {', '.join(f'{v:g}' for v in self.lambdas)})" if self.lambdas else ""
        answers = self.class_loss + (f", T = {self.temperature:g}" if self.temperature != 1 else "")
        names = ("optimizer", "lr", "weight_decay", "schedule", "batch_size", "epochs")
        training = [f"{n}={v}" for n in names if (v := getattr(self, n)) is not None]
        rows = {
            "source": self.source,
            "layer": _listed(self.layer) or "found automatically",
            "layer weights": _listed(self.layer_weights),
            "attribution": f"{attribution} of the {self.score}, target {self.target}",
            "loss": f"{loss}, against {self.region}",
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


def _listed(values: str | tuple[Any, ...] | None) -> str:
    return values if isinstance(values, str) else ", ".join(map(str, values or ()))


_MODEL_GUIDANCE: dict[str, Any] = {
    "source": "Rao et al., 2023, Eq. 1, 2 and 6, Sec. 3.5 and D.1, Tab. D1",
    "attribution": "ixg",
    "loss": "energy",
    "lam": 1e-3,
    "lambdas": (5e-4, 1e-3, 5e-3),
    "reduction": "sum",
    "optimizer": "adam",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "schedule": "constant",
    "batch_size": 64,
    "epochs": 50,
    "advice": "Fine-tune without guidance first, then guide. lambda belongs to a sum over a batch of "
    "64: another batch size asks for another lambda. With annotations on few images take 0.05, 0.1 "
    "or 0.5 (Tab. D2). 50 epochs are for VOC, 10 for COCO. For loss='l1' lambda is 0.001, 0.005 or "
    "0.01.",
}

_PUBLISHED = (
    Recipe(
        name="robustvit",
        text="pull the attention relevance of a trained ViT onto the object, in a short "
        "fine-tuning",
        source="Chefer et al., 2022 (RobustViT), Eq. 1 to 5, Tab. 5",
        attribution="relevance",
        loss="relevance",
        loss_options={"background": 2.0, "foreground": 0.3},
        lam=0.8,
        region="masks",
        class_loss="confidence-boosting",
        class_weight=0.2,
        optimizer="adamw",
        lr=3e-6,
        weight_decay=1e-4,
        schedule="cosine",
        batch_size=8,
        epochs=50,
        advice="For a trained classifier; 3 images with masks of each of 500 classes were enough. "
        "Learning rates: ViT-B 3e-6, ViT-L 9e-7, AugReg-S 2e-6, AugReg-B 6e-7, AugReg-L 9e-7, "
        "DeiT-S 1e-6, DeiT-B 8e-7. For another model search from 5e-7 to 5e-6 and take the "
        "highest at which the validation accuracy falls by no more than 2 to 3%. DeiT-B needs "
        "temperature=0.65. The authors' program multiplies the rate by 0.85 every second epoch, "
        "for which the cosine stands, and takes the gradients of the attention as constants, as "
        "AttentionRelevance(model, detach_gradient=True) does.",
    ),
    Recipe(
        name="gradmask",
        text="make the gradient of the class's logit small outside the object",
        source="Simpson et al., 2019; Chefer et al., 2022, Eq. 9",
        layer=INPUT,
        attribution="gradient",
        loss="gradmask",
        lam=1.0,
        region="masks",
        advice="Search lambda and the learning rate together, from those of the unguided "
        "training: the penalty can also be met by making all gradients small. The values of "
        "Chefer et al., Tab. 7 (50, with weight 3e-9 for the classification) are of a program "
        "in which the penalty gives the parameters no gradient, so they do not carry over.",
    ),
    Recipe(
        name="rrr",
        text="right for the right reasons: no gradient of the log probabilities outside the object",
        source="Ross et al., 2017, Eq. 1, and the authors' program",
        layer=INPUT,
        attribution="gradient",
        loss="rrr",
        loss_options={"normalize": False},
        score="sum_log_probs",
        lam=1000.0,
        region="masks",
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
        schedule="constant",
        batch_size=256,
        epochs=64,
        advice="Choose lambda so that both losses are of the same order; 1000 is for small "
        "perceptrons. There both are sums over the batch, which is the same as two means. The "
        "RRR* of Rao et al. is another loss: recipe('model-guidance/final').guide(model, "
        "loss='rrr'), with lambda 5e-6, 1e-5 or 5e-5.",
    ),
    Recipe(
        name="model-guidance/final",
        text="move the evidence for a class into its boxes, at the last layer",
        **_MODEL_GUIDANCE,
    ),
    Recipe(
        name="model-guidance/input",
        text="move the evidence for a class into its boxes, at the image",
        layer=INPUT,
        **_MODEL_GUIDANCE,
    ),
    Recipe(
        name="reff",
        text="keep Grad-CAM at four stages of a ResNet off what is outside the object",
        source="Adachi and Yamaguchi, 2022 (ReFF), Eq. 3, Sec. 4.2; supplement B, Tab. 4",
        layer=("layer1", "layer2", "layer3", "layer4"),
        layer_weights=(15.0, 60.0, 250.0, 1000.0),
        attribution="gradcam",
        loss="reff",
        lam=1e-6,
        lambdas=(1e-8, 1e-7, 1e-6, 1e-5),
        region="masks",
        optimizer="sgd",
        lr=0.01,
        weight_decay=1e-5,
        schedule="constant",
        batch_size=32,
        epochs=50,
        advice="The lambdas are those that the supplement tries for the variants l1 and l2, of "
        "which 1e-6 was best; larger ones are worth a try with the norm. The paper's momentum is "
        "0.8 (here 0.9). Images without a mask get one there from a trained pseudo-annotator.",
    ),
)
RECIPES: Table[str, Recipe] = Table("RECIPES", {entry.name: entry for entry in _PUBLISHED})


@operation("recipe")
def recipe(name: str) -> Recipe:
    """A published method as settings.

    Args:
        name: A key of `RECIPES`: ``"robustvit"``, ``"gradmask"``, ``"rrr"``,
            ``"model-guidance/final"``, ``"model-guidance/input"`` or ``"reff"``.

    Returns:
        The recipe, which prints itself.

    Raises:
        OptionError: For a name that is not known; with the nearest one.

    Example:
        >>> recipe("robustvit").lam, recipe("robustvit").class_weight
        (0.8, 0.2)
    """
    check_option("recipe", name, RECIPES)
    return copy.deepcopy(RECIPES[name])
