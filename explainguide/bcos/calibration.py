"""The scale of activations: another exponent means another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.bcos.norm_table import form_of
from explainguide.bcos.transform import BcosUnit
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.probe import input_size

__all__ = ["calibrate", "match_scales", "random_images"]


def random_images(model: nn.Module, size: tuple[int, int] | None = None) -> Tensor:
    """Four smooth random images in [0, 1], nearer to photographs than noise is, for a network."""
    channels, height, width = input_size(model)
    height, width = size or (height, width)
    colours = channels // 2 if channels == 6 else channels
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, colours, 8, 8, generator=generator)
    fine = torch.rand(4, colours, height, width, generator=generator)
    image = 0.8 * F.interpolate(coarse, (height, width), mode="bilinear") + 0.2 * fine
    image = torch.cat([image, 1 - image], 1) if channels == 6 else image
    return image.to(next(model.parameters()))


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set the running variances of a network's batch norms to those of one batch.

    Another exponent means another scale of every activation, so the statistics of the network
    before are of no use. `bcosify` does this with random images; a batch of real ones is better,
    for a network that is to be evaluated before it is trained. Training finds its own.

    Args:
        model: A B-cos network; it is changed in place.
        images: What it takes.
    """
    with _statistics_of_the_batch(model):
        model(images)


@contextmanager
def _statistics_of_the_batch(model: nn.Module) -> Iterator[None]:
    norms: list[Any] = [m for m in model.modules() if (form := form_of(m)) and form.running]
    norms = [norm for norm in norms if norm.running_var is not None]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@torch.no_grad()
def match_scales(model: nn.Module, images: Tensor) -> None:
    """Give each unit that no norm follows the output size that it has at B = 1, and calibrate norms.

    Each cosine is about one over the root of the number of inputs, so a few units in a row without
    a norm would leave nothing of a logit.

    Args:
        model: A B-cos network; it is changed in place.
        images: What it takes.
    """
    free = _not_normalised(model, images)

    def rescale(unit: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        b, bias, unit.bias, unit.scale = unit.b, unit.bias, None, None
        scaled = _size(unit.forward(*inputs))
        unit.b = 1.0
        linear = _size(unit.forward(*inputs))
        unit.b, unit.bias = b, bias
        ratio = linear / scaled.clamp_min(torch.finfo(output.dtype).tiny)
        unit.scale = ratio if bool(torch.isfinite(ratio)) else torch.ones_like(ratio)
        again: Tensor = unit.forward(*inputs)
        return again

    hooks = [unit.register_forward_hook(rescale) for unit in free]
    try:
        calibrate(model, images)
    finally:
        for hook in hooks:
            hook.remove()


def _size(values: Tensor) -> Tensor:
    return values.double().square().mean().sqrt().to(values.dtype)


def _not_normalised(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """The units whose output goes elsewhere than into a norm alone, found by following memory."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    normalised: list[Tensor] = []  # both kept, so that their memory is not used again

    def note(unit: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append((unit, output))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, BcosUnit)]
    for module in model.modules():
        if form_of(module) is not None:
            hooks.append(
                module.register_forward_pre_hook(lambda _, inputs: normalised.append(inputs[0]))
            )
    try:
        with _statistics_of_the_batch(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    places = {tensor.data_ptr() for tensor in normalised}
    return [unit for unit, output in outputs if output.data_ptr() not in places]
