"""The runs of the demo: one small network on `DecoyDigits`, trained with and without guidance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from explainguide.datasets import DecoyDigits
from explainguide.evaluation import evaluate
from explainguide.guidance import ExplanationGuidance

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
    "describe",
    "train_run",
]

EPOCHS = 12
TRAIN_IMAGES = 1257
_BATCH, _PEAK, _LONGEST_GRADIENT = 64, 3e-3, 5.0
_WIDTHS = (16, 16, 32, 32, 64, 64)
_LAYER, _ATTRIBUTION = "input", "ixg"


@dataclass(frozen=True)
class Setting:
    """What differs between the runs.

    Attributes:
        text: The setting in words.
        lam: Weight of the localization loss; 0 is a run without guidance.
        score: What is explained, as in `ExplanationGuidance`.
        negatives: As there.
        annotated: Fraction of the training images that have a box.
    """

    text: str
    lam: float = 10.0
    score: str = "logit"
    negatives: float = 0.0
    annotated: float = 1.0


SETTINGS = {
    "unguided": Setting("classification loss alone", lam=0.0),
    "guided": Setting("log-probability of the class, boxes on every image", score="log_prob"),
    "guided, 10% boxes": Setting(
        "the same with boxes on 10% of the images", score="log_prob", annotated=0.1
    ),
    "guided, negatives": Setting(
        "half of the draws explain a class that the image does not show",
        score="log_prob",
        negatives=0.5,
    ),
    "guided, logit": Setting("logit of the class, as in the papers"),
}
DEFAULT_RUNS = ("unguided", "guided", "guided, 10% boxes")


class SmoothMaximum(nn.Module):
    r"""Pool each channel over all places to a smooth maximum, ``(N, C, H, W) -> (N, C)``.

    .. math:: \frac{1}{r} \log \frac{1}{HW} \sum_{ij} \exp(r x_{ij})

    Between the mean (r = 0) and the maximum, so a small patch counts although the rest of the image
    is large, and twice differentiable, unlike the maximum.

    Args:
        sharpness: r, positive.

    References:
        Pinheiro and Collobert, 2015, "From Image-level to Pixel-level Labeling with Convolutional
        Networks", Eq. 6.
    """

    def __init__(self, sharpness: float = 2.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, feature: Tensor) -> Tensor:
        """Pool."""
        flat = feature.flatten(2)
        mean = (self.sharpness * flat - torch.tensor(float(flat.shape[2])).log()).logsumexp(2)
        return mean / self.sharpness


def build_network(num_classes: int = 10) -> nn.Sequential:
    """Six 3 x 3 convolutions, each with BatchNorm and GELU; the resolution halves at every second.

    GELU rather than ReLU, because the localization loss trains through the second derivative, of
    which ReLU has none.
    """
    layers: list[nn.Module] = []
    channels = 3
    for i, width in enumerate(_WIDTHS):
        stride = 2 if i % 2 == 0 else 1
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
        ]
        channels = width
    return nn.Sequential(*layers, SmoothMaximum(), nn.Linear(channels, num_classes))


@dataclass(frozen=True)
class DemoData:
    """The digits of one seed.

    Attributes:
        train: The colour of the patch names the class.
        with_decoy: Test images in which it still does.
        without_decoy: The same test images with colours drawn at random.
        images: Use only so many of each, for a quick look; None for all.
    """

    train: DecoyDigits
    with_decoy: DecoyDigits
    without_decoy: DecoyDigits
    images: int | None = None

    @classmethod
    def build(cls, seed: int, *, annotated: float = 1.0, images: int | None = None) -> DemoData:
        """Make the three sets."""
        return cls(
            DecoyDigits("train", seed=seed, annotated=annotated),
            DecoyDigits("test", seed=seed, decoy="class"),
            DecoyDigits("test", seed=seed, decoy="random"),
            images,
        )

    def first(self, data: DecoyDigits) -> Subset:
        """The images of a set that are used."""
        return Subset(data, range(min(len(data), self.images or len(data))))


@dataclass
class Run:
    """A trained network and its numbers.

    Attributes:
        name: Of its setting.
        model: In evaluation mode.
        scores: ``"accuracy with decoy"``, ``"accuracy without"``, ``"worst class"`` (of the
            latter), ``"EPG"`` and ``"IoU"`` (on the same images), and ``"IoU threshold"``.
        history: One row an epoch.
        seconds: Of the training and its evaluation.
    """

    name: str
    model: nn.Module
    scores: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def count_steps(images: int | None = None) -> int:
    """Steps of an epoch on so many training images; None for all. Whole batches only."""
    return max(min(images or TRAIN_IMAGES, TRAIN_IMAGES) // _BATCH, 1)


def train_run(
    name: str,
    setting: Setting,
    *,
    seed: int,
    epochs: int = EPOCHS,
    images: int | None = None,
    on_step: Callable[[dict[str, float]], object] = lambda row: None,
) -> Run:
    """Train the network with one setting, and measure it after every epoch.

    Runs with one seed begin with the same weights, and see the same images in the same order.

    Args:
        name: The run's name.
        setting: How it is guided.
        seed: Of the images, the weights, the order and the draws of classes.
        epochs: Passes over the training images.
        images: Use only so many training and test images.
        on_step: Called after each step with its ``"loss"`` and ``"loss_loc"``, and the ``"EPG"`` of
            the last epoch.

    Returns:
        The run.
    """
    began = time.perf_counter()
    data = DemoData.build(seed, annotated=setting.annotated, images=images)
    train = data.first(data.train)
    pictures, labels = data.train.images, data.train.labels
    boxes = [annotation for _, _, annotation in train]
    torch.manual_seed(seed)
    model = build_network()
    steps = count_steps(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=epochs * steps)
    order = torch.Generator().manual_seed(seed)
    run = Run(name, model)
    guide = None
    if setting.lam:
        guide = ExplanationGuidance(
            model,
            layer=_LAYER,
            attribution=_ATTRIBUTION,
            score=setting.score,  # type: ignore[arg-type]
            negatives=setting.negatives,
            generator=torch.Generator().manual_seed(seed),
        )
    epg = float("nan")
    for epoch in range(1, epochs + 1):
        total = {"loss": 0.0, "loss_loc": 0.0}
        for batch in torch.randperm(len(train), generator=order)[: steps * _BATCH].split(_BATCH):
            logits = model(pictures[batch])
            loss = loss_class = F.cross_entropy(logits, labels[batch])
            loss_loc = torch.zeros(())
            if guide is not None:
                loss_loc = guide.loss_loc([boxes[i] for i in batch.tolist()])
                loss = loss + setting.lam * loss_loc
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            step = {"loss": loss_class.item(), "loss_loc": loss_loc.item()}
            total = {key: total[key] + value / steps for key, value in step.items()}
            on_step({**step, "EPG": epg})
        row = {"epoch": float(epoch), **total, **_measure(model, data)}
        if guide is None:
            del row["loss_loc"]
        epg = row["EPG"]
        run.history.append(row)
    if guide is not None:
        guide.remove()
    model.eval()
    run.scores = _final_scores(model, data)
    run.seconds = time.perf_counter() - began
    return run


def _measure(model: nn.Module, data: DemoData, threshold: float = 0.5) -> dict[str, float]:
    """The numbers of the table."""
    plain = {"layer": _LAYER, "attribution": _ATTRIBUTION, "batch_size": 180}
    lured = evaluate(model, data.first(data.with_decoy), **plain)
    found = evaluate(model, data.first(data.without_decoy), threshold=threshold, **plain)
    return {
        "accuracy with decoy": lured["accuracy"],
        "accuracy without": found["accuracy"],
        "worst class": found["worst_class_accuracy"],
        "EPG": found["epg"],
        "IoU": found["iou"],
    }


def _final_scores(model: nn.Module, data: DemoData) -> dict[str, float]:
    # As the papers do, the threshold of the IoU is chosen on other images than those it is for.
    fit = evaluate(
        model, data.first(data.train), layer=_LAYER, attribution=_ATTRIBUTION, threshold="fit"
    )
    threshold = fit["iou_threshold"]
    return {**_measure(model, data, threshold), "IoU threshold": threshold}


def describe(setting: Setting) -> str:
    """The options of a run, for the page."""
    options = asdict(setting)
    text = options.pop("text")
    return f"{text}: {', '.join(f'{key}={value}' for key, value in options.items())}"
