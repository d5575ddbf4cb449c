"""What a linear classifier can read from a network's last features."""

from typing import Any

import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from explainguide import collate

__all__ = ["probe", "table"]


def probe(model: nn.Module, layer: str, train: Subset[Any], test: Subset[Any]) -> float:
    """Mean average precision in percent of ridge regression, its penalty cross-validated."""
    inputs, labels = _features(model, layer, train)
    mean, std = inputs.mean(0), inputs.std(0) + 1e-6
    ridge = RidgeCV(alphas=[1e1, 1e2, 1e3, 1e4]).fit((inputs - mean) / std, labels)
    inputs, labels = _features(model, layer, test)
    found = ridge.predict((inputs - mean) / std)
    shown = labels.any(0)  # a class without a test image has no precision
    return round(100 * float(average_precision_score(labels[:, shown], found[:, shown.numpy()])), 1)


@torch.no_grad()
def _features(model: nn.Module, layer: str, data: Subset[Any]) -> tuple[Tensor, Tensor]:
    """Means over a layer's places, ``(N, C)``, and labels ``(N, K)``."""
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda _, __, output: kept.append(output.mean((2, 3)))
    )
    labels = []
    for images, shown, _ in DataLoader(data, 50, collate_fn=collate):
        model.eval()(images)
        labels.append(shown)
    hook.remove()
    found = torch.cat(labels)
    return torch.cat(kept), found if found.ndim == 2 else torch.eye(10)[found]


def table(rows: list[dict[str, Any]]) -> str:
    """A row a network: the pretrained one's features, without biases, and relearned."""
    columns = ("pretrained", "biases dropped at once", "relearned")
    lines = [f"| network | {' | '.join(columns)} |", "| --- | ---: | ---: | ---: |"]
    found = {(row["network"], row["features"]): row["map"] for row in rows}
    for kind in dict.fromkeys(row["network"] for row in rows):
        cells = [found.get((kind, column), "-") for column in columns]
        lines.append(f"| {kind} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
