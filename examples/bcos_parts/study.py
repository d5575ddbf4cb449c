"""The runs of the comparison: train, measure, keep a row."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from bcos_parts.networks import ATTRIBUTIONS, begin, fade, finish, norms, transforms
from bcos_parts.relearn import relearn
from explainguide import ExplanationGuidance, collate
from explainguide.checkpoints import save_checkpoint, write_whole
from explainguide.evaluation import evaluate

__all__ = ["Study", "table"]

SHOWN = ("f1", "map", "epg", "iou")
PACKAGES = ("explainguide", "torch", "torchvision", "timm")


@dataclass
class Study:
    """What all runs share.

    Attributes:
        network: Makes the untrained, or pretrained, network.
        unlabelled: Images from which converted networks learn its features again.
        train: Data set for training, without transforms.
        test: And for testing.
        criterion: The classification loss.
        layers: ``{"input": "input", "final": name}``.
        size: Side of the images.
        rows: Done runs; a run whose row is there is not repeated.
        file: Where rows are kept; base networks are in the folder of its name without ".json".
    """

    network: Callable[[], nn.Module]
    unlabelled: Tensor
    train: Any
    test: Any
    criterion: nn.Module
    layers: dict[str, str]
    size: int
    rows: list[dict[str, Any]]
    file: Path

    @property
    def folder(self) -> Path:
        """Where base networks are kept."""
        return self.file.with_suffix("")

    def start(self, kind: str, *, features: dict[str, Any], **options: Any) -> nn.Module:
        """A trained network of a kind without guidance, from its file if there is one."""
        begun = time.perf_counter()
        torch.manual_seed(0)
        model = begin(kind, self.network())
        base, taught = (self.folder / f"{kind}{what}.pt" for what in ("", "-features"))
        if base.exists() or taught.exists():
            fade(kind, model, 0, 1)
        elif kind != "vanilla":
            torch.manual_seed(0)
            teacher = self.network()
            relearn(kind, model, teacher, norms(teacher), self.unlabelled, **features)
        model = finish(kind, model, self.size)
        if _load(model, base):
            return model
        if kind != "vanilla" and not _load(model, taught):
            save_checkpoint(taught, {"model": model.state_dict()})
        self.fit(kind, model, **options)
        self.measure(kind, model, "base", {"seconds": round(time.perf_counter() - begun)})
        save_checkpoint(base, {"model": model.state_dict()})
        return model

    def fit(
        self,
        kind: str,
        model: nn.Module,
        *,
        epochs: int,
        lr: float,
        batch_size: int = 32,
        layer: str | None = None,
        loss: str = "energy",
        lam: float = 0.0,
    ) -> None:
        """A plain loop; with a layer, a guided one."""
        torch.manual_seed(0)
        data = _with(self.train, transforms(kind, self.size, flip=True))
        optimizer = torch.optim.Adam(model.parameters(), lr)
        guide = None
        if layer is not None:
            guide = ExplanationGuidance(model, layer, attribution=ATTRIBUTIONS[kind], loss=loss)
        loader = DataLoader(data, batch_size, shuffle=True, collate_fn=collate)
        for _ in range(epochs):
            for images, labels, annotations in tqdm(loader, desc=f"{kind} {layer or ''}"):
                total = self.criterion(model.train()(images), labels)
                if guide is not None:
                    total = total + lam * guide.loss_loc(annotations)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        if guide is not None:
            guide.remove()

    def measure(self, kind: str, model: nn.Module, run: str, extra: dict[str, Any]) -> None:
        """Scores with the maps of each layer that the run is about, and a row in the file."""
        data = _with(self.test, transforms(kind, self.size))
        places = [extra["layer"]] if "layer" in extra else list(self.layers)
        row = {"network": kind, "run": run, **extra}
        for place in places:
            scores = evaluate(model, data, layer=self.layers[place], attribution=ATTRIBUTIONS[kind])
            row[place] = {k: round(100 * v, 1) for k, v in scores.items() if k in SHOWN}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        about = {"versions": {name: version(name) for name in PACKAGES}, "device": "cpu", "seed": 0}
        content = json.dumps(about | {"rows": self.rows}, indent=1).encode()
        write_whole(self.file, lambda file: file.write(content))

    def done(self, kind: str, run: str, layer: str | None) -> bool:
        """Whether a run has its row."""
        key = (kind, run, layer)
        return any((r["network"], r["run"], r.get("layer")) == key for r in self.rows)


def _load(model: nn.Module, file: Path) -> bool:
    """Whether there is a file of weights, which the model then has."""
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True)["model"])
    return file.exists()


def _with(data: Any, chosen: Any) -> Any:
    """A data set, or a part of one, with transforms."""
    (data.dataset if isinstance(data, Subset) else data).transforms = chosen
    return data


def table(rows: list[dict[str, Any]]) -> str:
    """A row a network and layer, a column group a run: F1, EPG, IoU."""
    lines = [
        "| network | guided at | before (F1, EPG, IoU) | unguided | energy | l1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind in ATTRIBUTIONS:
        for place in ("input", "final"):
            cells = []
            for run in ("base", "unguided", "energy", "l1"):
                found = [
                    r[place]
                    for r in rows
                    if (r["network"], r["run"]) == (kind, run) and r.get("layer", place) == place
                ]
                scores = (
                    [found[0].get(k, float("nan")) for k in ("f1", "epg", "iou")] if found else []
                )
                cells.append(", ".join(f"{score:.1f}" for score in scores) or "-")
            lines.append(f"| {kind} | {place} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
