"""Captum's attributions as makers of maps ``(N, h, w)``: what they need, and what they do not see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import captum.attr
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from explainguide.attr.base import LayerMap
from explainguide.attr.foreign import (
    ClassScores,
    Places,
    package_name,
    same_model,
    single_logit,
)
from explainguide.errors import (
    LayerError,
    OptionError,
    ShapeError,
    did_you_mean,
    warn,
)
from explainguide.hooks.layers import INPUT, split_index
from explainguide.hooks.layout import to_nchw
from explainguide.hooks.reading import Reading

__all__ = ["CaptumMaps", "build_captum"]

_GIVEN = ("inputs", "target", "return_convergence_delta", "attribute_to_layer_input")
_PATCHES = 7  # features a side, where a method perturbs features and none are named
_TOGETHER = 128  # images a forward pass, where nothing else is said
_PARTS = {"sliding_window_shapes", "strides", "feature_mask"}
_RELU = (captum.attr.GuidedBackprop, captum.attr.Deconvolution, captum.attr.GuidedGradCam)
_ONE_CHANNEL = (captum.attr.LayerGradCam, captum.attr.GuidedGradCam)
# What Captum says at every call of what it takes back afterwards, or of what is asked for here.
_SAID = (
    r"\s*Input Tensor \d+ did not already require gradients",
    r"\s*Setting backward hooks on ReLU activations",
    r"\s*Setting forward, backward hooks and attributes on non-linear",
    r"\s*You are providing multiple inputs for Lime",
)


def build_captum(
    kind: type[Attribution], model: nn.Module, layer: Any, reading: Reading
) -> Attribution:
    """A class of Captum's, built for a module that returns the scores of a model.

    Args:
        kind: Built with ``(model)`` or ``(model, layer)``.
        model: The unwrapped classifier.
        layer: A module of it; None for a class that takes none.
        reading: Which output are the logits.

    Raises:
        OptionError: If the class takes something else.
    """
    root = ClassScores(model, reading)
    needed = [
        p.name
        for p in list(signature(kind).parameters.values())[1:]  # without the model
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "layer"
    ]
    tunnel = issubclass(kind, captum.attr.NoiseTunnel)
    if tunnel or needed:
        what = "another attribution" if tunnel else repr(needed[0])
        raise OptionError(
            f"captum:{kind.__name__} is built with {what}, which a name does not say. Build the "
            "object, as NoiseTunnel(Saliency(model)), and give it. Classes that are built with "
            "(model) or (model, layer) are allowed by name."
        )
    return kind(root) if layer is None else kind(root, layer)


class CaptumMaps:
    """The maps of an attribution of Captum's.

    Attributes:
        name: ``"captum:Saliency"``, or of another package likewise.
        layer: Dotted name, or ``"input"``.
        root: What is called, to be left as it was.
        copyable: Whether a copy of the object explains a copy of the model.
        placed: True: the layer's places are known.
    """

    placed = True

    def __init__(
        self,
        method: Attribution,
        model: nn.Module,
        *,
        reading: Reading,
        arguments: Mapping[str, Any],
        single: bool,
    ) -> None:
        self.method, self.model = method, model
        self.name = _name(method)
        self._inner = method
        while isinstance(self._inner, captum.attr.NoiseTunnel):
            self._inner = self._inner.attribution_method
        root = same_model(self._inner.forward_func, model, self.name)
        self.copyable, self.root = root is not None, model if root is None else root
        self.single = single
        self._places = self._placed(reading)
        self.layer = self._places.layer or INPUT
        self.arguments = dict(arguments)
        self._check_arguments()
        self._check_relu()
        self._looked = False

    def _placed(self, reading: Reading) -> Places:
        inner: Any = self._inner
        if isinstance(inner, LayerMap):
            layer: Any = inner.layer
        elif isinstance(inner, captum.attr.GuidedGradCam):
            layer = inner.grad_cam.layer
        else:
            layer = getattr(inner, "layer", None)
        if isinstance(layer, list | tuple):
            if len(layer) != 1:
                raise OptionError(
                    f"{self.name} has {len(layer)} layers. Build one object a layer. One layer is "
                    "allowed."
                )
            layer = layer[0]
        return Places(self.model, layer, **vars(reading))

    def read_member(self, layer: str) -> None:
        """Say which output of a layer that returns several is read, as in ``"stage4[1]"``."""
        self._places = Places(self.model, layer, **vars(self._places.reading))
        self.layer = layer

    @property
    def _at_input(self) -> bool:
        """Whether the maps are the image's, of what explains it or multiplies a layer's map with it."""
        return self.layer == INPUT or isinstance(self._inner, captum.attr.GuidedGradCam)

    def _check_arguments(self) -> None:
        inner, outer = _parameters(self._inner), _parameters(self.method)
        if "target" not in inner:
            raise OptionError(
                f"{self.name} takes no target: it explains no class. Use "
                "captum:LayerGradientXActivation, or 'ixg'. Attributions of a class are allowed."
            )
        allowed = [n for n in {**outer, **inner} if n not in _GIVEN]
        for name in self.arguments:
            if name in _GIVEN:
                fix = "Leave it out: the explainer gives it, or reads the map alone"
                if name == "attribute_to_layer_input":
                    fix = "Name the layer before instead: what is read is a layer's output"
                raise OptionError(
                    f"{name} is no argument of {self.name} here. {fix}. {_list(allowed)}"
                )
            if name not in allowed:
                raise OptionError(
                    f"{self.name} has no argument {name!r}.{did_you_mean(name, allowed)} "
                    f"{_list(allowed)}"
                )
        if type(self._inner) is captum.attr.ShapleyValues and "feature_mask" not in self.arguments:
            raise OptionError(
                f"{self.name} tries every order of its features, and an image has too many. Use "
                "captum:ShapleyValueSampling, or name few with arguments={'feature_mask': ...}. "
                f"{_list(allowed)}"
            )
        for name, parameter in inner.items():
            needed = parameter.default is parameter.empty and name not in (*_GIVEN, *self.arguments)
            if needed and name != "sliding_window_shapes":
                raise OptionError(
                    f"{self.name} needs {name!r}. Say it with arguments={{{name!r}: ...}}. "
                    f"{_list(allowed)}"
                )

    def _check_relu(self) -> None:
        if isinstance(self._inner, _RELU) and not any(
            isinstance(module, nn.ReLU) for module in self.root.modules()
        ):
            raise OptionError(
                f"{type(self.model).__name__} has no nn.ReLU module, and {self.name} changes the "
                "gradient of no other: its map would be that of the plain gradient. Use "
                "captum:Saliency, or put modules in the place of F.relu. Models with nn.ReLU are "
                "allowed."
            )

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Maps ``(N, h, w)`` at the layer's own resolution."""
        if not self._looked:
            self._look(images)
        inner = _parameters(self._inner)
        arguments = {**_at_a_time(_parameters(self.method), len(images)), **self.arguments}
        if not arguments.keys() & _PARTS:
            arguments = {**_parts(inner, images), **arguments}
        shared_out = type(self.method) is captum.attr.DeepLift and self.method.multiplies_by_inputs
        first = not self._looked and "custom_attribution_func" not in arguments
        self._looked = True
        with _quiet():
            if first and shared_out:
                found, delta = self.method.attribute(
                    images, target=target, return_convergence_delta=True, **arguments
                )
                self._tell_missing(found, delta)
            else:
                found = self.method.attribute(images, target=target, **arguments)
        return self._one_channel(found, images).detach()

    def _look(self, images: Tensor) -> None:
        """What one image tells: how the layer is read, and which ReLUs are seen."""
        if self.layer != INPUT and not isinstance(self._inner, LayerMap):
            _, layout = self._places.of(images)
            if isinstance(self._inner, _ONE_CHANNEL) and layout.kind != "NCHW":
                raise LayerError(
                    f"layer {self.layer!r} is read as {layout}, and {self.name} takes its second "
                    "dimension for the channels. Use 'gradcam', which reads it as it is. Layers "
                    "(N, C, h, w) are allowed."
                )
        if isinstance(self._inner, _RELU):
            seen, run = _count_relus(self.root, images[:1])
            if run > seen:
                warn(
                    f"{run - seen} of the {run} ReLUs that {type(self.model).__name__} runs are no "
                    f"nn.ReLU modules, and {self.name} changes the gradient of modules alone. Put "
                    "modules in their place, or read the maps with that in mind."
                )

    def _tell_missing(self, found: Tensor, delta: Tensor) -> None:
        total = found.detach().flatten(1).sum(1)
        scale = (total - delta).abs().max().clamp(min=1e-6)
        missing = float(delta.detach().abs().max() / scale)
        if missing > 0.05:
            warn(
                f"the maps of {self.name} miss up to {missing:.0%} of the difference of the scores "
                f"that they share out: {type(self.model).__name__} holds operations for which it "
                "has no rule, as GELU, SiLU, norms of tokens, or F.relu. Use 'intgrad', which "
                "knows every operation."
            )

    def _one_channel(self, found: Any, images: Tensor) -> Tensor:
        """What was returned as ``(N, h, w)``: channels are summed."""
        if isinstance(found, tuple | list):
            index = split_index(self.layer)[1]
            if index is None and len(found) > 1:
                raise LayerError(
                    f"{self.name} returns {len(found)} attributions at layer {self.layer!r}, one "
                    f"for each of its outputs. Use layer='{self.layer}[0]'. One output is allowed."
                )
            found = found[index or 0]
        shape, count = tuple(found.shape), len(images)
        expected = tuple(images.shape[1:])
        if not self._at_input and not isinstance(self._inner, LayerMap):
            expected, layout = self._places.of(images)
            if shape == (count, *expected):
                return to_nchw(found, layout).sum(1)
            expected = (expected[0], *layout.grid)
        one = (count, 1, *expected[1:])
        if shape not in (one, (count, *expected)) and not isinstance(self._inner, LayerMap):
            raise ShapeError(
                f"{self.name} returns shape {shape} where {(count, *expected)} was expected. Read "
                "it in a function of your own (images, target) -> maps (N, H, W). Attributions of "
                "the input's or the layer's shape are allowed."
            )
        summed: Tensor = found.sum(1)
        return summed

    def check_classes(self, count: int) -> None:
        """Refuse a single logit where the user's object would explain z for both of its classes.

        Raises:
            GuidanceError: With the remedy.
        """
        if count == 1 and not self.single and not isinstance(self._inner, LayerMap):
            raise single_logit(self.name)


def _name(method: Attribution) -> str:
    name = package_name(type(method))
    if isinstance(method, captum.attr.NoiseTunnel):
        return f"{name}({type(method.attribution_method).__name__})"
    return name


def _parameters(method: Attribution) -> dict[str, Parameter]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    found = signature(method.attribute).parameters.values()
    return {p.name: p for p in found if p.kind not in several}


def _list(allowed: list[str]) -> str:
    return f"{', '.join(map(repr, allowed))} are allowed."


def _at_a_time(parameters: Mapping[str, Parameter], count: int) -> dict[str, Any]:
    """No more images a forward pass than a GPU holds, and not one by one either; maps are the same."""
    more = max(1, _TOGETHER // count)
    sizes = {
        "perturbations_per_eval": more,
        "nt_samples_batch_size": more,
        "internal_batch_size": max(_TOGETHER, count),
    }
    return {name: size for name, size in sizes.items() if name in parameters}


def _parts(parameters: Mapping[str, Parameter], images: Tensor) -> dict[str, Any]:
    """Equal parts of the image, where a method would hide pixel by pixel, or not know what to hide."""
    channels, height, width = images.shape[1:]
    h, w = math.ceil(height / _PATCHES), math.ceil(width / _PATCHES)
    if "sliding_window_shapes" in parameters:
        strides = (channels, math.ceil(h / 2), math.ceil(w / 2))
        return {"sliding_window_shapes": (channels, h, w), "strides": strides}
    if "feature_mask" in parameters:
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        patches = (rows // h)[:, None] * math.ceil(width / w) + columns // w
        return {"feature_mask": patches.expand(1, channels, -1, -1).contiguous()}
    return {}


def _count_relus(root: nn.Module, image: Tensor) -> tuple[int, int]:
    """How often nn.ReLU modules run in a pass, and how many ReLUs its graph holds."""
    calls = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in root.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        output = root(image.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    nodes: list[Any] = [t.grad_fn for t in _tensors(output)]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
    return len(calls), sum(node.name().startswith("ReluBackward") for node in seen)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    members = output.values() if isinstance(output, Mapping) else output
    return [tensor for tensor in members if isinstance(tensor, Tensor)]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for text in _SAID:
            warnings.filterwarnings("ignore", message=text)
        yield
