"""Where the maps of a batch come from: its own forward pass, or explainers that run the model again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from explainguide.annotations.class_choice import Choice
from explainguide.attr import Explainer, LayerMap, as_explainer
from explainguide.attr.any_attribution import is_own
from explainguide.attr.evidence import explain, passing
from explainguide.attr.placement import place_attribution
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.logits import check_logits, class_scores
from explainguide.hooks.reading import Reading
from explainguide.hooks.tap import Tap, unread

__all__ = ["Explaining", "Pass", "explaining"]

# The logits of a batch, and what makes the maps of chosen classes: {layer: (P, h, w)} of valid pairs.
Passed = tuple[Tensor, Callable[[Choice], dict[str, Tensor]]]


class Pass(Protocol):
    """Runs the model on a batch."""

    def __call__(self, images: Tensor, *, maps: bool) -> AbstractContextManager[Passed]:
        """The logits, and within this context the maps, if they are wanted."""


class Explaining(Protocol):
    """What explains a model's answers, batch by batch."""

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have a map each."""

    def on(self) -> AbstractContextManager[Pass]:
        """Within this context the model is in evaluation mode; what it yields runs it on images."""

    def explainer(self, layer: str, *, interpolate: bool = True) -> Explainer:
        """What explains other images at one of the layers, for metrics that ask for that."""


def explaining(
    model: nn.Module,
    attribution: Any,
    layer: str | Sequence[str] | None,
    *,
    reading: Reading,
) -> Explaining:
    """Place an attribution of any kind.

    Args:
        model: The unwrapped classifier.
        attribution: As `explainguide.attr.as_explainer` takes it.
        layer: One or several; None is the attribution's own.
        reading: What the user has said of the model.

    Raises:
        OptionError: For what is no attribution, or an object of another model or layer.
        LayerError: If there is no such layer, or none that can be explained.
    """
    if is_own(attribution):
        placed = place_attribution(model, attribution, layer, reading=reading, movable=True)
        return _OnePass(placed.method, placed.layers)
    several = [layer] if layer is None or isinstance(layer, str) else list(layer)
    explainers = [
        as_explainer(attribution, model, layer=one, output=reading.output) for one in several
    ]
    return _Explainers(model, {found.layer: found for found in explainers}, reading)


@dataclass(frozen=True)
class _OnePass:
    """One forward pass a batch, and one backward pass for all of its classes and layers."""

    method: LayerMap
    modules: dict[str, nn.Module | None]

    @property
    def layers(self) -> list[str]:
        return list(self.modules)

    @contextmanager
    def on(self) -> Iterator[Pass]:
        tap = self.method.tap(self.modules)
        try:
            with evaluating(self.method.model), tap.alone():
                yield partial(self._passing, tap)
        finally:
            tap.remove()

    def explainer(self, layer: str, *, interpolate: bool = True) -> Explainer:
        method = self.method.at(layer)
        return as_explainer(method, self.method.model, interpolate=interpolate)

    @contextmanager
    def _passing(self, tap: Tap, images: Tensor, *, maps: bool) -> Iterator[Passed]:
        if not maps:
            yield _logits(self.method.model, images, self.method.reading), _none
            return
        with passing(tap, images) as passed:

            def explained(choice: Choice) -> dict[str, Tensor]:
                found, _ = explain(
                    self.method,
                    tap,
                    passed,
                    score=lambda z: torch.where(
                        choice.valid, class_scores(z).gather(1, choice.classes.T).T, 0
                    ),
                    create_graph=False,
                )
                return {name: each.detach()[choice.valid] for name, each in found.items()}

            yield self.method.logits(passed), explained
        tap.forget()


@dataclass(frozen=True)
class _Explainers:
    """A forward pass for the logits, and the explainers' own for every class that is shown."""

    model: nn.Module
    explainers: dict[str, Explainer]
    reading: Reading

    @property
    def layers(self) -> list[str]:
        return list(self.explainers)

    @contextmanager
    def on(self) -> Iterator[Pass]:
        with evaluating(self.model), unread():
            yield self._passing

    def explainer(self, layer: str, *, interpolate: bool = True) -> Explainer:
        found = copy.copy(self.explainers[layer])
        found.interpolate = found.interpolate and interpolate
        return found

    @contextmanager
    def _passing(self, images: Tensor, *, maps: bool) -> Iterator[Passed]:
        def explained(choice: Choice) -> dict[str, Tensor]:
            found: dict[str, list[Tensor]] = {name: [] for name in self.explainers}
            for classes, valid in zip(choice.classes, choice.valid, strict=True):
                for name, explainer in self.explainers.items():
                    found[name].append(explainer(images[valid], classes[valid]))
            return {name: torch.cat(each) for name, each in found.items()}

        yield _logits(self.model, images, self.reading), explained if maps else _none


def _logits(model: nn.Module, images: Tensor, reading: Reading) -> Tensor:
    return check_logits(model(images), reading=reading, images=len(images))


def _none(choice: Choice) -> dict[str, Tensor]:
    return {}
