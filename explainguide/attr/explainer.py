"""An attribution of one model at one layer, to be judged: images and classes in, maps out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from explainguide.attr.base import ATTRIBUTIONS
from explainguide.attr.map_checks import at_image_size, read_maps
from explainguide.attr.untouched import untouched
from explainguide.errors import (
    ExplainGuideError,
    ExplanationError,
    GuidanceError,
    ShapeError,
    first_line,
    operation,
)
from explainguide.hooks.layers import INPUT
from explainguide.hooks.logits import PREDICTED, as_targets, check_logits, class_scores
from explainguide.hooks.reading import Reading
from explainguide.hooks.tap import unread

__all__ = ["Explainer", "Source"]


class Source(Protocol):
    """Who makes the maps, before they are read and brought to the image's size."""

    name: str
    layer: str
    root: nn.Module
    copyable: bool
    placed: bool  # whether it is known that the maps cover the image

    def __call__(self, images: Tensor, target: Tensor) -> Any:
        """Maps of classes ``(N,)``, as `read_maps` reads them."""

    def check_classes(self, count: int) -> None:
        """Refuse a model with that many logits."""


class Explainer:
    """An attribution of one model at one layer, to be judged; `as_explainer` makes it.

    ``explainer(images, target)`` gives maps. ``copy.deepcopy(explainer)`` is an explainer of a copy
    of the model, if it is `copyable`.

    Attributes:
        name: As tables call it: ``"ixg"``, ``"captum:Occlusion"``.
        layer: Dotted name, or ``"input"``. An attribution that keeps quiet about it, as a plain
            function, is said to be at the input.
        model: The unwrapped classifier.
        interpolate: Whether maps are brought to the image's size.
        copyable: Whether a copy explains a copy of the model. That of a function which holds its
            model would go on explaining the first one, and is refused.
    """

    def __init__(
        self,
        source: Source,
        model: nn.Module,
        *,
        reading: Reading,
        interpolate: bool = True,
        name: str | None = None,
    ) -> None:
        self._source, self._reading = source, reading
        self._classes: int | None = None
        self.model, self.interpolate = model, interpolate
        self.name, self.layer = name or source.name, source.layer
        self.copyable = source.copyable

    @operation("Explainer", default=True)
    def __call__(
        self, images: Tensor, target: int | str | Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The maps of one class an image.

        The model is in evaluation mode meanwhile and comes back as it was, after an error too: its
        mode, hooks, buffers, and each parameter's gradient and `requires_grad`. Any grad mode may be
        on outside. The images stay as they are. The first call runs the model on one image more.

        Args:
            images: ``(N, C, H, W)``, where the model is.
            target: One class for all images, or one an image, ``(N,)``; None or ``"predicted"``, that
                of the highest score. With a single logit z class 1's score is z and class 0's is -z.

        Returns:
            ``(N, H, W)``, detached; with ``interpolate=False`` at the resolution at which they come.
            Sign and scale are the attribution's; what is not finite stays so, and is for metrics
            to count.

        Raises:
            ExplanationError: If the attribution fails on this model or layer, with its own words.
            ShapeError: If what it returns are no maps of these images.
            OptionError: If the target is no class of the model.
            LayerError: If its layer cannot be read.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            given = f"a {type(images).__name__}"
            if isinstance(images, Tensor):
                given = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ShapeError(
                f"images are {given}. Give a batch, images[None] for one. Floating point (N, C, H, "
                "W) is allowed."
            )
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            untouched(self._source.root),
            unread(),
        ):
            own = images.detach().clone()
            maps = self._made(own, target).detach() if len(own) else own[:, 0]
        if self.interpolate:
            maps = at_image_size(maps, (int(images.shape[-2]), int(images.shape[-1])))
        return maps

    def _made(self, images: Tensor, target: Any) -> Tensor:
        classes = self._targets(images, target)
        try:
            found = self._source(images, classes)
        except ExplainGuideError:
            raise
        except Exception as error:  # whatever another's program does with a model
            where = "the input" if self.layer == INPUT else f"layer {self.layer!r}"
            raise ExplanationError(
                f"{self.name} fails at {where} of {type(self.model).__name__} ({type(error).__name__}: "
                f"{first_line(error)}). Leave it out, or use one of "
                f"{', '.join(map(repr, ATTRIBUTIONS))}. What returns maps of this model is allowed."
            ) from error
        return read_maps(found, images, name=self.name, placed=self._source.placed)

    def _targets(self, images: Tensor, target: Any) -> Tensor:
        """One class an image, checked against what the model returns for the first."""
        if target is None or (isinstance(target, str) and target == PREDICTED):
            target = self._scores(images).argmax(1)
        if self._classes is None:
            self._classes = self._scores(images[:1]).shape[1]
        shaped = images.new_empty(1, 1).expand(len(images), self._classes)
        return as_targets(target, shaped).clone()

    def _scores(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            output = self.model(images)
            logits = check_logits(output, reading=self._reading, images=len(images))
        self._source.check_classes(logits.shape[1])
        return class_scores(logits)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explainer:
        if not self.copyable:
            raise GuidanceError(
                f"Explainer: {self.name} cannot be copied with its model: it holds a function, whose "
                "model a copy does not find. Build it with the model itself, or write the function as "
                "(model, images, target) and give functools.partial(function, model). Callables that "
                "hold the model as an argument or attribute are allowed."
            )
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        try:
            vars(copied).update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
        except Exception as error:  # whatever a model, or another's object, holds
            raise GuidanceError(
                f"Explainer: {self.name} cannot be copied with its model, a "
                f"{type(self.model).__name__} ({type(error).__name__}: {first_line(error)}). Let "
                "go of what it keeps of a forward pass. What copy.deepcopy copies is allowed."
            ) from error
        return copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, layer={self.layer!r})"
