"""What one operation costs that is differentiated twice: its fast form over PyTorch's own.

Forward pass, gradient with respect to the input, and the gradient of a function of that. One thread,
interleaved, the smallest process CPU time of several rounds. The sizes from which a fast form pays,
which `fast="auto"` goes by, are read off this table.

Example:
    python benchmarks/operations.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.hooks.second_order import TwiceDifferentiable
from explainguide.tables import format_table


def draw(*shape: int) -> Tensor:
    """A tensor that requires a gradient."""
    return torch.randn(*shape, requires_grad=True)


def cases() -> Iterator[tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]]:
    """A name, an operation and its tensors, from small to large."""
    for rows in (394, 1576, 6304):
        yield "layer_norm", norm_of_rows, (draw(rows, 192), draw(192), draw(192))
    for rows in (394, 6304, 25216):
        yield "gelu", F.gelu, (draw(rows, 768),)
    for count in (2, 8, 32):
        yield "softmax", partial(F.softmax, dim=-1), (draw(count, 3, 197, 197),)
    for count, channels, side in (
        (2, 16, 8),
        (4, 512, 4),
        (4, 1024, 7),
        (4, 256, 28),
        (32, 256, 28),
    ):
        tensors = draw(count, channels, side, side), draw(channels), draw(channels)
        yield "batch_norm", batch_norm, tensors
        yield "batch_norm, evaluation", constant_norm, tensors
    for count, before, after, kernel, groups, side in (
        (2, 16, 16, 3, 1, 16), (4, 32, 32, 3, 1, 14), (4, 64, 64, 1, 1, 28), (8, 64, 64, 3, 1, 56),
        (8, 64, 256, 1, 1, 56), (2, 16, 16, 3, 16, 16), (4, 64, 64, 7, 64, 28),
    ):  # fmt: skip
        weight = draw(after, before // groups, kernel, kernel)
        operation = partial(F.conv2d, padding=kernel // 2, groups=groups)
        kind = f"conv2d {kernel} x {kernel}, {groups} groups, {before} to {after}"
        yield kind, operation, (draw(count, before, side, side), weight, draw(after))


def norm_of_rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the last dimension."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In training mode."""
    return F.batch_norm(x, None, None, weight, bias, training=True)


def constant_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In evaluation mode."""
    mean, variance = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
    return F.batch_norm(x, mean, variance, weight, bias)


def run(operation: Callable[..., Tensor], tensors: tuple[Tensor, ...], *, fast: bool) -> float:
    """Seconds of one second-order step."""
    began = time.process_time()
    with TwiceDifferentiable(fast=True) if fast else nullcontext() as mode:
        if mode is not None:
            mode.activate()
        output = operation(*tensors)
    (gradient,) = torch.autograd.grad(
        output, tensors[0], torch.ones_like(output), create_graph=True
    )
    torch.autograd.grad(gradient.square().sum() + output.sum(), tensors)
    return time.process_time() - began


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, operation, tensors in cases():
        times: dict[bool, list[float]] = {True: [], False: []}
        for index in range(2 * rounds):
            fast = index % 2 == 0
            times[fast].append(run(operation, tensors, fast=fast))
        own, torchs = min(times[True]) * 1e3, min(times[False]) * 1e3
        row = {"operation": name, "elements": tensors[0].numel()}
        rows.append({**row, "torch, ms": torchs, "fast, ms": own, "ratio": own / torchs})
    print(format_table(rows))


if __name__ == "__main__":
    main()
