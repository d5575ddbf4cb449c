"""The B-cos unit and the uncentred norms from their formulas, one patch and one filter at a time.

`freeze` takes the dynamic factors out of the graph in the forward pass: then the gradient is the
explanation, of the same values as that of the package, and of other parameter gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GAINS = {"unit": lambda b: 0.0, "norm": lambda b: 1.0, "power": lambda b: b}


def unit(
    patch: Tensor,
    filters: Tensor,
    norm: Tensor,
    *,
    b: float,
    gain: str = "unit",
    cos_eps: float = 0.0,
    freeze: bool = False,
) -> Tensor:
    """One patch and the filters of one output: ``||w||^e (w^ . x) |cos|^(b - 1)``."""
    found: list[tuple[Tensor, Tensor]] = []
    for weight in filters.flatten(1):
        length = weight.square().sum().sqrt()
        linear = (weight / length * patch).sum()
        factor = (linear / norm).abs() if b == 2 else ((linear / norm).abs() + cos_eps) ** (b - 1)
        if freeze:
            factor = factor.detach()
        exponent = GAINS[gain](b)
        found.append((length ** (exponent / b) * linear, length**exponent * linear * factor))
    return max(found, key=lambda pair: float(pair[0].detach()))[1]


def padding_of(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], dilation: tuple[int, int]
) -> list[int]:
    """Left, right, top, bottom. For "same" the odd one is on the right and below."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        height, width = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        return [width // 2, width - width // 2, height // 2, height - height // 2]
    height, width = pair(padding)
    return [width, width, height, height]


def pair(value: int | tuple[int, int] | str) -> tuple[int, int]:
    assert not isinstance(value, str)
    return (value, value) if isinstance(value, int) else value


def bcos_conv(
    images: Tensor,
    weight: Tensor,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    b: float = 2.0,
    max_out: int = 1,
    gain: str = "unit",
    square_eps: float = 1e-6,
    cos_eps: float = 1e-6,
    freeze: bool = False,
) -> Tensor:
    """``(N, C, H, W)`` to ``(N, O, h, w)``, where the weight is ``(O * max_out, C / groups, kh, kw)``."""
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = pair(stride), pair(dilation)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = F.pad(images, padding_of(padding, kernel, dilation), mode=mode)
    height, width = (
        (padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    columns = F.unfold(padded, kernel, dilation=dilation, stride=stride)
    outputs = len(weight) // max_out
    results = []
    for image in columns:  # (C * kh * kw, places)
        size = len(image) // groups
        for o in range(outputs):
            group = o // (outputs // groups)
            filters = weight[o * max_out : (o + 1) * max_out]
            for patch in image[group * size : (group + 1) * size].T:
                norm = (patch.square().sum() + square_eps).sqrt()
                settings: dict[str, Any] = {
                    "b": b,
                    "gain": gain,
                    "cos_eps": cos_eps,
                    "freeze": freeze,
                }
                results.append(unit(patch, filters, norm, **settings))
    return torch.stack(results).reshape(len(images), outputs, height, width)


def bcos_linear(
    vectors: Tensor,
    weight: Tensor,
    *,
    b: float = 2.0,
    max_out: int = 1,
    gain: str = "unit",
    square_eps: float = 0.0,
    norm_eps: float = 1e-12,
    cos_eps: float = 1e-6,
    freeze: bool = False,
) -> Tensor:
    """``(N, I)`` to ``(N, O)``, where the weight is ``(O * max_out, I)``."""
    results = []
    for vector in vectors:
        norm = (vector.square().sum() + square_eps).sqrt() + norm_eps
        for o in range(len(weight) // max_out):
            filters = weight[o * max_out : (o + 1) * max_out]
            settings: dict[str, Any] = {"b": b, "gain": gain, "cos_eps": cos_eps, "freeze": freeze}
            results.append(unit(vector, filters, norm, **settings))
    return torch.stack(results).reshape(len(vectors), -1)


def uncentered_norm(
    values: Tensor, dims: Sequence[int], *, eps: float = 1e-5, centered: bool, freeze: bool = False
) -> Tensor:
    """``x / sqrt(var + eps)``, of ``x - mean`` where it is centred; the variance is biased."""
    mean = values.mean(tuple(dims), keepdim=True)
    variance = (values - mean).square().mean(tuple(dims), keepdim=True)
    if freeze:
        variance = variance.detach()
    return (values - mean if centered else values) / (variance + eps).sqrt()
