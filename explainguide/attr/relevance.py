"""Generic attention explainability: the relevance of patches, rolled out over a ViT's attention."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.attr.attention_blocks import AttentionBlock, find_attention
from explainguide.attr.base import LayerMap, attribution
from explainguide.attr.evidence import Evidence
from explainguide.attr.gradients import dead_layer, layer_gradients
from explainguide.attr.rollout import mixing_matrix, roll_out
from explainguide.errors import LayerError, OptionError, check_flag, constructor, did_you_mean
from explainguide.hooks.dynamic import wide
from explainguide.hooks.layers import resolve_layers
from explainguide.hooks.layout import places_alone
from explainguide.hooks.reading import Output

__all__ = ["AttentionRelevance"]


@attribution("relevance")
class AttentionRelevance(LayerMap):
    r"""Relevance of attention (GAE): non-negative, any scale.

    .. math:: \bar A_b = \operatorname{mean}_{heads} \max(0, A_b \odot \nabla A_b), \qquad
              R \leftarrow R + \bar A_b R

    over the blocks b in forward order, from :math:`R = I`. :math:`A_b` is a block's attention and
    :math:`\nabla A_b` the gradient of the explained scores with respect to it. The map is the row of
    R that belongs to the class token, at the columns of the patches, on the grid of the tokens. Where
    logits are read from several tokens (distilled, pooled) it is the mean of their rows; with class
    attention (CaiT) or attention pooling, the row of the query. The identity is left out: in the
    mean over P patches it would give each of them the same 1 / P, and rounding would eat the rest.

    For ViTs with global softmax attention, in timm (vit, deit, beit, eva, cait, vit_relpos), in
    torchvision, or your own. The attention modules are found with one probe forward. While the guide
    reads a forward pass they run in a form that shows their weights; the model stays as it is.

    Costs one backward pass through the blocks of the roll-out, and their attention in explicit form;
    fewer blocks cost less. The map is the roll-out's alone: what earlier blocks mixed is not in it.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        layer: Name of the attention module where the roll-out starts, such as ``"blocks.0.attn"``;
            None is the first, as published.
        last_blocks: Start that many attention modules before the end instead.
        detach_gradient: Take :math:`\nabla A_b` as a constant when the map is differentiated, as the
            authors' program does. The map is the same; the gradient of a loss on it is another,
            by about a factor of 2. The default differentiates the whole map, as the paper has it.
        output, layout, grid, prefix_tokens, image_argument, image_size: As `InputXGradient`.

    Attributes:
        layer: Where the roll-out starts.
        attentions: The attention modules of the roll-out, in forward order.

    Raises:
        GuidanceError: For a model whose attention is within windows, over channels, over fewer keys
            than tokens, without softmax, or absent; with the reason.
        LayerError: If the model has no such layer, or does not run on a random image.
        OptionError: If the layer is no attention module, or `last_blocks` is out of range.

    References:
        Chefer et al., 2021, Eq. 5 and 6; Chefer et al., 2022 (RobustViT), Eq. 6 and 7.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> model = VisionTransformer(32, 8, 3, 2, hidden_dim=16, mlp_dim=32, num_classes=5)
        >>> relevance = AttentionRelevance(model, last_blocks=2)
        >>> relevance.layer
        'encoder.layers.encoder_layer_1.self_attention'
        >>> relevance.attribute(torch.rand(2, 3, 32, 32), target=1).shape
        torch.Size([2, 1, 4, 4])
    """

    places_itself = True
    non_negative = True

    @constructor
    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        last_blocks: int | None = None,
        detach_gradient: bool = False,
        output: Output | None = None,
        layout: str | None = None,
        grid: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] | None = None,
        image_argument: int | str | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            model,
            output=output,
            layout=layout,
            grid=grid,
            prefix_tokens=prefix_tokens,
            image_argument=image_argument,
            image_size=image_size,
        )
        if layer is not None and last_blocks is not None:
            raise OptionError(
                f"layer is {layer!r} and last_blocks is {last_blocks}. Leave out one of the "
                "two. Both say where the roll-out starts."
            )
        check_flag("detach_gradient", detach_gradient)
        self.detach_gradient = detach_gradient
        self._all_blocks, self._readout = find_attention(self.model, reading=self.reading)
        count = len(self._all_blocks)
        if last_blocks is None:
            last_blocks = count
        if type(last_blocks) is not int or not 1 <= last_blocks <= count:
            raise OptionError(
                f"last_blocks is {last_blocks!r}. Use 3 for a cheap map, or leave it out "
                f"for all. The model has {count} attention modules, so 1 to {count} are allowed."
            )
        self._start(self._all_blocks[-last_blocks].name if layer is None else layer)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """See `LayerMap.check_options`; how many blocks there are, the model tells.

        Raises:
            OptionError: If `last_blocks` is no positive whole number.
        """
        last_blocks = options.get("last_blocks")
        if last_blocks is not None and (type(last_blocks) is not int or last_blocks < 1):
            raise OptionError(
                f"last_blocks is {last_blocks!r}. Use 3 for a cheap map, or leave it out for all. A "
                "positive whole number is allowed."
            )

    @constructor
    def at(self, layer: str | nn.Module) -> AttentionRelevance:
        """The same relevance, from another attention module on."""
        moved = copy.copy(self)
        moved._start(layer)
        return moved

    def _start(self, layer: str | nn.Module) -> None:
        modules = resolve_layers(self.model, layer)
        (name,) = modules
        names = [block.name for block in self._all_blocks]
        if name not in names:
            raise OptionError(
                f"layer {name!r} is no attention module that reaches the logits."
                f"{did_you_mean(name, names)} {names[0]!r} to {names[-1]!r} are allowed, {len(names)} "
                "in all."
            )
        self.layer, self._modules = name, modules
        self._blocks: tuple[AttentionBlock, ...] = self._all_blocks[names.index(name) :]
        self.attentions = tuple(names[names.index(name) :])

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """See `LayerMap.maps`; there is one layer.

        Raises:
            LayerError: If an attention has another shape than in the probe, or the logits do not
                depend on it.
        """
        (name,) = evidence.features
        layout = evidence.layouts[name]
        height, width = layout.grid
        for block in self._blocks:
            shapes = [weights.shape for weights in evidence.attentions.get(block.name, [])]
            if len(shapes) != 1 or not block.fits(shapes[0], len(evidence.images), height * width):
                raise LayerError(
                    f"module {block.name!r} computed attention of shapes {shapes} "
                    f"for {len(evidence.images)} images and {height} x {width} patches. Turn off what "
                    "drops or merges tokens. Each module attends once, over all tokens."
                )
        weights = [evidence.attentions[block.name][0] for block in self._blocks]
        gradients = layer_gradients(
            evidence.score(evidence.logits),
            [weight.tensor for weight in weights],
            create_graph=evidence.create_graph and not self.detach_gradient,
            retain_graph=evidence.create_graph,
        )
        mixing = []
        with torch.autocast(evidence.logits.device.type, enabled=False):
            for block, weight, gradient in zip(self._blocks, weights, gradients, strict=True):
                if gradient is None:
                    raise dead_layer(block.name)
                attention = wide(weight.tensor).view(weight.shape)
                gradient = wide(gradient).reshape(len(gradient), *weight.shape)
                mixing.append(mixing_matrix(attention, gradient))
            patches = places_alone(roll_out(mixing, self._readout), layout, dim=-1)
        return {name: patches.unflatten(-1, (height, width))}
