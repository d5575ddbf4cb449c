"""Which modules of a model are global softmax attention: one probe forward tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.attr.rollout import Readout
from explainguide.errors import ExplainGuideError, GuidanceError, LayerError, first_line
from explainguide.hooks.attention import Weights
from explainguide.hooks.layout import Layout, infer_layout
from explainguide.hooks.probe import probe, probed_size
from explainguide.hooks.reading import AS_FOUND, Reading
from explainguide.hooks.sharded import kept_whole
from explainguide.hooks.tap import Tap
from explainguide.hooks.token_grid import Steps

__all__ = ["AttentionBlock", "find_attention"]


@dataclass(frozen=True)
class AttentionBlock:
    """One attention module.

    Attributes:
        name: Dotted name.
        prefix: Tokens among its keys that belong to no place.
        queries: Number of queries; None where every token asks.
    """

    name: str
    prefix: int
    queries: int | None

    def fits(self, shape: Sequence[int], batch: int, patches: int) -> bool:
        """Whether weights of this shape are what this block computes for so many images."""
        keys = self.prefix + patches
        queries = keys if self.queries is None else self.queries
        return (len(shape), shape[0], *shape[2:]) == (4, batch, queries, keys)


@dataclass(frozen=True)
class _Seen:
    """One attention of the probe.

    Attributes:
        name: Of the module that computed it.
        weights: In the graph of the logits.
        output: What the module returned.
        follows: Whether it depends on the attention before it.
    """

    name: str
    weights: Weights
    output: Any
    follows: bool

    @property
    def queries(self) -> int:
        return self.weights.shape[-2]

    @property
    def keys(self) -> int:
        return self.weights.shape[-1]


def find_attention(
    model: nn.Module, *, reading: Reading = AS_FOUND
) -> tuple[tuple[AttentionBlock, ...], Readout]:
    """The attention modules in the order in which they run, and what the logits are read from.

    The innermost module that computes an attention owns it. Attention after which nothing reaches
    the logits is left out.

    Args:
        model: The unwrapped model. It runs on one random image, as in `probe_layers`.
        reading: What the user has said of the model.

    Raises:
        GuidanceError: If the model has no attention, or one that is not global over its tokens.
        LayerError: If it does not run on a random image.
    """
    size = probed_size(model, reading)
    seen, gradients, steps = _probe(model, size, reading)
    layouts = []
    for index, entry in enumerate(seen):
        problem, layout = _read(entry, model, size[1:], steps, reading)
        if problem or layout is None:
            raise _refusal(model, problem)
        if any(entry.name == earlier.name for earlier in seen[:index]):
            several = f"computes several attentions in module {entry.name!r}"
            raise _refusal(model, several)
        if not entry.follows:
            parallel = (
                f"runs the attention of {seen[index - 1].name!r} and {entry.name!r} side by side"
            )
            raise _refusal(model, parallel)
        layouts.append(layout)
    while gradients and (gradients[-1] is None or not gradients[-1].any()):
        del gradients[-1], layouts[-1], seen[-1]
    if not seen:
        raise _refusal(model, "has no softmax attention over tokens")
    blocks: list[AttentionBlock] = []
    joined = False  # a class token that came after the first attention
    for index, (entry, layout) in enumerate(zip(seen, layouts, strict=True)):
        before = layouts[max(index - 1, 0)]
        grows = layout.prefix > before.prefix
        if layout.grid != before.grid or layout.prefix < before.prefix or (grows and layout.others):
            change = f"from {seen[index - 1].keys} to {entry.keys} at module {entry.name!r}"
            raise _refusal(model, f"changes its number of tokens, {change}")
        joined |= grows
        asks = None if entry.queries == entry.keys else entry.queries
        if asks is not None and not joined and entry is not seen[-1]:
            few = f"lets only {asks} of {entry.keys} tokens ask in module {entry.name!r}"
            raise _refusal(model, few)
        blocks.append(AttentionBlock(entry.name, layout.prefix, asks))
    last, gradient = blocks[-1], gradients[-1]
    assert gradient is not None
    read = (gradient.reshape(seen[-1].weights.shape) != 0).any(-1).flatten(0, -2).any(0).tolist()
    others = layouts[-1].others or tuple(range(last.prefix))
    used = tuple(place for place in others if place < len(read) and read[place])
    if last.queries is not None:
        return tuple(blocks), Readout(others, used, False, latent=not joined)
    patches = any(is_read for place, is_read in enumerate(read) if place not in others)
    return tuple(blocks), Readout(others, used, patches)


def _probe(
    model: nn.Module, size: tuple[int, int, int], reading: Reading
) -> tuple[list[_Seen], list[Tensor | None], Steps]:
    """Every attention of a pass, the gradient with respect to its weights, and what the pass shows."""
    modules = {n: m for n, m in model.named_modules() if n and not isinstance(m, nn.Softmax)}
    outputs: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        outputs[name] = output

    handles = [m.register_forward_hook(partial(keep, n)) for n, m in modules.items()]
    tap = Tap(model, {}, list(modules))

    def look(score: Tensor) -> tuple[list[_Seen], list[Tensor | None], Steps]:
        attentions, steps = {}, Steps()
        if tap.last is not None:
            attentions, steps = tap.last.attentions, tap.last.steps
        named = [(name, weights) for name, several in attentions.items() for weights in several]
        tensors = [weights.tensor for _, weights in named]
        if not tensors:
            return [], [], steps
        gradients = torch.autograd.grad(score, tensors, retain_graph=True, allow_unused=True)
        follows = [True, *(_depends(b, a) for a, b in pairwise(tensors))]
        seen = [
            _Seen(name, weights, outputs[name], after)
            for (name, weights), after in zip(named, follows, strict=True)
        ]
        return seen, list(gradients), steps

    try:
        with tap.alone(), kept_whole(model, until_backward=False):
            return probe(model, size, look, reading=reading)
    except ExplainGuideError:
        raise
    except Exception as error:  # whatever a model does with an image that it was not made for
        raise LayerError(
            f"the attention could not be found, because {type(model).__name__} did not run "
            f"on an image of {' x '.join(map(str, size))} ({first_line(error)}). Say the "
            "size with image_size=(height, width). Models that map images to logits are allowed."
        ) from error
    finally:
        tap.remove()
        for handle in handles:
            handle.remove()


def _depends(tensor: Tensor, source: Tensor) -> bool:
    """Whether a tensor was computed from another one."""
    (link,) = torch.autograd.grad(tensor.sum(), source, retain_graph=True, allow_unused=True)
    return link is not None


def _read(
    entry: _Seen, model: nn.Module, size: tuple[int, int], steps: Steps, reading: Reading
) -> tuple[str, Layout | None]:
    """What keeps one attention from being rolled out, or the layout of its keys."""
    shape, where = entry.weights.shape, f"in module {entry.name!r}"
    if len(shape) == 3:
        return f"does not tell images from heads in the attention of {entry.name!r}: {shape}", None
    if len(shape) != 4 or shape[0] != 1:
        return f"attends within windows {where}: its weights are {shape} for one image", None
    output = entry.output[0] if isinstance(entry.output, tuple) else entry.output
    if isinstance(output, Tensor) and output.ndim == 3 and entry.queries not in output.shape[:2]:
        tokens = max(output.shape[:2])
        return f"attends over {entry.keys} channels {where}, not over its {tokens} tokens", None
    if entry.keys < entry.queries:
        return f"lets {entry.queries} tokens attend to only {entry.keys} keys {where}", None
    keys = entry.weights.tensor.new_empty(1, entry.keys, 1)
    try:
        return "", infer_layout(
            entry.name,
            keys,
            size,
            model=model,
            module=None,
            batch=1,
            reading=reading,
            steps=steps,
        )
    except LayerError:
        height, width = size
        return f"attends over {entry.keys} positions {where}, no grid of {height} x {width}", None


def _refusal(model: nn.Module, problem: str) -> GuidanceError:
    return GuidanceError(
        f"{type(model).__name__} {problem}. Use attribution='gradcam' or 'ixg'. Models with "
        "global softmax attention over all tokens, block after block, are allowed: vit, deit, beit, "
        "eva, cait, vit_relpos, torchvision's vit."
    )
