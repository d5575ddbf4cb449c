"""The questions of ``benchmarks/metrics.py`` in the words of Quantus, where it is installed.

Its defaults scale maps, or take other features; here they are set so that its definition is that of
this package, wherever it has one.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Asked", "Case", "quantus_package", "questions"]


class Case(NamedTuple):
    """What both are given.

    Attributes:
        model: Images to logits, in evaluation mode.
        explain: Images and classes to maps ``(N, H, W)``.
        images: ``(N, 3, H, W)``.
        target: The class that is explained, ``(N,)``.
        maps: Of these, signed, ``(N, H, W)``.
        masks: ``(N, H, W)`` bool.
        cell: Which cell of a grid of 2 x 2 shows the class, ``(N,)``.
        steps: Of insertion and deletion.
        samples: Of infidelity and sensitivity.
    """

    model: nn.Module
    explain: Callable[[Tensor, Tensor], Tensor]
    images: Tensor
    target: Tensor
    maps: Tensor
    masks: Tensor
    cell: Tensor
    steps: int
    samples: int


class Asked(NamedTuple):
    """A metric of Quantus.

    Attributes:
        name: In Quantus.
        value: Runs it.
        default: Runs it with its own options on the signed maps; None where it is not run.
    """

    name: str
    value: Callable[[], float]
    default: Callable[[], float] | None = None


class Said(nn.Module):
    """1 for the class of the highest logit and 0 for the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def quantus_package() -> Any:
    """Quantus, or None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("quantus")
        except ImportError:
            return None


def questions(quantus: Any, case: Case) -> dict[str, Asked]:
    """What Quantus is asked, by the key of the metric that it is compared with.

    Args:
        quantus: The package.
        case: What it is given; it takes arrays.
    """
    x, y, a = (each.numpy() for each in (case.images, case.target, case.maps[:, None]))
    masks = case.masks[:, None].numpy()
    features, pixels = x[0].size, x[0, 0].size
    as_they_are = {"abs": False, "normalise": False, "disable_warnings": True}
    black = {**as_they_are, "perturb_baseline": 0.0}

    def scores(metric: Any, **given: Any) -> np.ndarray:
        common = {"model": case.model, "x_batch": x, "y_batch": y, "a_batch": a, "device": "cpu"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(metric(**{**common, **given}), dtype=float)

    def of_masks(name: str, maps: np.ndarray = a) -> Asked:
        metric, default = getattr(quantus, name), {"disable_warnings": True}
        return Asked(
            name,
            lambda: scores(metric(**as_they_are), s_batch=masks, a_batch=maps).mean(),
            lambda: scores(metric(**default), s_batch=masks).mean(),
        )

    def focus(**options: Any) -> float:
        cells = np.eye(4, dtype=int)[case.cell.numpy()]
        return scores(quantus.Focus(**options), custom_batch=cells).mean()

    def flipped(maps: np.ndarray) -> np.ndarray:
        """The class's probability at each step of the pixels that leave, ``(N, S)``."""
        flipping = quantus.PixelFlipping(features_in_step=features // case.steps, **black)
        return scores(flipping, a_batch=maps, softmax=True)

    def perturbed() -> float:
        flipping = quantus.PixelFlipping(features_in_step=features // 60, **black)
        said = scores(flipping, model=Said(case.model).eval(), softmax=False)
        return said[:, [2, 5, 11]].mean()  # without 5, 10, 20%

    def infidelity() -> float:
        side = round((pixels / case.samples) ** 0.5)
        metric = quantus.Infidelity(perturb_patch_sizes=[side], n_perturb_samples=1, **black)
        return scores(metric).mean()

    def sensitivity() -> float:
        def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
            found = case.explain(torch.as_tensor(inputs), torch.as_tensor(targets))
            return found.numpy()[:, None]

        metric = quantus.MaxSensitivity(nr_samples=case.samples, lower_bound=0.02, **as_they_are)
        return scores(metric, explain_func=explain).mean()

    return {
        "epg": of_masks("RelevanceMassAccuracy", a.clip(min=0)),
        "gridpg": Asked(
            "Focus", lambda: focus(**as_they_are), lambda: focus(disable_warnings=True)
        ),
        "pointing_game": of_masks("PointingGame"),
        "pxap": of_masks("AUC"),
        "perturbation": Asked("PixelFlipping", perturbed),
        "deletion": Asked("PixelFlipping", lambda: flipped(a).mean()),
        "insertion": Asked("PixelFlipping", lambda: flipped(-a).mean()),
        "infidelity": Asked("Infidelity", infidelity),
        "sensitivity": Asked("MaxSensitivity", sensitivity),
    }
