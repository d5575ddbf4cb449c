"""The runs of the comparison: train, measure, keep a row."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from bcos_parts.networks import ATTRIBUTIONS, begin, drop_biases, finish, relearn, transforms
from explainguide import ExplanationGuidance, collate
from explainguide.checkpoints import load_checkpoint, save_checkpoint, write_whole
from explainguide.evaluation import evaluate

__all__ = ["Study", "about", "table"]

BATCH_SIZE = 32
SHOWN = ("f1", "map", "epg", "iou")
PACKAGES = ("explainguide", "torch", "torchvision", "timm")


@dataclass
class Study:
    """What all runs share.

    Attributes:
        network: Makes the untrained, or pretrained, network.
        unlabelled: Reads the images from which converted networks learn its features again.
        train: Subset for training, of a data set without transforms.
        test: And for testing.
        fit_on: And for fitting the threshold of the IoU.
        criterion: The classification loss.
        layers: ``{"input": "input", "final": name}``.
        file: Where rows are kept; networks are in the folder of its name without ".json".
        about: What all rows depend on, of `about`; a file with other settings is refused.
        rows: Done runs; a run whose row is there is not repeated.
    """

    network: Callable[[], nn.Module]
    unlabelled: Callable[[], Tensor]
    train: Subset[Any]
    test: Subset[Any]
    fit_on: Subset[Any]
    criterion: nn.Module
    layers: dict[str, str]
    file: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file.suffix != ".json":
            raise SystemExit(f"--json: '{self.file}' must end in .json.")
        if self.file.exists():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["settings"] != self.about["settings"]:
                raise SystemExit(
                    f"--json: '{self.file}' has rows of other settings, {kept['settings']}. Name "
                    "another file, or repeat those settings to go on."
                )
            self.rows = kept["rows"]

    @property
    def size(self) -> int:
        """Side of the images."""
        return int(self.about["settings"]["size"])

    def start(self, kind: str, *, features: dict[str, Any], **options: Any) -> nn.Module:
        """A trained network of a kind without guidance, from its file if there is one."""
        torch.manual_seed(0)
        model = begin(kind, self.network(), self.size)
        folder = self.file.with_suffix("")
        base, taught = (folder / f"{kind}{what}.pt" for what in ("", "-features"))
        kept = next((file for file in (base, taught) if file.exists()), None)
        if kept is not None:
            drop_biases(kind, model)
            model.load_state_dict(load_checkpoint(kept)["model"])
        elif kind != "vanilla":
            torch.manual_seed(0)
            relearn(kind, model, self.network(), self.unlabelled(), **features)
            finish(kind, model)
            save_checkpoint(taught, {"model": model.state_dict()})
        if kept != base:
            self.fit(kind, model, **options)
            save_checkpoint(base, {"model": model.state_dict()})
        return model

    def fit(
        self,
        kind: str,
        model: nn.Module,
        *,
        epochs: int,
        lr: float,
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
        loader = DataLoader(data, BATCH_SIZE, shuffle=True, collate_fn=collate)
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

    def measure(self, kind: str, model: nn.Module, run: str, place: str | None) -> None:
        """Scores with the maps of the guided layer, or of all, and a row in the file."""
        data, fit = (_with(part, transforms(kind, self.size)) for part in (self.test, self.fit_on))
        row: dict[str, Any] = {"network": kind, "run": run}
        row |= {"layer": place} if place else {}
        for at in [place] if place else self.layers:
            how: dict[str, Any] = {"layer": self.layers[at], "attribution": ATTRIBUTIONS[kind]}
            scores = evaluate(model, data, fit_on=fit, **how)
            row[at] = {k: round(100 * v, 1) for k, v in scores.items() if k in SHOWN}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        content = json.dumps(self.about | {"rows": self.rows}, indent=1).encode()
        write_whole(self.file, lambda file: file.write(content))

    def done(self, kind: str, run: str, layer: str | None) -> bool:
        """Whether a run has its row."""
        key = (kind, run, layer)
        return any((r["network"], r["run"], r.get("layer")) == key for r in self.rows)


def about(args: Namespace) -> dict[str, Any]:
    """What rows depend on: versions, device, and arguments, of paths their end."""
    chosen = {k: v for k, v in vars(args).items() if k not in ("json", "table", "smoke")}
    for name in {"root", "weights", "unlabelled", "networks"} & set(chosen):
        chosen[name] = "/".join(Path(chosen[name]).parts[-2:])
    versions = {name: version(name) for name in PACKAGES}
    return {"versions": versions, "device": "cpu", "seed": 0, "settings": chosen}


def _with(data: Subset[Any], chosen: Any) -> Subset[Any]:
    """A part of a data set, with transforms."""
    data.dataset.transforms = chosen  # type: ignore[attr-defined]
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
