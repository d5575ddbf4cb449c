"""W(x) x without a backward pass: the factors of one forward pass are kept, and pixels shown one by one.

Every dynamic factor of a network's forward pass on an image is recorded: the cosines of its units, what
`hold` returns, which ReLUs are open, which value a maximum takes. With them played back instead of computed
the network is an affine function of its input, whatever that is, and what a pixel contributes to a logit is
the change of the logit when the image is black, in all six channels, but for this pixel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from explainguide import bcos
from explainguide.bcos.transform import BcosUnit

aten = torch.ops.aten
_CLIPS = {aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default}


class _Tape(TorchDispatchMode):
    """Factors in the order in which they were asked for, recorded once and played back often."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[tuple[str, Tensor]] = []
        self.recording = True
        self.place = 0

    def factor(self, kind: str, compute: Callable[[], Tensor]) -> Tensor:
        """The next factor: computed and kept, or the one that was kept."""
        if self.recording:
            self.factors.append((kind, compute()))
            return self.factors[-1][1]
        self.place += 1
        expected, value = self.factors[self.place - 1]
        assert kind == expected, f"{kind} where the first pass had {expected}"
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CLIPS:
            slope = args[1] if len(args) > 1 else 0.01 if "leaky" in str(func) else 0.0
            x = args[0]
            open_ = self.factor(str(func), lambda: torch.where(x > 0, 1.0, slope).to(x))
            return (
                x.mul_(open_) if func.__name__.startswith(("relu_.", "leaky_relu_.")) else x * open_
            )
        if func is aten._prelu_kernel.default:
            x, weight = args
            return x * self.factor("prelu", lambda: torch.where(x > 0, 1.0, weight))
        if func is aten.max_pool2d_with_indices.default:
            where = self.factor("pool", lambda: func(*args, **kwargs)[1])
            chosen = where.flatten(2).expand(len(args[0]), -1, -1)
            return args[0].flatten(2).gather(2, chosen).unflatten(2, where.shape[2:]), where
        if func is aten.max.dim:
            x, dim = args[:2]
            where = self.factor("max", lambda: func(x, dim, True, **kwargs)[1])
            values = x.gather(dim, where.expand(len(x), *where.shape[1:]))
            return values.squeeze(dim), where.squeeze(dim)
        return func(*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, the package's factors and torch's choices are the tape's."""
        theirs = bcos.hold

        def times_cosine(unit: BcosUnit, linear: Tensor, norm: Tensor) -> Tensor:
            def power() -> Tensor:
                cosine = (linear / norm).abs()
                return cosine if unit.b == 2 else (cosine + unit.cos_eps) ** (unit.b - 1)

            output = linear * self.factor("cosine", power)
            return output if unit.scale is None else output * unit.scale

        def hold(factor: Tensor, mode: object) -> Tensor:
            return self.factor("hold", lambda: factor)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(BcosUnit, "_times_cosine", times_cosine))
            for name, module in list(sys.modules.items()):
                if name.startswith("explainguide") and vars(module).get("hold") is theirs:
                    stack.enter_context(mock.patch.object(module, "hold", hold))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            yield

    def play(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of any images under the factors that were recorded."""
        self.recording, self.place = False, 0
        with self.running():
            logits = model(images)
        assert self.place == len(self.factors), "a factor was left over"
        return logits


def contributions(
    model: nn.Module, image: Tensor, target: int, pixels: Tensor, *, at_once: int = 32
) -> Tensor:
    """What each of P pixels adds to a logit of one image: ``(1, 6, H, W)`` and ``(P, 2)`` to ``(P,)``.

    Asserts that the recorded factors give the logit again, and that they make the network affine: two
    halves of an image give what the image gives.
    """
    tape = _Tape()
    with tape.running():
        whole = model(image)[0, target]
    half = torch.rand(image.shape[-2:], generator=torch.Generator().manual_seed(0)) < 0.5
    parts = torch.cat([image, image * half, image * ~half, torch.zeros_like(image)])
    again, one, other, black = tape.play(model, parts)[:, target]
    torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one + other - black, whole, rtol=1e-9, atol=1e-12)
    found = []
    for some in pixels.split(at_once):
        alone = torch.zeros(len(some), *image.shape[1:], dtype=image.dtype)
        for row, (y, x) in zip(alone, some.tolist(), strict=True):
            row[:, y, x] = image[0, :, y, x]
        found.append(tape.play(model, alone)[:, target] - black)
    return torch.cat(found)
