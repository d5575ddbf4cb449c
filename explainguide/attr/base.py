"""What every attribution shares: the evidence of one forward pass, and Captum's calling convention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from explainguide.attention import Weights
from explainguide.errors import GuidanceError, LayerError, ShapeError
from explainguide.layers import INPUT, resolve_layers, unwrap
from explainguide.layout import Layout, infer_layout
from explainguide.logits import as_targets, check_logits
from explainguide.reading import Output, Reading, check_reading
from explainguide.tap import ForwardPass, Tap

__all__ = ["Evidence", "LayerMap", "read_features", "rerun"]


@dataclass(frozen=True)
class Evidence:
    """All that an attribution may look at.

    Attributes:
        features: Layer name to its activation as captured, in the graph of the logits.
        layouts: Layer name to how the activation is read.
        logits: ``(N, K)``.
        score: Logits to the scores that are explained, ``(S, N)``: S classes of every image. Scores
            that are constant zero belong to no class.
        images: What the model was called with.
        rerun: Runs the model again on the same images from other features, ``{layer: activation}``;
            returns the logits and the activations of the other layers.
        create_graph: Whether the maps must be differentiable.
        caller: The public callable that errors name.
        attentions: Name of an attention module to the weights that it computed, for an attribution
            that asks for them with `LayerMap.attentions`.
    """

    features: dict[str, Tensor]
    layouts: dict[str, Layout]
    logits: Tensor
    score: Callable[[Tensor], Tensor]
    images: Tensor
    rerun: Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
    create_graph: bool
    caller: str
    attentions: Mapping[str, Sequence[Weights]] = field(default_factory=dict)


class LayerMap(Attribution):
    """One map an image at one layer, by Captum's conventions, and differentiable.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        layer: Dotted name; None, or ``"input"``, is the image, as in Captum.
        output: Which of several things that the model returns are the logits: an index, a key, an
            attribute, or a callable that takes what the model returned.
        layout: ``"NCHW"`` or ``"NHWC"``, for a layer whose four dimensions can be read both ways; by
            default what shape and model say.
        grid: (h, w) of the layer's tokens; by default what shape and model say.
        prefix_tokens: How many tokens in front belong to no place, or their positions; likewise.
        image_argument: Which argument of the model the images are, a position or a name; by default
            the only one that is floating point (N, C, H, W).
        image_size: (H, W) of an image that the model takes, for an attribution that runs it on one of
            its own; by default what the model says.

    Attributes:
        reading: These six, as one object.
        attentions: Modules whose attention weights are part of the evidence; none by default.
        places_itself: Whether the attribution finds its own layer when none is named.

    Raises:
        LayerError: If the model has no such layer.
    """

    attentions: tuple[str, ...] = ()
    places_itself: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        output: Output | None = None,
        layout: str | None = None,
        grid: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] | None = None,
        image_argument: int | str | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(model)
        caller = type(self).__name__
        self.reading = check_reading(
            output=output,
            layout=layout,
            grid=grid,
            prefix_tokens=prefix_tokens,
            image_argument=image_argument,
            image_size=image_size,
            caller=caller,
        )
        self.model = unwrap(model, caller=caller)
        self.layer = layer
        self._modules = resolve_layers(self.model, layer or INPUT, caller=caller)
        self._check()

    def _check(self) -> None:
        """Refuse a model that the attribution cannot explain, before any forward pass."""

    def at(self, layer: str) -> LayerMap:
        """The same attribution, with the same settings, at another layer."""
        other = copy.copy(self)
        other.layer = layer
        other._modules = resolve_layers(self.model, layer, caller=type(self).__name__)
        return other

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """The maps of every layer in the evidence, ``{layer: (S, N, h, w)}``; subclasses say how."""
        raise TypeError(f"{type(self).__name__} does not say how its maps are computed")

    def attribute(
        self,
        inputs: Tensor,
        target: int | Sequence[int] | Tensor | None = None,
        *,
        additional_forward_args: Any = None,
        create_graph: bool = False,
    ) -> Tensor:
        """Attribute the target's logit.

        Args:
            inputs: Images, ``(N, 3, H, W)``.
            target: One class for all images, or one an image, ``(N,)``. None where the model has a
                single logit.
            additional_forward_args: Passed to the model after the images; a tuple is several.
            create_graph: Whether the map can be differentiated with respect to the parameters,
                so that it can be part of a loss.

        Returns:
            One map an image at the layer's own resolution, ``(N, 1, h, w)``; float32 where the
            layer computed in half precision.

        Raises:
            LayerError: If the layer has no spatial extent or does not reach the logits.
            OptionError: If the target is not a class of the model.
        """
        caller = f"{type(self).__name__}.attribute"
        extra = additional_forward_args
        extra = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
        tap = Tap(self.model, self._modules, self.attentions)
        try:
            # Attributing works in evaluation code too, where gradients are off.
            with tap.alone(), torch.inference_mode(False), torch.enable_grad():
                self.model(inputs.clone() if inputs.is_inference() else inputs, *extra)
                passed = cast(ForwardPass, tap.last)
                features, layouts = read_features(
                    self.model, self._modules, passed, reading=self.reading, caller=caller
                )
                logits = check_logits(passed.logits, caller=caller)
                classes = as_targets(target, logits, caller=caller)
                evidence = Evidence(
                    features,
                    layouts,
                    logits,
                    score=lambda z: z.gather(1, classes[:, None]).T,
                    images=passed.images,
                    rerun=lambda substitutes: rerun(self.model, tap, passed, substitutes),
                    create_graph=create_graph,
                    caller=caller,
                    attentions=passed.attentions,
                )
                (found,) = self.maps(evidence).values()
        finally:
            tap.remove()
        found = found[0, :, None]
        return found if create_graph else found.detach()


def read_features(
    model: nn.Module,
    modules: dict[str, nn.Module | None],
    passed: ForwardPass,
    *,
    reading: Reading,
    caller: str,
) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """The captured activations and how each is read.

    Raises:
        LayerError: If a layer did not run, ran twice, or has no spatial extent.
    """
    for name in modules:
        calls = passed.calls.get(name, 0)
        if calls != 1:
            fix = "the layer around it"
            if calls == 0:  # timm's checkpointing calls the blocks of a stage one by one
                fix = "one that the model calls: the last part of it, perhaps"
            raise LayerError(
                f"{caller}: layer {name!r} ran {calls} times in the forward pass. Choose {fix}. "
                "A guided layer runs once."
            )
        if name in passed.problems:
            raise LayerError(f"{caller}: layer {name!r} {passed.problems[name]}")
    image = passed.images
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        got = type(image).__name__
        if isinstance(image, Tensor):
            got = f"{image.dtype} of shape {tuple(image.shape)}"
        raise ShapeError(
            f"{caller}: the model was called with {got}. Call it with a batch of images. Floating "
            "point (N, C, H, W) is allowed."
        )
    layouts = {
        name: infer_layout(
            name,
            passed.features[name],
            passed.image_size,
            model=model,
            module=module,
            batch=len(image),
            reading=reading,
            caller=caller,
        )
        for name, module in modules.items()
    }
    return {name: passed.features[name] for name in modules}, layouts


def rerun(
    model: nn.Module, tap: Tap, passed: ForwardPass, substitutes: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of the same images from other features, and the other layers' activations.

    Buffers are copies, so that running statistics are not updated a second time.
    """
    if passed.logits is None:
        raise GuidanceError("rerun: the forward pass did not finish")
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = passed.logits.device.type
    enabled, dtype = passed.autocast
    with (
        tap.substitute(substitutes) as others,
        torch.autocast(device, dtype=dtype, enabled=enabled),
    ):
        output = torch.func.functional_call(model, buffers, passed.inputs, passed.kwargs)
    return check_logits(output, caller=type(model).__name__), dict(others)
