"""`ExplanationGuidance`: where a model, an attribution, a loss and annotations meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.attr import LayerMap
from explainguide.derivatives import check_derivatives
from explainguide.errors import GuidanceError
from explainguide.labels import FirstLabel, check_first_label
from explainguide.layers import resolve_layers, unwrap
from explainguide.losses import Loss
from explainguide.objective import Settings, localize
from explainguide.options import (
    NAME,
    check_choices,
    check_model,
    check_option,
    check_weights,
    combine_layers,
    name_of,
    resolve_attribution,
)
from explainguide.probe import find_layer
from explainguide.reading import Output, check_reading
from explainguide.selfcheck import Report, as_it_was, on_host, probe_gradients
from explainguide.staging import resolve_loss
from explainguide.tap import ForwardPass, Tap

__all__ = ["ExplanationGuidance"]


class ExplanationGuidance:
    r"""A localization loss on what a classifier looks at, from the training script's own forward.

    .. math:: L = L_{class} + \lambda \sum_l w_l\, loss(A_l(x, k), M_k)

    The guide reads the activations of named layers while the script runs the model, computes the
    attribution :math:`A_l` of class k from them, differentiably, and compares it with the region
    :math:`M_k` of that class. It changes neither the model's parameters nor its state dict; under
    ``torch.no_grad`` it does nothing.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, K)``; any `nn.Module`, also inside
            DistributedDataParallel.
        layer: ``"input"``, a dotted name as `nn.Module.named_modules` gives it, or a list of them.
            None finds the last layer whose places reach the logits, with one probe forward.
        attribution: ``"gradient"``, ``"ixg"``, ``"gradcam"``, ``"layercam"``, ``"intgrad"``,
            ``"bcos"``, ``"relevance"``, or an object of `explainguide.attr` with settings of its own.
        loss: ``"energy"``, ``"l1"``, ``"ppce"``, ``"rrr"``, ``"gradmask"``, ``"relevance"``,
            ``"reff"``, or a callable ``(attribution (N, H, W), mask (N, H, W)) -> (N,)``.
        target: Which classes of an image are explained: ``"sample"`` one of its annotated classes,
            drawn uniformly; ``"all"`` of them, averaged, which is the expectation of "sample";
            ``"predicted"`` the model's own, where it is annotated.
        score: What is explained: the ``"logit"`` of class k, its ``"log_prob"`` under softmax, or
            ``"sum_log_probs"`` over all classes.
        negatives: With this probability a class that the image does not show is explained, against
            the objects of all classes; needs target="sample".
        layer_weights: One factor a layer; 1 by default.
        reduction: ``"mean"`` over annotated images, ``"sum"`` (what the published lambdas assume) or
            ``"none"``, one value an image.
        generator: For the draw of classes; by default torch's own.
        first_label: The label of the first logit, where the annotations' labels do not count from 0:
            1 for torchvision's detection data sets. Or a dict from the data set's ids to logits. Not
            for `target`, and not again for `Annotations` that were built with it.
        output: Which of several things that the model returns are the logits: an index, a key, an
            attribute, or a callable that takes what the model returned. Where the model returns a
            tensor (as many do in evaluation mode only), an index or key is not used.
        layout: ``"NCHW"`` or ``"NHWC"``, where a layer's four dimensions can be read both ways.
        grid: (h, w) of a layer's tokens, where shape and model do not tell it.
        prefix_tokens: How many tokens in front belong to no place (class token, registers), or their
            positions; likewise.
        image_size: (H, W) of an image that the model takes, for the probe that finds the layer, where
            the model does not tell it.
        image_argument: Which argument of the model the images are, a position or a name, where more
            than one is floating point (N, C, H, W).

    Attributes:
        layers: The resolved layer names.
        attributions: The maps of the last `loss_loc`, ``{layer: (N, h, w)}``, detached, averaged over
            the classes where target="all".
        replaced: Operations that have run in a form that can be differentiated twice.

    Raises:
        OptionError: For an unknown option; with the nearest allowed one.
        LayerError: For an unknown layer.
        GuidanceError: For a model that cannot be guided: frozen, compiled, SyncBatchNorm.

    References:
        Rao et al., 2023, Eq. 2 to 6.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5))
        >>> guide = ExplanationGuidance(model, layer="1", loss="energy")
        >>> logits = model(torch.rand(2, 3, 16, 16))
        >>> boxes = {"boxes": torch.tensor([[4.0, 4.0, 12.0, 12.0]]), "labels": torch.tensor([3])}
        >>> loss_loc = guide.loss_loc([boxes, None])  # the second image is not annotated
        >>> (logits.logsumexp(1).mean() + 0.1 * loss_loc).backward()
        >>> guide.remove()
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | Sequence[str] | None = None,
        *,
        attribution: str | LayerMap = "ixg",
        loss: str | Loss = "energy",
        target: Literal["sample", "all", "predicted"] = "sample",
        score: Literal["logit", "log_prob", "sum_log_probs"] = "logit",
        negatives: float = 0.0,
        layer_weights: Sequence[float] | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        generator: torch.Generator | None = None,
        first_label: FirstLabel = 0,
        output: Output | None = None,
        layout: Literal["NCHW", "NHWC"] | None = None,
        grid: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = None,
        image_argument: int | str | None = None,
    ) -> None:
        check_choices(target, score, reduction, negatives)
        self._outer = model
        self._model = unwrap(model, caller=NAME)
        check_model(self._model)
        staged = resolve_loss(loss, caller=NAME)
        reading = check_reading(
            output=output,
            layout=layout,
            grid=grid,
            prefix_tokens=prefix_tokens,
            image_argument=image_argument,
            image_size=image_size,
            caller=NAME,
        )
        chosen = resolve_attribution(attribution, self._model, layer, reading)
        layer = combine_layers(layer, chosen)
        if layer is None:
            layer = find_layer(self._model, reading=chosen.reading, caller=NAME)
        modules = resolve_layers(self._model, layer, caller=NAME)
        self._settings = Settings(
            model=self._model,
            modules=modules,
            attribution=chosen,
            loss=staged,
            target=target,
            score=score,
            negatives=negatives,
            layer_weights=check_weights(layer_weights, list(modules)),
            reduction=reduction,
            generator=generator,
            first_label=check_first_label(first_label, caller=NAME),
            names=(name_of(attribution), name_of(loss)),
        )
        self._failure: str | None = None
        self._examined = False  # whether every operation was seen to have a second derivative
        self.replaced: set[str] = set()
        self.attributions: dict[str, Tensor] = {}
        self._tap = Tap(self._model, modules, chosen.attentions)

    @property
    def layers(self) -> list[str]:
        """The resolved layer names."""
        return list(self._settings.modules)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The model's own forward."""
        return self._outer(*inputs, **options)

    def __enter__(self) -> ExplanationGuidance:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        chosen = self._settings
        replaced = f", replaced={sorted(self.replaced)}" if self.replaced else ""
        state = "" if self._tap.attached else ", removed"
        return (
            f"{NAME}(layer={self.layers}, attribution={chosen.names[0]!r}, loss={chosen.names[1]!r}, "
            f"target={chosen.target!r}, score={chosen.score!r}, reduction={chosen.reduction!r}"
            f"{replaced}{state})"
        )

    def remove(self) -> None:
        """Take every hook off the model; `loss_loc` cannot be called any more."""
        self._tap.remove()

    def loss_loc(
        self, annotations: Any, target: int | Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The localization loss of the last forward pass.

        Costs one backward pass through the layers above the first guided one, and a second when the
        loss is differentiated. No value is read from the device when the annotations are there
        already. The graph of the forward pass is let go.

        Args:
            annotations: A list of detection-style dicts, `Annotations`, or masks ``(N, H, W)``,
                ``(N, 1, H, W)`` or ``(N, K, H, W)``; in pixels of the model's input.
            target: Class indices, one for all images or ``(N,)``, or multi-hot labels ``(N, K)`` to
                draw from. By default the annotated classes. Soft labels are refused on the host; on
                a device, where no value is read, their images' loss is NaN.

        Returns:
            A scalar, or ``(N,)`` with reduction="none". Images without annotation add nothing; a
            batch without any gives a zero that can be backpropagated. Not finite where a map is not.

        Raises:
            GuidanceError: Without a forward pass with gradients, or after one that was used.
            LayerError, AnnotationError, OptionError, ShapeError: With the reason. The hooks are off
                the model after an error.
        """
        caller = f"{NAME}.loss_loc"
        try:
            passed = self._take(caller)
            with torch.autocast(passed.device, enabled=False):
                loss, maps = localize(
                    self._settings, self._tap, passed, annotations, target, caller=caller
                )
            if not self._examined:
                found = passed.features.values()
                check_derivatives(loss, passed.logits, found, caller=caller)
                self._examined = True
        except BaseException as error:  # nothing is left on the model, whatever went wrong
            self._failure = str(error)
            self.remove()
            raise
        self.attributions = maps
        self.replaced |= passed.replaced
        return loss

    def attribute(
        self,
        inputs: Tensor,
        target: int | Sequence[int] | Tensor | None = None,
        *,
        layer: str | None = None,
        interpolate: bool = True,
    ) -> Tensor:
        """The map of a class, for evaluation and pictures, in the model's present mode.

        Costs one forward and one backward pass; works under ``torch.no_grad``; leaves a forward pass
        that awaits its `loss_loc` as it is.

        Args:
            inputs: Images, ``(N, C, H, W)``.
            target: One class for all images, or one an image, ``(N,)``.
            layer: One of the guide's layers; by default the first.
            interpolate: Upsample to the image, bilinearly.

        Returns:
            ``(N, 1, H, W)``, or ``(N, 1, h, w)`` without interpolation; detached.

        Raises:
            OptionError: If the layer is none of the guide's, or the target no class.
        """
        name = self.layers[0] if layer is None else layer
        check_option("layer", name, self.layers, caller=f"{NAME}.attribute")
        maps = self._settings.attribution.at(name).attribute(inputs, target)
        if interpolate and maps.shape[-2:] != inputs.shape[-2:]:
            maps = F.interpolate(maps, inputs.shape[-2:], mode="bilinear", align_corners=False)
        return maps

    def check(self, images: Tensor, annotations: Any, target: Any = None) -> Report:
        """Run one forward pass and see whether `loss_loc` alone trains the model.

        Nothing of the model is changed: no gradient is stored, buffers and the state of torch's
        random numbers come back as they were.

        Args:
            images: A batch, ``(N, C, H, W)``.
            annotations: As in `loss_loc`; their values are checked, wherever they are.
            target: As in `loss_loc`.

        Returns:
            A report that prints itself: for each layer whether the map is finite and alive, the
            gradient's size in the parameters before and after it, and the operations replaced.
        """
        waiting = self._tap.last
        with (
            as_it_was(self._model, self._settings.generator),
            self._tap.alone(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            self._model(images)
            passed = self._tap.last
            assert passed is not None
            loss = self.loss_loc(on_host(annotations), on_host(target))
            report = probe_gradients(
                self._model, passed.features, self.attributions, loss, self.replaced
            )
        self._tap.last = waiting
        return report

    def _take(self, caller: str) -> ForwardPass:
        """The pass that is waiting, once."""
        if not self._tap.attached:
            why = f" after the error: {self._failure}" if self._failure else ""
            raise GuidanceError(
                f"{caller}: the guide's hooks were taken off the model{why}. Build a new guide. "
                "A guide works until `remove` or an error."
            )
        if not torch.is_grad_enabled():
            raise GuidanceError(
                f"{caller}: gradients are off. Call it outside torch.no_grad and inference_mode. "
                "For maps in evaluation there is `attribute`."
            )
        passed = self._tap.last
        if passed is None:
            raise GuidanceError(
                f"{caller}: no forward pass is waiting. Call the model first. Each forward pass "
                "serves one loss_loc, and a pass that raised serves none."
            )
        if not passed.recorded:
            raise GuidanceError(
                f"{caller}: the last forward pass ran without gradients. Run the model outside "
                "torch.no_grad and inference_mode. The last forward pass is the one explained."
            )
        self._tap.forget()
        return passed
