"""The way from a forward pass to maps: the evidence of the pass, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from explainguide.errors import GuidanceError, LayerError
from explainguide.hooks.attention import Weights
from explainguide.hooks.layout import Layout, infer_layout
from explainguide.hooks.logits import check_logits
from explainguide.hooks.sharded import check_whole
from explainguide.hooks.tap import ForwardPass, Tap

if TYPE_CHECKING:
    from explainguide.attr.base import LayerMap

__all__ = ["Evidence", "buffers_aside", "check_rerun", "explain", "passing", "usable"]


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
    attentions: Mapping[str, Sequence[Weights]] = field(default_factory=dict)


@contextmanager
def passing(tap: Tap, *inputs: Any) -> Iterator[ForwardPass]:
    """Run the model for one tap alone, with gradients, whatever the mode outside.

    A pass that waits for its loss in another tap goes on waiting.

    Args:
        tap: What reads the pass.
        inputs: What the model is called with.

    Yields:
        The pass, to be explained within the context.
    """
    with tap.alone(), torch.inference_mode(False), torch.enable_grad():
        tap.model(*map(usable, inputs))
        assert tap.last is not None
        yield tap.last


def explain(
    method: LayerMap,
    tap: Tap,
    passed: ForwardPass,
    *,
    score: Callable[[Tensor], Tensor],
    create_graph: bool,
) -> tuple[dict[str, Tensor], Evidence]:
    """The maps of a forward pass at every layer of its tap: the one way from a pass to maps.

    Args:
        method: The attribution.
        tap: What has read the pass; it runs the model again, where the attribution asks for it.
        passed: The pass.
        score: Logits to the scores that are explained, ``(S, N)``: S classes of every image.
        create_graph: Whether the maps must be differentiable.

    Returns:
        ``{layer: (S, N, h, w)}``, and the evidence that they are made of.

    Raises:
        LayerError: If a layer did not run, ran twice, has no spatial extent, or does not reach the
            logits.
        ShapeError: If the images or the logits cannot be told.
    """
    evidence = _gather(method, tap, passed, score, create_graph)
    return method.maps(evidence), evidence


def check_rerun(model: nn.Module) -> None:
    """Refuse a model that cannot run again before the backward pass of its first run.

    Raises:
        GuidanceError: If `fully_shard` has cut it in pieces.
    """
    check_whole(model, remedy="Use attribution='ixg' or 'gradient', which run the model once.")


def usable(value: Any) -> Any:
    """What autograd may save: a tensor made under inference_mode becomes an ordinary one."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def buffers_aside(model: nn.Module) -> Iterator[None]:
    """Within this context a model has copies of its buffers, so that running statistics stay.

    Writing them back afterwards would not do: a pass that waits for its backward may hold them.
    """
    copies: dict[int, Tensor] = {}
    own = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for buffers, name, buffer in own:
            buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        yield
    finally:
        for buffers, name, buffer in own:
            buffers[name] = buffer


def _gather(
    method: LayerMap,
    tap: Tap,
    passed: ForwardPass,
    score: Callable[[Tensor], Tensor],
    create_graph: bool,
) -> Evidence:
    """Captured activations, how each is read, and the logits."""
    logits, image = method.logits(passed), passed.images
    assert image is not None
    for name in tap.layers:
        calls = passed.calls.get(name, 0)
        if calls != 1:
            fix = "the layer around it"
            if calls == 0:  # timm's checkpointing calls the blocks of a stage one by one
                fix = "one that the model calls: the last part of it, perhaps"
            raise LayerError(
                f"layer {name!r} ran {calls} times in the forward pass. Choose {fix}. "
                "A guided layer runs once."
            )
        if name in passed.problems:
            raise LayerError(f"layer {name!r} {passed.problems[name]}")
    layouts = {
        name: infer_layout(
            name,
            passed.features[name],
            passed.image_size,
            model=method.model,
            module=None if name in method.attentions else module,
            batch=len(image),
            reading=method.reading,
            steps=passed.until.get(name),
        )
        for name, module in tap.layers.items()
    }
    method.tell(layouts)
    return Evidence(
        {name: passed.features[name] for name in tap.layers},
        layouts,
        logits,
        score,
        image,
        rerun=lambda substitutes: _rerun(method, tap, passed, substitutes),
        create_graph=create_graph,
        attentions=passed.attentions,
    )


def _rerun(
    method: LayerMap, tap: Tap, passed: ForwardPass, substitutes: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of the same images from other features, and the other layers' activations.

    With the parameters and buffers that the pass saw, which under `torch.func.functional_call` are not
    the model's own. Buffers are copies: running statistics are not updated a second time.
    """
    if passed.state is None:
        raise GuidanceError(
            f"{type(method).__name__} runs the model again without reruns = True. Write that in its "
            "class. Only attributions with it are allowed to call evidence.rerun."
        )
    check_rerun(method.model)  # it may have been cut since the tap was made
    buffers = {name for name, _ in method.model.named_buffers()}
    state = {name: v.clone() if name in buffers else v for name, v in passed.state.items()}
    enabled, dtype = passed.autocast
    with (
        tap.substitute(substitutes, passed) as others,
        torch.autocast(passed.device, dtype=dtype, enabled=enabled),
    ):
        output = torch.func.functional_call(method.model, state, passed.inputs, passed.kwargs)
    assert passed.images is not None
    logits = check_logits(output, reading=method.reading, images=len(passed.images))
    return logits, dict(others)
