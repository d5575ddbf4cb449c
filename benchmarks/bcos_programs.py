"""The networks of ``benchmarks/bcos.py``, the authors' among them, and their training steps."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.bcos import AddInverse, BcosConv2d, load_published, published
from explainguide.bcos.norms import BatchNormUncentered2d
from explainguide.dynamic import DynamicLinear, hold
from explainguide.losses import energy_loss

SEED = 0
CLASSES = 10
LAYERS = ("layer4", "input")


class Case(NamedTuple):
    """A network, and the images that it trains on."""

    network: str
    side: int
    batch_size: int


class Batch(NamedTuple):
    """What one training step sees; the plain network sees three channels."""

    images: Tensor
    labels: Tensor
    masks: Tensor

    @property
    def plain(self) -> Batch:
        """The same images without their inverse."""
        return self._replace(images=self.images[:, :3].contiguous())


Key = tuple[str, str]  # the step, and whose program it is


class Losses(NamedTuple):
    """Of one step, with what it is compared by."""

    classification: Tensor
    localization: Tensor | None
    logits: Tensor
    maps: Tensor | None


class Program(NamedTuple):
    """A network, and how a step finds its losses."""

    network: nn.Module
    losses: Callable[[Batch], Losses]

    def step(self, batch: Batch) -> None:
        """Forward and backward."""
        self.network.zero_grad()
        found = self.losses(batch)
        loss = found.classification
        (loss if found.localization is None else loss + found.localization).backward()


def unguided(network: nn.Module) -> Program:
    """A classification loss alone."""

    def losses(batch: Batch) -> Losses:
        logits = network(batch.images)
        return Losses(F.cross_entropy(logits, batch.labels), None, logits, None)

    return Program(network, losses)


def guided(network: nn.Module, layer: str) -> Program:
    """With a localization loss of this package, for its modules and `composed` ones."""
    network = copy.deepcopy(network)  # the hooks of a guide stay on it
    guide = ExplanationGuidance(network, layer, attribution="bcos", loss="energy")

    def losses(batch: Batch) -> Losses:
        logits = network(batch.images)
        loss_loc = guide.loss_loc(batch.masks, target=batch.labels)
        maps = guide.attributions[layer]
        return Losses(F.cross_entropy(logits, batch.labels), loss_loc, logits, maps)

    return Program(network, losses)


def guided_authors(network: Any, layer: str, *, forwards: int) -> Program:
    """With the authors' explanation mode, which must be on in the forward pass.

    Args:
        network: Of their package.
        layer: As in `ExplanationGuidance`.
        forwards: 1: the classification loss takes its logits from explanation mode too, and their
            gradient lacks the factors' as well. 2: it has a forward pass of its own.
    """

    def losses(batch: Batch) -> Losses:
        logits = network(batch.images) if forwards == 2 else None
        images = batch.images.clone().requires_grad_()
        seen = [images]
        module = network if layer == "input" else network.get_submodule(layer)
        hook = module.register_forward_hook(lambda *call: seen.append(call[2]))
        with network.explanation_mode():
            explained = network(images)
            hook.remove()
            feature = seen[0 if layer == "input" else 1]
            score = explained.gather(1, batch.labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, feature, create_graph=True)
        maps = (feature * gradient).sum(1)
        size = batch.masks.shape[-2:]
        sized = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        logits = explained if logits is None else logits
        classification = F.cross_entropy(logits, batch.labels)
        return Losses(classification, energy_loss(sized, batch.masks).mean(), logits, maps.detach())

    return Program(network, losses)


class ComposedConv(DynamicLinear):
    """The published convolution in operations, its factor held in the backward pass."""

    def __init__(self, conv: BcosConv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.options: dict[str, Any] = {"padding": conv.padding, "stride": conv.stride}
        self.window: Any = conv.kernel_size

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the layer's output."""
        length = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        output = F.conv2d(input, self.weight / length, **self.options)
        squares = F.avg_pool2d((input**2).sum(1, keepdim=True), self.window, **self.options)
        norm = (squares * (self.window[0] * self.window[1]) + 1e-6).sqrt()
        return hold(output.abs() / norm, self.mode) * output


class ComposedNorm(DynamicLinear):
    """The published batch norm in operations, its variance held in the backward pass."""

    running_var: Tensor

    def __init__(self, norm: BatchNormUncentered2d) -> None:
        super().__init__()
        self.weight, self.eps, self.momentum = norm.weight, norm.eps, norm.momentum or 0.1
        self.register_buffer("running_var", norm.running_var)

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape, in training."""
        variance = input.var((0, 2, 3), correction=0)
        kept = (1 - self.momentum) * self.running_var
        self.running_var.copy_(kept + self.momentum * variance.detach())
        std = (hold(variance, self.mode) + self.eps).sqrt()
        return self.weight[:, None, None] * (input / std[:, None, None])


def composed(network: nn.Module) -> nn.Module:
    """A copy with its units and norms as separate operations."""
    network = copy.deepcopy(network)
    for owner in list(network.modules()):
        for name, module in owner.named_children():
            if isinstance(module, BcosConv2d):
                setattr(owner, name, ComposedConv(module))
            elif isinstance(module, BatchNormUncentered2d):
                setattr(owner, name, ComposedNorm(module))
    return network


def authors_package() -> tuple[Any, str]:
    """The authors' networks and an empty text, or None and why not. This file has their name."""
    found, here = sys.path, Path(__file__).resolve().parent
    sys.path = [folder for folder in found if Path(folder).resolve() != here]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("bcos.models.resnet"), ""
    except ImportError as error:
        return None, f"the authors' package was not there ({error})"
    finally:
        sys.path = found


def programs(case: Case, package: Any) -> dict[Key, Program]:
    """Step and program to how it runs; the plain step first."""
    torch.manual_seed(SEED)
    plain = torchvision.models.get_model(case.network, num_classes=CLASSES).train()
    ours = published(case.network, CLASSES).train()
    found = {("unguided", "plain"): unguided(plain), ("unguided", "ours"): unguided(ours)}
    theirs = None
    if package is not None:
        norms = importlib.import_module("bcos.modules.norms")
        norm = norms.NoBias(norms.BatchNormUncentered2d)
        theirs = getattr(package, case.network)(num_classes=CLASSES, norm_layer=norm).train()
        load_published(ours, theirs.state_dict())
        found["unguided", "authors"] = unguided(theirs)
    operations = composed(ours)
    found["unguided", "composed"] = unguided(operations)
    for layer in LAYERS:
        found[layer, "ours"] = guided(ours, layer)
        if theirs is not None:
            found[layer, "authors"] = guided_authors(theirs, layer, forwards=1)
            found[layer, "authors, 2 forwards"] = guided_authors(theirs, layer, forwards=2)
        found[layer, "composed"] = guided(operations, layer)
    return found


def make_batch(case: Case) -> Batch:
    """Random images with their inverse, and a box in each."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(case.batch_size, 3, case.side, case.side, generator=generator)
    labels = torch.randint(CLASSES, (case.batch_size,), generator=generator)
    masks = torch.zeros(case.batch_size, case.side, case.side)
    masks[:, case.side // 4 : case.side // 2, case.side // 4 : -case.side // 4] = 1
    return Batch(AddInverse()(images), labels, masks)
