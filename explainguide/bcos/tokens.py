"""Attention and position embeddings as parts of a dynamic linear network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torchvision.models import vision_transformer as theirs

from explainguide.errors import GuidanceError, operation
from explainguide.hooks.dynamic import DynamicLinear, Mode, hold

__all__ = ["BcosAttention", "BcosMultiheadAttention", "Positions", "separate_positions", "to_bcos"]


class Positions:
    """Where tokens are, as queries and keys see it; set by the model, read by its attentions.

    A position embedding that is added to the tokens is part of every value, and of a logit, without
    being part of the image. Here queries and keys have it alone: it says where to look, which is a
    dynamic weight, and what is seen there is the image's.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __getstate__(self) -> dict[str, None]:
        return {"value": None}  # a tensor of the last graph is neither copied nor saved


class BcosAttention(DynamicLinear, Attention):
    """timm's softmax attention, with weights that are constants of explanations.

    Made from timm's by `to_bcos`. Queries, keys and values are linear; `proj` is a B-cos layer
    after `bcosify`.

    References:
        Boehle et al., 2024, Sec. 3.3: attention is dynamic linear as it is.
    """

    positions: Positions | None

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """``(N, tokens, C)`` to the same shape."""
        if attn_mask is not None or is_causal:
            with operation("BcosAttention"):
                raise GuidanceError(
                    "it was called with a mask. Leave it out: image classifiers attend "
                    "to all patches. No mask is allowed."
                )
        q, k, v = _project(x, self.qkv.weight, self.qkv.bias, self.positions)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        attended = _attend(q, k, v, self.attn_drop, self.mode).transpose(1, 2).flatten(2)
        # Parts that timm's attention has gained over its versions.
        norm, gate = getattr(self, "norm", None), getattr(self, "gate", None)
        attended = attended if norm is None else norm(attended)
        if gate is not None:
            attended = attended * hold(gate(x).sigmoid(), self.mode)
        output: Tensor = self.proj_drop(self.proj(attended))
        return output


class BcosMultiheadAttention(DynamicLinear, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` of torchvision's ViT, as `BcosAttention`."""

    positions: Positions | None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:  # type: ignore[override]
        """Self-attention over ``(N, tokens, C)``; returns the output and None for the weights."""
        if query is not key or key is not value or options != {"need_weights": False}:
            with operation("BcosMultiheadAttention"):
                raise GuidanceError(
                    "it is called with other queries than keys, with a mask, "
                    "or for its weights. Use the attention of a vision transformer. Self-attention "
                    "with need_weights=False is allowed."
                )
        q, k, v = _project(query, self.in_proj_weight, self.in_proj_bias, self.positions)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        drop = nn.Dropout(self.dropout).train(self.training)
        attended = _attend(q, k, v, drop, self.mode).transpose(1, 2).flatten(2)
        return self.out_proj(attended), None


def _project(
    x: Tensor, weight: Tensor, bias: Tensor | None, positions: Positions | None
) -> tuple[Tensor, ...]:
    """Queries, keys and values; positions, where they are separate, are part of the first two."""
    if positions is None or positions.value is None:
        return F.linear(x, weight, bias).chunk(3, -1)
    rows = 2 * len(weight) // 3
    placed = x + positions.value
    q, k = F.linear(placed, weight[:rows], None if bias is None else bias[:rows]).chunk(2, -1)
    return q, k, F.linear(x, weight[rows:], None if bias is None else bias[rows:])


def _attend(q: Tensor, k: Tensor, v: Tensor, drop: nn.Module, mode: Mode) -> Tensor:
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
    attended: Tensor = hold(drop(weights), mode) @ v
    return attended


def to_bcos(module: nn.Module, positions: Positions | None) -> bool:
    """Make an attention module a dynamic linear one, in place; False for one that is not known.

    The module keeps its layers and their names; its class and its forward change.
    """
    kinds = {
        Attention: BcosAttention,
        nn.MultiheadAttention: BcosMultiheadAttention,
    }
    kind = kinds.get(type(module))
    if kind is None or (kind is BcosMultiheadAttention and not _is_plain(module)):
        return False
    made: Any = module
    made.__class__ = kind
    made.mode, made.positions = Mode(), positions
    return True


def _is_plain(module: nn.Module) -> bool:
    return bool(module.in_proj_weight is not None and module.batch_first and module.bias_k is None)


class _PatchesAlone:
    """Tokens start as patches, and the others empty: constants go to queries and keys."""

    positions: Positions

    def _pos_embed(self, x: Tensor) -> Tensor:
        constants: Tensor = super()._pos_embed(torch.zeros_like(x[:1]))  # type: ignore[misc]
        self.positions.value = constants
        tokens = x.flatten(1, -2)
        return F.pad(tokens, (0, 0, constants.shape[1] - tokens.shape[1], 0))


class BcosVisionTransformer(_PatchesAlone, VisionTransformer):
    """timm's ViT after `bcosify`."""


class BcosVisionTransformerDistilled(_PatchesAlone, VisionTransformerDistilled):
    """timm's distilled DeiT after `bcosify`."""


class BcosEncoder(theirs.Encoder):
    """The encoder of torchvision's ViT after `bcosify`, whose first token arrives empty."""

    positions: Positions

    def forward(self, input: Tensor) -> Tensor:
        """``(N, tokens, C)`` to the same shape."""
        self.positions.value = self.pos_embedding
        output: Tensor = self.ln(self.layers(self.dropout(input)))
        return output


_SEPARATE: dict[type[nn.Module], type[nn.Module]] = {
    VisionTransformer: BcosVisionTransformer,
    VisionTransformerDistilled: BcosVisionTransformerDistilled,
}


def separate_positions(model: Any) -> Positions | None:
    """Take position embedding and class token out of the tokens, in place; None for other models."""
    positions = Positions()
    if type(model) in _SEPARATE:
        model.__class__ = _SEPARATE[type(model)]
        model.positions = positions
        return positions
    if type(model) is theirs.VisionTransformer:
        token = model.class_token.detach()
        with torch.no_grad():
            model.encoder.pos_embedding[:, :1] += token
        del model.class_token
        model.register_buffer("class_token", torch.zeros_like(token))
        model.encoder.__class__ = BcosEncoder
        model.encoder.positions = positions
        return positions
    return None
