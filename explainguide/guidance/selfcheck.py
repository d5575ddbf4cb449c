"""Does the localization loss alone train the model? The report of `ExplanationGuidance.check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.annotations.batch import Annotations
from explainguide.annotations.keys import check_held
from explainguide.errors import operation
from explainguide.guidance.refusals import OVERFLOW
from explainguide.hooks.logits import overflowed

__all__ = ["LayerReport", "Report", "as_it_was", "on_host", "probe_gradients"]


@dataclass(frozen=True)
class LayerReport:
    """What `loss_loc` does at one layer.

    Attributes:
        layer: Dotted name.
        finite: Whether the map is finite everywhere.
        alive: Share of the images whose map is not zero everywhere, in [0, 1].
        before: Norm of the gradient of `loss_loc` in the parameters before the layer; None where
            there are none that can be trained.
        after: The same for the other parameters.
    """

    layer: str
    finite: bool
    alive: float
    before: float | None
    after: float | None

    @property
    def ok(self) -> bool:
        """Finite, alive, and every side that has parameters gets a gradient."""
        sides = [norm for norm in (self.before, self.after) if norm is not None]
        return self.finite and self.alive > 0 and bool(sides) and all(n > 0 for n in sides)

    def __str__(self) -> str:
        if not self.finite:
            return f"{self.layer}: the map is not finite. Look at the activations of this layer."
        if self.alive == 0:
            return (
                f"{self.layer}: the map is zero for every image. A head of zeros comes alive after "
                "a few steps of training; otherwise choose another layer."
            )
        sides = ", ".join(
            f"{side} {norm:.3g}" if norm is not None else f"{side}: no parameters"
            for side, norm in (("before", self.before), ("after", self.after))
        )
        return (
            f"{self.layer}: map alive in {self.alive:.0%} of the images; "
            f"gradient of loss_loc in the parameters {sides}"
        )


@dataclass(frozen=True)
class Report:
    """The report of `ExplanationGuidance.check`; prints itself.

    Attributes:
        loss: The value of `loss_loc`; its mean where it is one an image.
        layers: One report a layer.
        replaced: Operations that ran in a form that can be differentiated twice.
        problem: What is wrong with the logits, in words, or "".
    """

    loss: float
    layers: tuple[LayerReport, ...]
    replaced: tuple[str, ...]
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether every layer is, and the logits are."""
        return not self.problem and all(layer.ok for layer in self.layers)

    def __str__(self) -> str:
        lines = [f"loss_loc = {self.loss:.6g}: {'ok' if self.ok else 'NOT ok'}"]
        lines += [f"  {self.problem}"] if self.problem else []
        lines += [f"  {layer}" for layer in self.layers]
        if self.replaced:
            lines.append(f"  ran in a twice differentiable form: {', '.join(self.replaced)}")
        return "\n".join(lines)


@operation("ExplanationGuidance.check")
def on_host(annotations: Any, *, name: str = "annotations") -> Any:
    """Annotations, or a target, whose values can be checked."""
    check_held(vars(annotations) if isinstance(annotations, Annotations) else annotations, name)
    if isinstance(annotations, Tensor):
        return annotations.cpu()
    if isinstance(annotations, Annotations):
        moved = annotations.to("cpu")
        targets: list[dict[str, Tensor]] = []
        for index, label in enumerate(moved.labels):
            kept = label >= 0
            targets.append({"boxes": moved.boxes[index, kept], "labels": label[kept]})
            if moved.masks is not None:
                targets[-1]["masks"] = moved.masks[index, kept]
        checked = Annotations.from_targets(targets, canvas=moved.canvas)
        return replace(checked, first_label=moved.first_label)  # which the labels have had
    if isinstance(annotations, list | tuple):
        return [
            {k: v.to("cpu") if isinstance(v, Tensor) else v for k, v in target.items()}
            if isinstance(target, Mapping)
            else target
            for target in annotations
        ]
    return annotations


@contextmanager
def as_it_was(generator: torch.Generator | None) -> Iterator[None]:
    """Random numbers that are drawn within this context come again after it."""
    state = None if generator is None else generator.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)


def probe_gradients(
    model: nn.Module,
    features: Mapping[str, Tensor],
    maps: Mapping[str, Tensor],
    loss: Tensor,
    replaced: set[str],
    logits: Tensor,
) -> Report:
    """Gradients of `loss_loc` alone, without touching the parameters' own.

    Args:
        model: The guided model.
        features: Layer name to its activation in the pass that gave the loss.
        maps: Layer name to its map, ``(N, h, w)``.
        loss: What `loss_loc` returned.
        replaced: Names of replaced operations.
        logits: Of the pass.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(of: Tensor) -> list[Tensor | None]:
        if not of.requires_grad or not parameters:
            return [None] * len(parameters)
        return list(torch.autograd.grad(of, parameters, retain_graph=True, allow_unused=True))

    from_loss = gradients(loss.sum())
    rows = []
    for name, feature in features.items():
        is_before = [g is not None for g in gradients(feature.sum())]
        finite = maps[name].isfinite().all()
        alive = (maps[name] != 0).flatten(1).any(1).float().mean()
        norms = [
            _norm([g for g, b in zip(from_loss, is_before, strict=True) if b is side])
            for side in (True, False)
        ]
        rows.append(LayerReport(name, bool(finite), float(alive), *norms))
    problem = OVERFLOW if overflowed(logits) else ""
    value = float(loss.detach().float().mean())
    return Report(value, tuple(rows), tuple(sorted(replaced)), problem)


def _norm(gradients: list[Tensor | None]) -> float | None:
    if not gradients:
        return None
    present = [g for g in gradients if g is not None]
    return float(torch.stack([g.double().norm() for g in present]).norm()) if present else 0.0
