"""Generic attention explainability, slow and obvious: R as a whole, one image and one head at a time.

The models run with their own explicit attention (timm's `fused_attn` off, torchvision's written out
below), in which `Tensor.softmax` is watched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn


def relevance(
    model: nn.Module, images: Tensor, classes: Tensor, *, read: str, patches: int, skip: int = 0
) -> Tensor:
    """``(N, patches)``, from the blocks after the first `skip`."""
    with explicit_attention(model), watched_softmax() as attentions:
        logits = model(images)
    score = sum(logits[n, k] for n, k in enumerate(classes.tolist()))
    gradients = torch.autograd.grad(score, attentions)
    return torch.stack(
        [
            roll_out(
                [attention[n] for attention in attentions[skip:]],
                [gradient[n] for gradient in gradients[skip:]],
                read,
                patches,
            )
            for n in range(len(images))
        ]
    )


def roll_out(attentions: list[Tensor], gradients: list[Tensor], read: str, patches: int) -> Tensor:
    """One image's attention, ``(heads, queries, keys)`` each."""
    total = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    for attention, gradient in zip(attentions, gradients, strict=True):
        heads, queries, keys = attention.shape
        mean = torch.zeros(queries, keys, dtype=torch.float64)
        for head in range(heads):
            mean = mean + (attention[head] * gradient[head]).clamp(min=0) / heads
        if len(total) < keys:  # a class token joins in front
            total = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), total)
        update = mean @ total
        if read == "latent" and queries < keys:
            return update[0, -patches:]
        total = torch.cat([total[:queries] + update, total[queries:]])
    total = total - torch.eye(len(total), dtype=torch.float64)  # what every token has of itself
    rows = {
        "class": total[:1],
        "distilled": total[:2],
        "patches": total[-patches:],
    }[read]
    return rows.mean(0)[-patches:]


@contextmanager
def watched_softmax() -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    original = Tensor.softmax

    def softmax(self: Tensor, dim: int) -> Tensor:
        found.append(original(self, dim))
        return found[-1]

    with mock.patch.object(Tensor, "softmax", softmax):
        yield found


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[None]:
    fused = [m for m in model.modules() if getattr(m, "fused_attn", False)]
    packed = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    for module in fused:
        module.fused_attn = False
    for module in packed:
        module.forward = lambda x, *_, module=module, **__: (written_out(module, x), None)
    yield
    for module in fused:
        module.fused_attn = True
    for module in packed:
        del module.forward


def written_out(module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Self-attention of ``(N, T, C)``."""
    count, length, width = tokens.shape
    packed = tokens @ module.in_proj_weight.T + module.in_proj_bias
    query, key, value = (
        part.reshape(count, length, module.num_heads, -1).transpose(1, 2)
        for part in packed.split(width, -1)
    )
    similarity = query @ key.transpose(-2, -1) / (width / module.num_heads) ** 0.5
    mixed = similarity.softmax(-1) @ value
    return module.out_proj(mixed.transpose(1, 2).reshape(count, length, width))
