"""Objects of the package pytorch-grad-cam as makers of maps; it is imported where it is named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainguide.attr.foreign import (
    ClassScores,
    Places,
    package_name,
    same_model,
    single_logit,
)
from explainguide.errors import OptionError, did_you_mean, warn
from explainguide.hooks.layers import resolve_layers
from explainguide.hooks.layout import to_nchw
from explainguide.hooks.reading import Reading

__all__ = ["PACKAGE", "CamMaps", "NamedCamMaps", "is_cam"]

PACKAGE = "pytorch_grad_cam"
_GIVEN = ("self", "input_tensor", "targets")


def is_cam(kind: type) -> bool:
    """Whether a class is one of pytorch-grad-cam's, or derived from one."""
    return any(base.__module__.partition(".")[0] == PACKAGE for base in kind.__mro__)


class _ClassOutput:
    """The score of one class, of one image's output: the package's ClassifierOutputTarget."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, output: Tensor) -> Tensor:
        return output[..., self.category]


class CamMaps:
    """The maps of an object that is called with ``input_tensor=`` and ``targets=``.

    Attributes:
        name: ``"pytorch_grad_cam:GradCAMPlusPlus"``.
        layer: Dotted name; of several, whose maps the object averages, joined by ``+``.
        root: What is called, to be left as it was.
        copyable: Whether a copy of the object explains a copy of the model.
        placed: False: maps must have the image's proportions.
    """

    placed = False

    def __init__(self, cam: Any, model: nn.Module, *, arguments: Mapping[str, Any]) -> None:
        self.cam, self.model = cam, model
        self.name = package_name(type(cam))
        root = same_model(cam.model, model, self.name)
        self.copyable, self.root = root is not None, model if root is None else root
        self.modules = resolve_layers(model, list(cam.target_layers))
        self.layer = "+".join(self.modules)
        self.arguments = _checked(arguments, type(cam), self.name)
        self._looked = False

    def __call__(self, images: Tensor, target: Tensor) -> Any:
        """Maps at the image's size, in [0, 1], each scaled by its own smallest and largest value."""
        if not self._looked:
            self._looked = True
            self._look(images)
        return _maps_of(self.cam, images, target, self.arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> CamMaps:
        _let_go(self.cam)  # no tensor of a graph can be copied
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return copied

    def _look(self, images: Tensor) -> None:
        """Warn of an in-place operation behind the layer, which rewrites what the package keeps."""
        versions: dict[str, tuple[Tensor, int]] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    versions[name] = output, output._version

            return hook

        handles = [
            m.register_forward_hook(keep(n)) for n, m in self.modules.items() if m is not None
        ]
        try:
            with torch.no_grad():
                self.root(images[:1])
        finally:
            for handle in handles:
                handle.remove()
        for name, (output, version) in versions.items():
            if output._version != version:
                warn(
                    f"an in-place operation follows layer {name!r} and rewrites the activation that "
                    f"{self.name} keeps, so that its map mixes two layers. Take the layer behind "
                    "it, or write inplace=False."
                )

    def check_classes(self, count: int) -> None:
        """Refuse a single logit, which the object would explain for both of its classes.

        Raises:
            GuidanceError: With the remedy.
        """
        if count == 1:
            raise single_logit(self.name)


class NamedCamMaps(CamMaps):
    """The same of a class: an object is built for every call, since it keeps hooks on the model."""

    def __init__(
        self,
        kind: type,
        model: nn.Module,
        layers: Mapping[str, nn.Module | None],
        *,
        reading: Reading,
        arguments: Mapping[str, Any],
    ) -> None:
        self.kind, self.model, self.cam = kind, model, None
        self.name, self.copyable = package_name(kind), True
        self.root = ClassScores(model, reading)
        self.modules = dict(layers)
        (self.layer,) = self.modules
        if self.modules[self.layer] is None:
            raise OptionError(
                f"{self.name} has no map of the input. Name a layer, or leave layer= out. A dotted "
                "name is allowed."
            )
        self.arguments = _checked(arguments, kind, self.name)
        self._places = Places(model, self.layer, **vars(reading))
        self._looked = False

    def __call__(self, images: Tensor, target: Tensor) -> Any:
        """See `CamMaps`."""
        if not self._looked:
            self._looked = True
            self._look(images)
        _, layout = self._places.of(images)
        cam = self.kind(
            model=self.root,
            target_layers=list(self.modules.values()),
            reshape_transform=lambda feature: to_nchw(feature, layout),
        )
        try:
            return _maps_of(cam, images, target, self.arguments)
        finally:
            kept = getattr(cam, "activations_and_grads", None)
            if kept is not None:
                kept.release()

    def check_classes(self, count: int) -> None:
        """Any number is allowed: a single logit is two scores to the object."""


def _maps_of(cam: Any, images: Tensor, target: Tensor, arguments: Mapping[str, Any]) -> Any:
    if getattr(cam, "uses_gradients", True):
        images = images.requires_grad_()  # a frozen model has a gradient at the layer too
    targets = [_ClassOutput(category) for category in target.tolist()]
    try:
        return np.asarray(cam(input_tensor=images, targets=targets, **arguments))
    finally:
        _let_go(cam)


def _let_go(cam: Any) -> None:
    """What an object keeps of a pass, with its graph; its hooks keep what others run, too."""
    kept = getattr(cam, "activations_and_grads", None)
    if kept is not None:
        kept.activations, kept.gradients = [], []
    if hasattr(cam, "outputs"):
        cam.outputs = None


def _checked(arguments: Mapping[str, Any], kind: type, name: str) -> dict[str, Any]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    found = signature(kind.__call__).parameters.values()
    allowed = [p.name for p in found if p.kind not in several and p.name not in _GIVEN]
    for argument in arguments:
        if argument not in allowed:
            raise OptionError(
                f"{name} has no argument {argument!r}.{did_you_mean(argument, allowed)} "
                f"{', '.join(map(repr, allowed)) or 'None'} are allowed."
            )
    return dict(arguments)
