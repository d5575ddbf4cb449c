"""What every attribution shares: the evidence of one forward pass, and Captum's calling convention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from explainguide.attr.evidence import Evidence, buffers_aside, check_rerun, explain, passing
from explainguide.errors import (
    ShapeError,
    Table,
    constructor,
    method,
    operation,
    warn,
)
from explainguide.hooks.fast import Fast
from explainguide.hooks.layers import INPUT, resolve_layers, unwrap
from explainguide.hooks.layout import Layout
from explainguide.hooks.logits import as_targets, check_classifier, check_logits, class_scores
from explainguide.hooks.reading import Output, check_reading
from explainguide.hooks.some_images import SomeImages
from explainguide.hooks.tap import ForwardPass, Tap

__all__ = [
    "ATTRIBUTIONS",
    "Inputs",
    "LayerMap",
    "attribution",
    "for_noise_tunnel",
]

Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable[..., Any])
Kind = TypeVar("Kind", bound="type[LayerMap]")
Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


ATTRIBUTIONS: Table[str, type[LayerMap]] = Table("ATTRIBUTIONS")


def attribution(name: str) -> Callable[[Kind], Kind]:
    """Enter an attribution in the table, so that its name stands for it.

    Raises:
        OptionError: Where a class is decorated with a name that another attribution has.

    Example:
        >>> from explainguide.attr import InputXGradient
        >>> @attribution("absolute")
        ... class AbsoluteProduct(InputXGradient):
        ...     def maps(self, evidence):
        ...         return {name: found.abs() for name, found in super().maps(evidence).items()}
        >>> ATTRIBUTIONS.pop("absolute").__name__
        'AbsoluteProduct'
    """

    @operation("attribution")
    def enter(kind: Kind) -> Kind:
        ATTRIBUTIONS[name] = kind
        return kind

    return enter


def for_noise_tunnel(method: Method) -> Method:
    """Captum's `NoiseTunnel` calls ``attribute.__wrapped__``, which its own decorator leaves."""

    @wraps(method)
    def attribute(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return cast(Method, attribute)


class LayerMap(Attribution):
    """One map an image at one layer, by Captum's conventions, and differentiable.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        layer: Dotted name or module; None, or ``"input"``, is the image, as in Captum.
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
        reruns: Whether the attribution runs the model again from other features.
        places_itself: Whether the attribution finds its own layer when none is named.
        non_negative: Whether no map ever has a negative value, which makes some losses cheaper. A
            subclass, whose maps may be others, says it of itself or does not have it.

    Raises:
        LayerError: If the model has no such layer.
    """

    attentions: tuple[str, ...] = ()
    reruns: ClassVar[bool] = False
    places_itself: ClassVar[bool] = False
    non_negative: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.non_negative = vars(cls).get("non_negative", False)

    @constructor
    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        output: Output | None = None,
        layout: str | None = None,
        grid: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] | None = None,
        image_argument: int | str | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(model)
        self.reading = check_reading(
            output=output,
            layout=layout,
            grid=grid,
            prefix_tokens=prefix_tokens,
            image_argument=image_argument,
            image_size=image_size,
        )
        self.model = unwrap(model, compiled_parts=True)
        check_classifier(self.model, self.reading)
        self._told: set[str] = set()
        self._modules = resolve_layers(self.model, INPUT if layer is None else layer)
        self.layer = None if layer is None else next(iter(self._modules))
        self._check()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse values of the constructor's own options, as far as no model is needed to tell.

        A guide calls it where its options are given, before there is a model. Kinds of plain values,
        as the constructor annotates them, are checked already.
        """

    def _check(self) -> None:
        """Refuse a model that the attribution cannot explain, before any forward pass."""

    @constructor
    def at(self, layer: str | nn.Module) -> LayerMap:
        """The same attribution, with the same settings, at another layer."""
        moved = copy.copy(self)
        moved._modules = resolve_layers(self.model, layer)
        moved.layer = next(iter(moved._modules))
        return moved

    def tap(
        self, modules: dict[str, nn.Module | None], *, fast: Fast = False, rows: str = "all"
    ) -> Tap:
        """What reads a forward pass for this attribution at these layers.

        Args:
            modules: As `resolve_layers` returns them.
            fast: Whether operations get their fast second derivative.
            rows: ``"all"``, or ``"annotated"`` for passes of which some images are explained, once it
                is known which.

        Raises:
            GuidanceError: If the model must run again, and `fully_shard` has cut it in pieces.
        """
        argument = self.reading.image_argument
        if rows == "annotated":
            return SomeImages(self.model, modules, self.attentions, image_argument=argument)
        if self.reruns:
            check_rerun(self.model)
        return Tap(
            self.model,
            modules,
            self.attentions,
            reruns=self.reruns,
            image_argument=argument,
            fast=fast,
        )

    def tell(self, layouts: dict[str, Layout]) -> None:
        """Say once, for each layer, what is assumed of the places of its tokens."""
        for name, layout in layouts.items():
            if layout.assumed and name not in self._told:
                self._told.add(name)
                warn(f"of layer {name!r} it is assumed that {layout.assumed}.")

    def logits(self, passed: ForwardPass) -> Tensor:
        """The logits of a forward pass, ``(N, K)``.

        Raises:
            ShapeError: If the images or the logits cannot be told.
        """
        if passed.images is None:
            raise ShapeError(
                f"the model was called without images that can be told: {passed.no_image}. "
                "Call it with a batch of images, or name the argument with image_argument=. Floating "
                "point (N, C, H, W) is allowed."
            )
        return check_logits(passed.output, reading=self.reading, images=len(passed.images))

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """The maps of every layer in the evidence, ``{layer: (S, N, h, w)}``; subclasses say how."""
        raise TypeError(f"{type(self).__name__} does not say how its maps are computed")

    @for_noise_tunnel
    @method
    def attribute(
        self,
        inputs: Inputs,
        target: int | str | Sequence[int] | Tensor | None = None,
        *,
        additional_forward_args: Any = None,
        create_graph: bool = False,
    ) -> Inputs:
        """Attribute the target's logit.

        Running statistics of the model stay as they are, in training mode too.

        Args:
            inputs: Images, ``(N, 3, H, W)``; or a tuple of what the model takes, of which one is the
                images.
            target: One class for all images, or one an image, ``(N,)``; or ``"predicted"``, the class
                of the highest score. None is that too; but where the model has a single logit, it,
                as in Captum. With a single logit z class 1's score is z and class 0's is -z.
            additional_forward_args: Passed to the model after the images; a tuple is several.
            create_graph: Whether the map can be differentiated with respect to the parameters,
                so that it can be part of a loss.

        Returns:
            One map an image at the layer's own resolution, ``(N, 1, h, w)``; float32 where the
            layer computed in half precision. For a tuple of inputs a tuple of that map.

        Raises:
            LayerError: If the layer has no spatial extent or does not reach the logits.
            OptionError: If the target is not a class of the model.
        """
        attributions = self._explain(
            inputs, target, additional_forward_args, create_graph, lambda evidence, maps: maps
        )
        return (attributions,) if isinstance(inputs, tuple) else attributions

    def _explain(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any,
        extra: Any,
        create_graph: bool,
        finish: Callable[[Evidence, Tensor], Result],
    ) -> Result:
        """Run the model and attribute; `finish` sees the evidence and the maps, ``(N, 1, h, w)``."""
        extra = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
        given = (*(inputs if isinstance(inputs, tuple) else (inputs,)), *extra)
        tap = self.tap(self._modules, fast="auto" if create_graph else False)
        try:
            with (
                torch.inference_mode(False),
                buffers_aside(self.model),
                passing(tap, *given) as passed,
            ):
                classes = as_targets(target, self.logits(passed))
                maps, evidence = explain(
                    self,
                    tap,
                    passed,
                    score=lambda z: class_scores(z).gather(1, classes[:, None]).T,
                    create_graph=create_graph,
                )
                (layer_map,) = maps.values()
                layer_map = layer_map[0, :, None]
                return finish(evidence, layer_map if create_graph else layer_map.detach())
        finally:
            tap.remove()
