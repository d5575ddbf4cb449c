"""The images of a forward pass that are explained: all of them, or those with an annotation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from explainguide.annotations.forms import Regions, annotated_images
from explainguide.attr import LayerMap
from explainguide.hooks.fast import Fast
from explainguide.hooks.some_images import SomeImages, check_same
from explainguide.hooks.tap import ForwardPass, Tap

__all__ = ["Part", "explained_part"]


class Part(NamedTuple):
    """What is explained of a pass.

    Attributes:
        tap: What has read the pass that is explained.
        passed: That pass.
        rows: Which images of the batch are in it, ``(n,)`` int64 on their device; None: all.
        same: Whether their logits are those of the whole pass, a scalar bool on the device.
    """

    tap: Tap
    passed: ForwardPass
    rows: Tensor | None = None
    same: Tensor | None = None

    def take(self, values: Tensor, dim: int) -> Tensor:
        """Of one value an image along a dimension those of the part."""
        return values if self.rows is None else values.index_select(dim, self.rows)

    def spread(self, values: Tensor, images: int) -> Tensor:
        """``(n, ...)`` to ``(N, ...)``, zero elsewhere; all NaN where the logits are not the same."""
        if self.rows is None:
            return values
        assert self.same is not None
        whole = values.new_zeros(images, *values.shape[1:]).index_add(0, self.rows, values)
        return torch.where(self.same, whole, torch.nan)


@contextmanager
def explained_part(
    method: LayerMap,
    tap: Tap,
    passed: ForwardPass,
    logits: Tensor,
    annotated: Tensor,
    regions: Regions,
    *,
    fast: Fast,
) -> Iterator[Part]:
    """The images of a pass that are explained, as its tap was made for.

    Args:
        method: The attribution.
        tap: What has read the pass.
        passed: The pass.
        logits: Its logits, ``(N, K)``.
        annotated: Which images have something to explain, ``(S, N)`` bool on their device.
        regions: Their annotations.
        fast: As the guide's.

    Yields:
        The part, to be explained within the context.
    """
    if not isinstance(tap, SomeImages):
        yield Part(tap, passed)
        return
    rows = annotated_images(regions, annotated)
    reader = method.tap(tap.layers, fast=fast)
    try:
        with tap.again(passed, reader, rows) as part:
            before, after = logits.index_select(0, rows), method.logits(part)
            # Accelerate computes in half precision within a forward of its own.
            half = "forward" in vars(method.model) or part.autocast[0] or before.itemsize == 2
            same = check_same(before, after, half=half)
            yield Part(reader, part, rows, same)
            passed.features |= part.features
            passed.replaced |= part.replaced
            passed.fast |= part.fast
            passed.slow |= part.slow
    finally:
        reader.remove()
