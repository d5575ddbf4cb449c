"""Attention in its explicit form, without what PyTorch's does for rows that are masked as a whole."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.attention import explicit
from explainguide.hooks.fast.softmax import softmax, worth_it
from explainguide.hooks.fast.table import Unsuited, elements, fast_form

__all__ = ["scaled_dot_product_attention"]


@fast_form(
    F.scaled_dot_product_attention,
    name="scaled_dot_product_attention",
    pays=elements(0),
    autocast="half",
)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`: ``softmax(scale * query key^T) value``."""
    if attn_mask is not None or is_causal:
        raise Unsuited("with a mask")
    if dropout_p or enable_gqa:
        raise Unsuited("with dropout" if dropout_p else "with keys that queries share")
    output, _ = explicit(query, key, value, scale=scale, softmax=_softmax)
    return output


def _softmax(similarity: Tensor) -> Tensor:
    return softmax(similarity) if worth_it(similarity) else similarity.softmax(-1)
