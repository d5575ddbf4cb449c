"""Softmax attention in a form that shows its weights: equal values, and the weights are in the graph.

The relevance of attention (`explainguide.attr.AttentionRelevance`) is a function of the attention
weights and of the gradient with respect to them. The fused kernels never form the weights, so here
they run as ``softmax(q k^T / sqrt(d)) v``. Each form returns what the caller of the original
expects, and the weights, or None where there are none.

Whether the weights are taken before or after dropout makes no difference to the relevance: with the
mask D of dropout, ``(D * A) * dz/d(D * A)`` equals ``A * dz/dA``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SHOWN", "Weights", "as_fused", "explicit"]


class Weights(NamedTuple):
    """The weights of one attention, as they lie between the logits and the queries.

    Attributes:
        tensor: In the graph of the logits, so that a gradient with respect to it can be taken.
        shape: How it is read: (N, heads, queries, keys).
    """

    tensor: Tensor
    shape: tuple[int, ...]


Shown = tuple[Any, Weights | None]


def _scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Shown:
    """`F.scaled_dot_product_attention`, with its weights."""
    if enable_gqa:  # several queries share a key
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    mask = attn_mask
    if is_causal:
        queries, keys = query.shape[-2], key.shape[-2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    output, weights = explicit(
        query,
        key,
        value,
        scale=scale,
        softmax=lambda z: _differentiable(_softmax_where(z, mask)),
        dropout=partial(F.dropout, p=dropout_p) if dropout_p else None,
    )
    return as_fused(output), Weights(weights, tuple(weights.shape))


def explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None,
    softmax: Callable[[Tensor], Tensor],
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention by its definition, ``softmax(scale * query key^T) value``, and its weights."""
    similarity = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    weights = softmax(similarity)
    return (weights if dropout is None else dropout(weights)) @ value, weights


def _softmax_where(similarity: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax under a mask; a query that may see no key gets weights of 0, as in PyTorch's."""
    if mask is None:
        return similarity.softmax(-1)
    if mask.dtype == torch.bool:
        similarity = similarity.masked_fill(~mask, -torch.inf)
    else:
        similarity = similarity + mask
    blind = (similarity == -torch.inf).all(-1, keepdim=True)
    return similarity.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def as_fused(output: Tensor) -> Tensor:
    """The same values, in memory as the fused kernels leave them: (N, queries, heads, channels).

    A dropout that follows draws its numbers in the order of memory.
    """
    return output.transpose(1, 2).contiguous().transpose(1, 2) if output.ndim == 4 else output


def _multi_head(*args: Any, need_weights: bool, average_attn_weights: bool, **kwargs: Any) -> Shown:
    """`F.multi_head_attention_forward`, whose inside no function mode can see.

    Asked for its weights it computes them explicitly, and returns a view of the tensor that it
    multiplies the values with. That tensor, not the view, leads to the logits.
    """
    query, key, value, *rest = args
    fresh = _differentiable(query)  # frozen layers: some tensor must ask for the weights' gradient
    key, value = (fresh if tensor is query else tensor for tensor in (key, value))
    asking = {**kwargs, "need_weights": True, "average_attn_weights": False}
    both: Any = F.multi_head_attention_forward(fresh, key, value, *rest, **asking)
    output, view = both
    shown = view.mean(1) if average_attn_weights else view
    weights = Weights(view._base, tuple(view.shape))
    return (output, shown if need_weights else None), weights


def _softmax(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Shown:
    """An explicit softmax is attention where it runs over the last of four or more dimensions."""
    result = original(*args, **kwargs)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if result.ndim < 4 or dim not in (-1, result.ndim - 1):
        return result, None
    weights = _differentiable(result)
    return weights, Weights(weights, tuple(weights.shape))


def _differentiable(tensor: Tensor) -> Tensor:
    """A leaf where the layers below are frozen: the logits depend on the weights all the same."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


# What a function mode sees of attention, and the form that shows the weights.
SHOWN: dict[Callable[..., Any], Callable[..., Shown]] = {
    F.scaled_dot_product_attention: _scaled_dot_product,
    F.multi_head_attention_forward: _multi_head,
    **{
        f: partial(_softmax, f)
        for f in (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)
    },
}
