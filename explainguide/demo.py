"""The runs of the demo: one small network on `DecoyDigits`, trained with and without guidance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from explainguide.datasets import DecoyDigits
from explainguide.evaluation.measure import evaluate
from explainguide.guidance.guide import ExplanationGuidance

__all__ = [
    "DEFAULT_RUNS",
    "EPOCHS",
    "SETTINGS",
    "DemoData",
    "Run",
    "Setting",
    "SmoothMaximum",
    "build_network",
    "count_steps",
    "train_run",
]

EPOCHS = 12
_TRAIN_IMAGES, _BATCH = 1257, 64
_PEAK, _LONGEST_GRADIENT = 3e-3, 5.0
_WIDTHS = (16, 16, 32, 32, 64, 64)

# At the image itself nothing has been mixed yet, so no evidence of the patch can hide in the box.
_measure_at_input = partial(evaluate, layer="input", attribution="ixg", batch_size=180)


@dataclass(frozen=True)
class Setting:
    """How a run is guided.

    Attributes:
        text: The setting in words.
        lam: Weight of the localization loss; 0 is a run without guidance.
        annotated: Fraction of the training images that have a box.
        score: As in `ExplanationGuidance`, and so are the next four.
        negatives: As there.
        layer: As there.
        attribution: As there.
        loss: As there.
    """

    text: str
    lam: float = 10.0
    annotated: float = 1.0
    score: str = "log_prob"
    negatives: float = 0.0
    layer: str = "input"
    attribution: str = "ixg"
    loss: str = "energy"

    def __str__(self) -> str:
        options = asdict(self)
        del options["text"]
        if not self.lam:
            options = {"lam": self.lam}
        return f"{self.text} ({', '.join(f'{key}={value}' for key, value in options.items())})"

    def guide(self, model: nn.Module, generator: torch.Generator) -> ExplanationGuidance | None:
        """The guide of this setting on a model; None without guidance."""
        if not self.lam:
            return None
        return ExplanationGuidance(
            model,
            layer=self.layer,
            attribution=self.attribution,
            loss=self.loss,
            score=self.score,  # type: ignore[arg-type]
            negatives=self.negatives,
            generator=generator,
        )


SETTINGS = {
    "unguided": Setting("classification loss alone", lam=0.0),
    "guided": Setting("boxes on every training image"),
    "guided, 10% boxes": Setting("boxes on 10% of the training images", annotated=0.1),
    "guided, negatives": Setting(
        "half of the draws explain a class that the image does not show", negatives=0.5
    ),
    "guided, logit": Setting("the logit is explained, as in the papers", score="logit"),
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
    """Six 3 x 3 convolutions, each with BatchNorm and GELU; every second halves the resolution.

    GELU rather than ReLU, because the localization loss trains through the second derivative, of
    which ReLU has none.
    """
    layers: list[nn.Module] = []
    channels = 3
    for i, width in enumerate(_WIDTHS):
        convolution = nn.Conv2d(channels, width, 3, stride=2 - i % 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.GELU()]
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
        found = _measure_at_input(model, self.used(self.without_decoy), threshold=threshold)
        return {
            "accuracy with decoy": lured["accuracy"],
            "accuracy without decoy": found["accuracy"],
            "worst class": found["worst_class_accuracy"],
            "EPG": found["epg"],
            "IoU": found["iou"],
        }

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


def count_steps(images: int | None = None) -> int:
    """Steps of an epoch on so many training images; None for all. Whole batches only."""
    return max(min(images or _TRAIN_IMAGES, _TRAIN_IMAGES) // _BATCH, 1)


def train_run(
    name: str,
    setting: Setting,
    *,
    seed: int,
    epochs: int = EPOCHS,
    images: int | None = None,
    network: Callable[[], nn.Module] = build_network,
    on_step: Callable[[dict[str, float]], object] = lambda values: None,
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
        on_step: Called after each step with its ``"loss"`` and ``"loss_loc"``, and the ``"EPG"`` of
            the last epoch.

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
        _train(run, setting, data, seed, epochs, on_step)
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
    on_step: Callable[[dict[str, float]], object],
) -> None:
    model, steps = run.model, count_steps(data.images)
    pictures, labels = data.train.images, data.train.labels
    used = data.used(data.train)
    boxes = [used[i][2] for i in range(len(used))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=epochs * steps)
    guide = setting.guide(model, torch.Generator().manual_seed(seed))
    epg = math.nan
    for epoch in range(1, epochs + 1):
        model.train()
        sums = {"loss": 0.0, "loss_loc": 0.0}
        for batch in torch.randperm(len(boxes))[: steps * _BATCH].split(_BATCH):
            logits = model(pictures[batch])
            loss = F.cross_entropy(logits, labels[batch])
            values = {"loss": loss.item()}
            if guide is not None:
                loss_loc = guide.loss_loc([boxes[i] for i in batch.tolist()])
                values["loss_loc"] = loss_loc.item()
                loss = loss + setting.lam * loss_loc
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            sums = {key: sums[key] + value for key, value in values.items()}
            on_step({**values, "EPG": epg})
        model.eval()
        means = {key: value / steps for key, value in sums.items()}
        run.history.append({"epoch": float(epoch), **means, **data.measure(model)})
        epg = run.history[-1]["EPG"]
    if guide is not None:
        guide.remove()
