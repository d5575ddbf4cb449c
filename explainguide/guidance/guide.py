"""`ExplanationGuidance`: where a model, an attribution, a loss and annotations meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.annotations.labels import FirstLabel
from explainguide.attr import LayerMap
from explainguide.attr.evidence import buffers_aside, passing
from explainguide.errors import check_option, operation
from explainguide.guidance.copies import build, rebuild
from explainguide.guidance.objective import Objective, localize
from explainguide.guidance.options import GuideOptions
from explainguide.guidance.refusals import check_generator, check_model, check_weights
from explainguide.guidance.selfcheck import Report, as_it_was, on_host, probe_gradients
from explainguide.guidance.waiting import graph_kept, take_pass
from explainguide.hooks.layers import resolve_layers, unwrap
from explainguide.hooks.logits import PREDICTED, check_classifier
from explainguide.hooks.reading import Output
from explainguide.hooks.sharded import check_whole, kept_whole
from explainguide.hooks.trunk import check_compiled, compile_trunk, with_compiled
from explainguide.losses import Loss
from explainguide.losses.table import resolve_loss

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
            DistributedDataParallel, or cut in pieces by `fully_shard`.
        layer: ``"input"``, a dotted name as `nn.Module.named_modules` gives it, a module, or a list of
            them.
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
        sync_dist: Whether, in a distributed run, ``"mean"`` is over the annotated images of all
            processes: their number is summed in each `loss_loc`, which every process must call then,
            and each process's loss is scaled so that DistributedDataParallel's average of the
            gradients is that mean's. Otherwise over each process's own.
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
        fast: Whether operations between the layer and the logits get a faster second derivative, to the
            same values up to rounding: ``"auto"``, where it was measured to pay; True, wherever it
            can; False, PyTorch's own.
        rows: Which images of a batch are differentiated twice: ``"all"``, or the ``"annotated"`` alone,
            to the same loss and gradients. The batch then runs as without a guide, and those images
            once more from the first guided layer on, which pays where well under half are annotated.
            What runs again must treat each image by itself and draw no random numbers, or `loss_loc`
            refuses: no BatchNorm in training mode, no dropout.

    Attributes:
        layers: The resolved layer names.
        attributions: The maps of the last `loss_loc`, ``{layer: (N, h, w)}``, detached, averaged over
            the classes where target="all".
        replaced: Operations that have run in a form that can be differentiated twice.
        fast: Operations that have run in a form that is differentiated twice in less time.
        slow: Operations that have such a form and ran as PyTorch has them, and why, by name.
        compiled: The modules that `compile` compiled.

    Raises:
        OptionError: For an unknown option; with the nearest allowed one.
        LayerError: For an unknown layer.
        GuidanceError: For a model that cannot be guided: frozen, compiled as a whole or above the
            layer, SyncBatchNorm.

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

    @operation("ExplanationGuidance")
    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
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
        sync_dist: bool = True,
        output: Output | None = None,
        layout: str | None = None,
        grid: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = None,
        image_argument: int | str | None = None,
        fast: bool | Literal["auto"] = "auto",
        rows: Literal["all", "annotated"] = "all",
    ) -> None:
        given = locals()
        names = [field.name for field in fields(GuideOptions) if field.name in given]
        self._begin(model, GuideOptions(**{name: given[name] for name in names}), generator)

    @operation("ExplanationGuidance")
    def _begin(
        self, model: nn.Module, options: GuideOptions, generator: torch.Generator | None
    ) -> None:
        self._outer = model
        self._model = unwrap(model, compiled_parts=True)
        check_model(self._model)
        given = options.attribution
        named = not isinstance(given, LayerMap)  # an object says itself how the model is read
        check_classifier(self._model, options.reading if named else given.reading)
        check_generator(generator)
        placed = options.place(self._model, trained=True)
        self._settings = Objective(
            options=options,
            attribution=placed.method,
            loss=resolve_loss(options.chosen_loss()),
            layer_weights=check_weights(options.layer_weights, list(placed.layers)),
            generator=generator,
            group=getattr(model, "process_group", None),
        )
        self._examined = False  # whether every operation was seen to have a second derivative
        self.replaced, self.fast = set[str](), set[str]()
        self.slow: dict[str, str] = {}
        self.attributions: dict[str, Tensor] = {}
        self.compiled: list[str] = []
        tap = placed.method.tap(placed.layers, fast=options.fast, rows=options.rows)
        self._tap = with_compiled(tap, placed.method.reading)

    @property
    def options(self) -> GuideOptions:
        """What the guide was built with."""
        return self._settings.options

    @property
    def layers(self) -> list[str]:
        """The resolved layer names."""
        return list(self._tap.layers)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The model's own forward."""
        return self._outer(*inputs, **options)

    def __enter__(self) -> ExplanationGuidance:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        options = self.options
        attribution, loss = options.names()
        seen: dict[str, Any] = {"replaced": sorted(self.replaced), "fast": sorted(self.fast)}
        seen |= {"slow": dict(sorted(self.slow.items())), "compiled": self.compiled}
        told = "".join(f", {name}={value}" for name, value in seen.items() if value)
        state = "" if self._tap.attached else ", removed"
        return (
            f"ExplanationGuidance(layer={self.layers}, attribution={attribution!r}, loss={loss!r}, "
            f"target={options.target!r}, score={options.score!r}, reduction={options.reduction!r}"
            f"{told}{state})"
        )

    def remove(self) -> None:
        """Take every hook off the model, and what `compile` compiled is as it was before.

        `loss_loc` cannot be called any more.
        """
        self._tap.remove()

    @operation("ExplanationGuidance.compile")
    def compile(self, **options: Any) -> list[str]:
        """Compile, in place, the outermost modules that end before the first guided layer.

        These alone are differentiated once, so that they may be compiled, to the same values up to
        rounding; the rest of the model runs as before. They are found in one forward pass of one image.
        The first pass of each kind, by batch shape and mode, runs uncompiled, and so does every pass of
        `attribute`. `remove` takes it back, as a guide that is forgotten does; neither parameters nor
        state dict change, and copies are not compiled.

        Args:
            options: Of `torch.nn.Module.compile`, such as ``mode="max-autotune"``.

        Returns:
            The names of the modules. What was compiled before stays as it is, and is not among them.

        Raises:
            GuidanceError: If nothing ends before the layer, as before "input"; for a B-cos network.
            LayerError: If the model does not run on an image of the probe: say `image_size`.
            OptionError: For an option that torch.compile does not take.
        """
        names = compile_trunk(self._tap, self._settings.attribution.reading, options)
        self.compiled += names
        return names

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within this context forward passes are not read, and run as they would without the guide.

        For a pass of which no `loss_loc` follows: unlabelled images, another crop, the first step of
        SAM, evaluation with gradients. A pass that awaits its `loss_loc` goes on waiting.
        """
        with self._tap.pause():
            yield

    def loss_loc(
        self, annotations: Any, target: int | Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The localization loss of the last forward pass.

        Costs one backward pass through the layers above the first guided one, and a second when the
        loss is differentiated. No value is read from the device when the annotations are there
        already, but with rows="annotated" where these are masks. The graph of the pass is let go.

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
            GuidanceError: Without a forward pass with gradients, or after one that was used, or after
                its `backward`.
            LayerError, AnnotationError, OptionError, ShapeError: With the reason. After an error the
                forward pass is let go, and the guide reads the next.

        Warns:
            ExplainGuideWarning: Once, if passes before the last one were recorded for nothing. If
                float16 logits on the CPU are not finite; on a device, where that would be waited for,
                `check` tells it.
        """
        return self._loss_loc(annotations, target, alone=False)

    @operation("ExplanationGuidance.loss_loc")
    def _loss_loc(self, annotations: Any, target: Any, *, alone: bool) -> Tensor:
        passed = take_pass(self._tap)
        if not passed.compiled <= self._tap.examined:  # something was compiled since
            check_compiled(self._tap, self._settings.attribution.reading)
        with graph_kept(), kept_whole(self._model), torch.autocast(passed.device, enabled=False):
            loss, maps = localize(
                self._settings,
                self._tap,
                passed,
                annotations,
                target,
                alone=alone,
                examine=not self._examined,
            )
        self._examined = True
        self.attributions = maps
        self.replaced |= passed.replaced
        self.fast |= passed.fast
        self.slow |= passed.slow
        return loss

    @operation("ExplanationGuidance.attribute")
    def attribute(
        self,
        inputs: Tensor,
        target: int | str | Sequence[int] | Tensor | None = None,
        *,
        layer: str | nn.Module | None = None,
        interpolate: bool = True,
    ) -> Tensor:
        """The map of a class, for evaluation and pictures, in the model's present mode.

        Costs one forward and one backward pass; works under ``torch.no_grad``; leaves a forward pass
        that awaits its `loss_loc` as it is, and running statistics too.

        Args:
            inputs: Images, ``(N, C, H, W)``.
            target: One class for all images, or one an image, ``(N,)``. By default, or as
                ``"predicted"``, the predicted class of each image.
            layer: One of the guide's layers; by default the first.
            interpolate: Upsample to the image, bilinearly.

        Returns:
            ``(N, 1, H, W)``, or ``(N, 1, h, w)`` without interpolation; detached.

        Raises:
            OptionError: If the layer is none of the guide's, or the target no class.
        """
        name = self.layers[0] if layer is None else layer
        if isinstance(name, nn.Module):
            (name,) = resolve_layers(self._model, name)
        check_option("layer", name, self.layers)
        maps = self._settings.attribution.at(name).attribute(
            inputs, PREDICTED if target is None else target
        )
        if interpolate and maps.shape[-2:] != inputs.shape[-2:]:
            maps = F.interpolate(maps, inputs.shape[-2:], mode="bilinear", align_corners=False)
        return maps

    @operation("ExplanationGuidance.check")
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
            gradient's size in the parameters before and after it, the operations replaced, and
            whether float16 logits have left its range.

        Raises:
            GuidanceError: If `fully_shard` has cut the model in pieces.
        """
        check_whole(self._model, remedy="Call check before fully_shard.")
        waiting, dropped = self._tap.last, self._tap.dropped
        try:
            self._tap.forget()
            with (
                as_it_was(self._settings.generator),
                torch.inference_mode(False),
                buffers_aside(self._model),
                passing(self._tap, images) as passed,
            ):
                held = on_host(annotations), on_host(target, name="target")
                loss = self._loss_loc(*held, alone=True)
                logits = self._settings.attribution.logits(passed)
                seen = passed.features, self.attributions, loss, self.replaced, logits
                return probe_gradients(self._model, *seen)
        finally:
            self._tap.last, self._tap.dropped = waiting, dropped

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is built anew on the copy of the model; hooks are never copied."""
        generator = self._settings.generator
        state = None if generator is None else (generator.device, generator.get_state())
        layers = self.layers
        options = replace(self.options, layer=layers[0] if len(layers) == 1 else layers)
        return rebuild, (type(self), self._outer, options, state, self._tap.attached)

    def __getattr__(self, name: str) -> Any:
        """Whatever a copy lacks that was made while its model was: it is built on first use."""
        if "_late" not in vars(self) or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        build(self, *vars(self).pop("_late"))
        return getattr(self, name)
