"""The recipe and its controls: from the same weights, the same steps over the same few images."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from explainguide import recipe
from explainguide.metrics import EnergyPointingGame, SegmentationAgreement
from explainguide.recipes import Recipe
from robustvit_parts.animals import CLASSES, Animals
from robustvit_parts.network import accuracy, fit, normalize

ROBUSTVIT = recipe("robustvit")
# What is fine-tuned on: the recipe, the recipe with the labels for its classification loss, and each
# of the two classification losses alone.
WAYS: dict[str, tuple[Recipe, bool]] = {
    "robustvit": (ROBUSTVIT, True),
    "robustvit, labels": (replace(ROBUSTVIT, class_loss="task"), True),
    "boosting only": (ROBUSTVIT, False),
    "labels only": (replace(ROBUSTVIT, class_loss="task"), False),
}
CONTROLS = {"robustvit": "boosting only", "robustvit, labels": "labels only"}


def few(data: Animals, per_class: int, seed: int) -> Animals:
    """That many images of each class, drawn at random."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels[order]
    return data.at(torch.cat([order[labels == k][:per_class] for k in range(len(CLASSES))]))


def fine_tune(
    base: nn.Module, way: str, data: Animals, *, lr: float, epochs: int, seed: int
) -> tuple[nn.Module, float]:
    """A copy of the base, fine-tuned; and the seconds that it took."""
    model = copy.deepcopy(base)
    settings, guided = WAYS[way]
    guide = settings.guide(model) if guided else None

    def step_loss(model: nn.Module, batch: Animals) -> Tensor:
        logits = model(normalize(batch.images))
        located = guide.loss_loc(batch.masks, batch.labels) if guide else logits.new_zeros(())
        return settings.total_loss(logits, batch.labels, located)

    torch.manual_seed(seed)
    begin = time.perf_counter()
    fit(
        model, data, step_loss, lr=lr, epochs=epochs, batch=settings.batch_size or 8,
        weight_decay=settings.weight_decay or 0.0,
    )  # fmt: skip
    if guide is not None:
        guide.remove()
    return model, time.perf_counter() - begin


def map_scores(model: nn.Module, data: Animals, *, batch: int = 32) -> dict[str, float]:
    """How the relevance of the labelled class lies on the masks."""
    agreement, energy = SegmentationAgreement(), EnergyPointingGame()
    with ROBUSTVIT.guide(model.eval()) as guide:
        for rows in torch.arange(len(data)).split(batch):
            images, labels = normalize(data.images[rows]), data.labels[rows]
            maps = guide.attribute(images, labels)
            for metric in (agreement, energy):
                metric.update(maps, data.masks[rows])
    found = {name: float(value) for name, value in agreement.compute().items()}
    return {**found, "EPG": float(energy.compute()), "constant maps": agreement.undefined}


def scores(model: nn.Module, data: Animals, scenes: Tensor, shifted: bool) -> dict[str, float]:
    """Everything that the tables show; `shifted`: also on changed images."""
    found = {"accuracy": accuracy(model, data)}
    if shifted:
        found["other background"] = accuracy(model, data.before(scenes))
        found["object hidden"] = accuracy(model, data.hidden())
    return {**found, **map_scores(model, data)}


def choose(rows: list[dict[str, float]], base: float, *, allowed: float = 0.02) -> float:
    """The paper's rule: the highest learning rate that costs little validation accuracy."""
    kept = [row["lr"] for row in rows if row["accuracy"] >= base - allowed]
    return max(kept, default=min(row["lr"] for row in rows))
