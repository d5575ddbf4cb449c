"""The runs of the demo: one small network on `DecoyDigits`, trained with and without guidance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from explainguide.datasets import DecoyDigits
from explainguide.evaluation.measure import evaluate
from explainguide.guidance.options import GuideOptions
from explainguide.models.build import convolution
from explainguide.training.config import TrainConfig
from explainguide.training.loop import train

__all__ = [
    "DEFAULT_RUNS",
    "EPOCHS",
    "SETTINGS",
    "DemoData",
    "Run",
    "Setting",
    "SmoothMaximum",
    "build_network",
    "train_run",
]

EPOCHS = 12
_WIDTHS = (16, 16, 32, 32, 64, 64)

# At the image itself nothing has been mixed yet, so no evidence of the patch can hide in the box.
_measure_at_input = partial(evaluate, layer="input", attribution="ixg", batch_size=180)


# Of a class's log-probability: the loss in the classes' own competition.
_GUIDED = GuideOptions(layer="input", score="log_prob")


@dataclass(frozen=True)
class Setting:
    """How a run is guided.

    Attributes:
        text: The setting in words.
        lam: Weight of the localization loss; 0 is a run without guidance.
        annotated: Fraction of the training images that have a box.
        options: Of the guide.
    """

    text: str
    lam: float = 10.0
    annotated: float = 1.0
    options: GuideOptions = _GUIDED

    def __str__(self) -> str:
        shown = {"lam": self.lam}
        if self.lam:
            names = ("score", "negatives", "layer", "attribution", "loss")
            shown |= {"annotated": self.annotated}
            shown |= {name: getattr(self.options, name) for name in names}
        return f"{self.text} ({', '.join(f'{key}={value}' for key, value in shown.items())})"


SETTINGS = {
    "unguided": Setting("classification loss alone", lam=0.0),
    "guided": Setting("boxes on every training image"),
    "guided, 10% boxes": Setting("boxes on 10% of the training images", annotated=0.1),
    "guided, negatives": Setting(
        "half of the draws explain a class that the image does not show",
        options=replace(_GUIDED, negatives=0.5),
    ),
    "guided, logit": Setting(
        "the logit is explained, as in the papers", options=replace(_GUIDED, score="logit")
    ),
}
DEFAULT_RUNS = ("unguided", "guided", "guided, 10% boxes")


class SmoothMaximum(nn.Module):
    r"""Pool each channel over all places to a smooth maximum, ``(N, C, H, W) -> (N, C)``.

    .. math:: \frac{1}{r} \log \Big( \frac{1}{HW} \sum_{ij} \exp(r x_{ij}) \Big)

    Between the mean (r near 0) and the maximum (r large): a small patch counts although the rest of
    the image is large, and unlike the maximum it is twice differentiable.

    Args:
        sharpness: r, positive.

    References:
        Pinheiro and Collobert, 2015, "From Image-level to Pixel-level Labeling with Convolutional
        Networks".

    Example:
        >>> flat = torch.full((1, 1, 2, 2), 3.0)
        >>> SmoothMaximum()(flat)
        tensor([[3.]])
    """

    def __init__(self, sharpness: float = 2.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, feature: Tensor) -> Tensor:
        """Pool."""
        scaled = self.sharpness * feature.flatten(2)
        return (scaled.logsumexp(2) - math.log(scaled.shape[2])) / self.sharpness


def build_network(num_classes: int = 10) -> nn.Sequential:
    """Six 3 x 3 convolutions, each with BatchNorm and GELU; every second halves the resolution."""
    layers: list[nn.Module] = []
    channels = 3
    for i, width in enumerate(_WIDTHS):
        layers += convolution(channels, width, stride=2 - i % 2)
        channels = width
    return nn.Sequential(*layers, SmoothMaximum(), nn.Linear(channels, num_classes))


class DemoData:
    """The images of one seed.

    Args:
        seed: Of `DecoyDigits`.
        annotated: Fraction of the training images that have a box.
        images: Use only so many of each set, for a quick look; None for all.

    Attributes:
        train: The colour of the patch names the class.
        with_decoy: Test images in which it still does.
        without_decoy: The same images with colours drawn at random.
    """

    def __init__(self, seed: int, *, annotated: float = 1.0, images: int | None = None) -> None:
        self.images = images
        self.train = DecoyDigits("train", seed=seed, annotated=annotated)
        self.with_decoy = DecoyDigits("test", seed=seed, decoy="class")
        self.without_decoy = DecoyDigits("test", seed=seed, decoy="random")

    def used(self, data: DecoyDigits) -> Subset:
        """The part of a set that is used."""
        return Subset(data, range(min(len(data), self.images or len(data))))

    def measure(self, model: nn.Module, threshold: float = 0.5) -> dict[str, float]:
        """The numbers of the table: on the test images, with and without the decoy."""
        lured = _measure_at_input(model, self.used(self.with_decoy))
        plain = _measure_at_input(model, self.used(self.without_decoy), threshold=threshold)
        return _as_shown(lured, plain)

    def fit_threshold(self, model: nn.Module) -> float:
        """The threshold of the IoU that is best on the training images."""
        return _measure_at_input(model, self.used(self.train), threshold="fit")["iou_threshold"]


@dataclass
class Run:
    """A trained network and its numbers.

    Attributes:
        name: Of its setting.
        model: The network, in evaluation mode.
        scores: As `DemoData.measure`, and ``"IoU threshold"``.
        history: One row an epoch: ``"epoch"``, ``"loss"``, ``"loss_loc"`` where there is one, and
            the scores, with the IoU at 0.5.
        seconds: Of the training and the evaluation.
    """

    name: str
    model: nn.Module
    scores: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train_run(
    name: str,
    setting: Setting,
    *,
    seed: int,
    epochs: int = EPOCHS,
    images: int | None = None,
    network: Callable[[], nn.Module] = build_network,
    on_epoch: Callable[[dict[str, float]], object] = lambda row: None,
) -> Run:
    """Train the network with one setting, and measure it after every epoch.

    Runs with one seed begin with the same weights, and see the same images in the same order. They
    compute on one thread: layers as small as these gain little from more, and sums come out the
    same on machines with other numbers of cores.

    Args:
        name: The run's name.
        setting: How it is guided.
        seed: Of the images, the weights, the order and the draws of classes.
        epochs: Passes over the training images.
        images: Use only so many training and test images.
        network: Builds the network.
        on_epoch: Called after each epoch with its row of the history.

    Returns:
        The run.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seed)
        run = Run(name, network())
        data = DemoData(seed, annotated=setting.annotated, images=images)
        _train(run, setting, data, seed, epochs, on_epoch)
        threshold = data.fit_threshold(run.model)
        run.scores = {**data.measure(run.model, threshold), "IoU threshold": threshold}
    finally:
        torch.set_num_threads(threads)
    run.seconds = time.perf_counter() - began
    return run


def _train(
    run: Run,
    setting: Setting,
    data: DemoData,
    seed: int,
    epochs: int,
    on_epoch: Callable[[dict[str, float]], object],
) -> None:
    config = TrainConfig(
        epochs=epochs,
        batch_size=64,
        lr=3e-3,
        schedule="one-cycle",
        clip_grad_norm=5.0,
        lam=setting.lam,
        seed=seed,
        device="cpu",
        **setting.options.to_dict(),
    )

    def keep(row: dict[str, float]) -> None:
        lured = _measure_at_input(run.model, data.used(data.with_decoy))
        known = {
            name: row[name] for name in ("epoch", "loss", "loss_loc") if row[name] == row[name]
        }
        run.history.append({**known, **_as_shown(lured, row)})
        on_epoch(run.history[-1])

    tests = data.used(data.without_decoy)
    train(run.model, data.used(data.train), tests, config, progress=False, on_epoch=keep)
    run.model.eval()


def _as_shown(lured: dict[str, float], plain: dict[str, float]) -> dict[str, float]:
    """What `evaluate` gives with and without the decoy, by the names of the table."""
    return {
        "accuracy with decoy": lured["accuracy"],
        "accuracy without decoy": plain["accuracy"],
        "worst class": plain["worst_class_accuracy"],
        "EPG": plain["epg"],
        "IoU": plain["iou"],
    }
