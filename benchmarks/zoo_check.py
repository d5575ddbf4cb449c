"""Does guidance work on one model: at three places, in two modes, with two attributions?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.hooks.layers import INPUT, resolve_layers, split_index
from explainguide.hooks.layout import Layout, infer_layout, to_nchw
from explainguide.hooks.logits import check_logits
from explainguide.hooks.probe import LayerInfo, automatic_layer, probe_layers

__all__ = [
    "ATTRIBUTIONS",
    "MODES",
    "Place",
    "Row",
    "check_model",
    "find_layers",
]

ATTRIBUTIONS = ("ixg", "gradcam")
MODES = ("eval", "train")
_CORNER_IMAGES = 24  # random networks mix far places: some need many images for an average
_DIFFER = "the logits differ"
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_LABELS = (3, 7, 11, 0, 5, 9)  # a map may speak against a class everywhere: then the next is tried


@dataclass
class Place:
    """What was seen at one layer.

    Attributes:
        layer: Dotted name.
        layout: How it is read.
        corners: Whether a change in each corner of the image shows in that corner of the layer.
        failures: One line for each thing that is not as it should be.
    """

    layer: str
    layout: str = ""
    corners: bool = False
    failures: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One family."""

    family: str
    model: str
    image: int
    parameters: int
    automatic: Place | None = None
    input: Place | None = None
    middle: Place | None = None
    replaced: list[str] = field(default_factory=list)
    refused: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Guided at all three places."""
        places = (self.automatic, self.input, self.middle)
        return all(p is not None and not p.failures for p in places)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ok": self.ok}


def check_model(row: Row, model: nn.Module) -> Row:
    """Fill in the row of a model; never raises for what the model does."""
    both = torch.randn(2, 3, row.image, row.image, generator=torch.Generator().manual_seed(1))
    batches = {"eval": both[:1], "train": both}  # statistics of a batch need two images
    try:
        places = find_layers(model)
        used = _used(model, both[:1])
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        references = {mode: _logits(model, batches[mode], mode, buffers) for mode in MODES}
    except Exception as error:
        row.refused = _line(error)
        return row
    replaced: set[str] = set()
    for kind, info in places.items():
        layer = INPUT if info is None else info.name
        place = Place(layer)
        setattr(row, kind, place)
        try:
            layout, before = _look(model, layer, both, place)
            place.layout = str(layout)
            for mode, attribution in product(MODES, ATTRIBUTIONS):
                first = (mode, attribution) == (MODES[0], ATTRIBUTIONS[0])
                named = None if kind == "automatic" and first else layer
                step = _Step(named, mode, attribution, before, used - before)
                _restore(model, buffers)
                wrong = _guide(model, batches[mode], references[mode], step, replaced)
                if wrong == _DIFFER and replaced:  # rounding, that BatchNorm may amplify
                    wrong = _compare_in_double(model, batches[mode], step, buffers)
                if wrong:
                    place.failures.append(f"{mode}, {attribution}: {wrong}")
        except Exception as error:
            place.failures.append(_line(error))
        finally:
            model.zero_grad(set_to_none=True)
    row.replaced = sorted(replaced)
    return row


def find_layers(model: nn.Module) -> dict[str, LayerInfo | None]:
    """The automatic layer and the one half-way through those that can be guided.

    Half-way, layers that only scale, drop or resize what the one before them computed do not count.
    """
    infos = probe_layers(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    automatic = automatic_layer(model, infos)
    usable = []
    for info in infos:
        kind = type(modules[split_index(info.name)[0]]).__name__.lower()
        repeats = any(
            word in kind for word in ("layerscale", "drop", "identity", "pool", "permute")
        )
        if info.usable and not repeats and info.name != automatic:
            usable.append(info)
    (chosen,) = (info for info in infos if info.name == automatic)
    return {"automatic": chosen, "input": None, "middle": usable[len(usable) // 2]}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _logits(model: nn.Module, images: Tensor, mode: str, buffers: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    _restore(model, buffers)
    return check_logits(model.train(mode == "train")(images)).detach()


def _look(model: nn.Module, layer: str, images: Tensor, place: Place) -> tuple[Any, set[str]]:
    """The layer's layout, the parameters before it, and whether corners stay corners."""
    size = images.shape[-1]
    feature = _feature(model, layer, images)
    layout = infer_layout(
        layer,
        feature,
        (size, size),
        model=model,
        module=resolve_layers(model, layer)[layer],
        batch=len(images),
    )
    energy = torch.zeros(4, 4)
    for seed in range(_CORNER_IMAGES):
        energy += _corner_energy(model, layer, layout, size, seed)
        place.corners = bool((energy.argmax(1) == torch.arange(4)).all())
        if place.corners:
            break
    else:
        place.failures.append(f"corners: {energy.diagonal().tolist()}")
    if not feature.requires_grad:
        return layout, set()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(feature.sum(), list(named.values()), allow_unused=True)
    return layout, {n for n, g in zip(named, gradients, strict=True) if g is not None}


def _feature(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer returns, with the statistics of the batch in every BatchNorm.

    They keep a random network's signal alive through many layers.
    """
    module = resolve_layers(model, layer)[layer]
    if module is None:
        return images
    kept: list[Any] = []
    handle = module.register_forward_hook(lambda *call: kept.append(call[2]))
    try:
        for part in model.eval().modules():
            part.train(isinstance(part, _BATCH_NORM))
        model(images)
    finally:
        handle.remove()
    (feature,) = kept
    if isinstance(feature, Tensor):
        return feature
    index = split_index(layer)[1]
    return feature[index] if index is not None else next(f for f in feature if f.ndim > 2)


@torch.no_grad()
def _corner_energy(model: nn.Module, layer: str, layout: Layout, size: int, seed: int) -> Tensor:
    """How much each corner of the layer (columns) changes with each corner of the image (rows)."""
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
    images = image.repeat(5, 1, 1, 1)
    for index, (rows, columns) in enumerate(_corners((size, size), size // 4), 1):
        images[index, :, rows, columns] += 3
    maps = to_nchw(_feature(model, layer, images), layout)
    change = (maps[1:] - maps[:1]).square().sum(1)
    near = _corners(layout.grid, max(min(layout.grid) // 2, 1))
    energy = torch.stack([change[:, rows, columns].mean((1, 2)) for rows, columns in near], 1)
    energy = energy / energy.sum(0, keepdim=True)  # what all probes share is divided out
    return energy / energy.sum(1, keepdim=True)


def _corners(shape: tuple[int, int], span: int) -> Iterator[tuple[slice, slice]]:
    height, width = shape
    for rows in (slice(0, span), slice(height - span, height)):
        for columns in (slice(0, span), slice(width - span, width)):
            yield rows, columns


@dataclass(frozen=True)
class _Step:
    """A guided step: where, how, and the names of the parameters before and after the layer."""

    layer: str | None
    mode: str
    attribution: str
    before: set[str]
    after: set[str]


def _guide(
    model: nn.Module, images: Tensor, reference: Tensor, step: _Step, replaced: set[str]
) -> str:
    """Take one guided step; what is wrong with it, or nothing."""
    size = images.shape[-1]
    model.train(step.mode == "train")
    box = torch.tensor([[0.0, 0.0, size / 2, size]])
    for label in _LABELS:
        model.zero_grad(set_to_none=True)
        targets = [{"boxes": box, "labels": torch.tensor([label])} for _ in images]
        options = {"attribution": step.attribution, "target": "all", "reduction": "none"}
        with ExplanationGuidance(model, step.layer, **options) as guide:
            torch.manual_seed(0)
            logits = check_logits(model(images)).detach()
            loss = guide.loss_loc(targets)
            replaced |= guide.replaced
        if label == _LABELS[0]:  # later passes start from other running statistics
            close = torch.allclose(
                logits, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max())
            )
            if not (torch.equal(logits, reference) or (guide.replaced and close)):
                return _DIFFER
        found = loss.detach()
        if (
            (found > 0) & (found < 1)
        ).any():  # a map speaks for the class in and outside of the box
            break
    else:
        return f"the loss is {found.tolist()} for each of the classes {_LABELS}"
    loss.sum().backward()
    sides = {True: 0.0, False: 0.0}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            if not parameter.grad.isfinite().all():
                return f"the gradient of {name} is not finite"
            sides[name in step.before] += float(parameter.grad.abs().sum())
    if step.before and not sides[True]:
        return "no gradient before the layer"
    return "no gradient after the layer" if step.after and not sides[False] else ""


def _compare_in_double(
    model: nn.Module, images: Tensor, step: _Step, buffers: dict[str, Tensor]
) -> str:
    """Whether replaced operations give equal logits in float64, where rounding stays small."""
    double = copy.deepcopy(model).double()
    wide = {
        name: b.to(double_b)
        for (name, double_b), b in zip(double.named_buffers(), buffers.values(), strict=True)
    }
    reference = _logits(double, images.double(), step.mode, wide)
    with ExplanationGuidance(double, step.layer or INPUT, target="all"):
        guided = _logits(double, images.double(), step.mode, wide)
    worst = float((guided - reference).abs().max() / reference.abs().max())
    return "" if worst < 1e-9 else f"{_DIFFER}, by {worst:.1e} relative in float64"


def _used(model: nn.Module, image: Tensor) -> set[str]:
    """Names of the parameters on which the logits depend."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    logits = check_logits(model.eval()(image))
    found = torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True)
    return {n for n, g in zip(named, found, strict=True) if g is not None}
