"""The table has every metric of maps, each entry says what its class needs, and mistakes are told."""

import math
from collections.abc import Iterator
from inspect import signature

import pytest
import torch
from torch.utils.data import Subset
from torchmetrics import MeanMetric, Metric

from explainguide import metrics
from explainguide.datasets import DecoyDigits
from explainguide.errors import OptionError
from explainguide.evaluation import evaluate
from explainguide.metrics import MAP_METRICS, EnergyPointingGame, Robustness, map_metric
from explainguide.metrics.left_out import LeavesOut
from explainguide.metrics.table import MapMetric, reported
from explainguide.models import small_cnn
from explainguide.training import TrainConfig, train
from tests.metrics.asked import Small

# Without what the pages of docs/ enter.
OWN = {k: e for k, e in MAP_METRICS.items() if e.kind.__module__.startswith("explainguide.")}
OF_MAPS = {key: entry for key, entry in OWN.items() if entry.takes == "maps"}


@pytest.fixture
def table() -> Iterator[None]:
    """What a test enters is taken out again."""
    before = dict(MAP_METRICS)
    yield
    MAP_METRICS.clear()
    MAP_METRICS.update(before)


def test_every_metric_is_entered_once():
    exported = [getattr(metrics, name) for name in metrics.__all__]
    classes = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Metric)}
    classes.remove(Robustness)  # around any of the others
    entered = [entry.kind for entry in OWN.values()]
    assert len(entered) == len(set(entered))
    assert set(entered) == classes
    assert {e.kind for e in OWN.values() if e.takes != "predictions"} == {
        kind for kind in classes if issubclass(kind, LeavesOut)
    }
    assert {key for key, e in OWN.items() if e.takes == "grids"} == {"gridpg"}


@pytest.mark.parametrize("entry", OWN.values(), ids=OWN)
def test_an_entry_says_what_its_class_takes(entry):
    """In the order of the parameters, which masks call otherwise; and its options by their name."""
    names = {"region": "mask", "boxes": "box_mask", "segmentation": "mask"}
    first = ["attribution"] * (entry.takes != "predictions")
    taken = list(signature(entry.kind.update).parameters)[1:]
    assert [*first, *(names.get(need, need) for need in entry.needs)] == taken
    assert set(entry.options) <= set(signature(entry.kind).parameters)
    assert entry.counts_undefined <= hasattr(entry.kind, "undefined")


def test_keys_and_titles_are_unique():
    assert [entry.key for entry in MAP_METRICS.values()] == list(MAP_METRICS)
    assert len({entry.title for entry in OWN.values()}) == len(OWN)


@pytest.mark.parametrize("entry", OF_MAPS.values(), ids=OF_MAPS)
def test_an_entry_computes_on_what_it_needs(entry, images):
    maps, masks, boxes = images
    generator = torch.Generator().manual_seed(0)
    given = {
        "region": boxes,
        "boxes": boxes,
        "segmentation": masks,
        "images": torch.randn(11, 3, 6, 9, generator=generator, dtype=torch.float64),
        "target": torch.arange(11) % 3,
        "model": Small(),
        "explain": lambda images, target: images.sum(1) * target[:, None, None],
    }
    options = {"threshold": 0.3, "multilabel": True}
    metric = entry.kind(**{name: options[name] for name in entry.options})
    metric.update(maps, *(given[need] for need in entry.needs))
    numbers = reported(entry.key, metric.compute())
    assert numbers
    most = math.inf if entry.key in ("infidelity", "sensitivity") else 1
    assert all(0 <= value <= most for value in numbers.values())
    assert sum(metric.undefined_kinds.values()) == metric.undefined
    assert next(iter(metric.undefined_kinds)) == "not_finite"
    lower = {"perturbation", "deletion", "infidelity", "sensitivity"}
    assert entry.higher_is_better is (entry.key not in lower)
    assert metric.higher_is_better is entry.higher_is_better


def test_metrics_of_predictions_are_evaluated(table):
    entry = OWN["worst_group_accuracy"]
    assert entry.takes == "predictions"
    assert entry.needs == ("logits", "labels", "groups")
    assert entry.kind(groups=2).higher_is_better is entry.higher_is_better is True

    @map_metric("hits", title="Hits", needs=("logits", "labels"), default=True)
    class Hits(MeanMetric):
        def update(self, logits, labels):
            super().update((logits.argmax(1) == labels).float())

    data = Subset(DecoyDigits("test", size=24), range(6))
    found = evaluate(small_cnn(10), data, layer="stage2", batch_size=4)
    assert found["hits"] == pytest.approx(found["accuracy"])


def test_a_curve_is_no_number_of_an_evaluation(table):
    data = Subset(DecoyDigits("test", size=24), range(4))
    found = evaluate(small_cnn(10), data, layer="stage2", metrics=["iou_curve", "pxap"])
    assert {k for k in found if k.startswith(("iou_curve", "pxap"))} == {"iou_curve_area", "pxap"}
    assert 0 < found["pxap"] < 1

    @map_metric("bare", title="Bare")
    class Bare(Strength):
        def compute(self):
            return super().compute().expand(3)

    with pytest.raises(
        OptionError,
        match=r"^evaluate: compute of the metric 'bare' returned a tensor \(3,\)\. Return it in a dict",
    ):
        evaluate(small_cnn(10), data, layer="stage2", metrics=["bare"])


def test_by_default_there_are_the_published_ones():
    assert {key for key, entry in OWN.items() if entry.default} == {
        "epg",
        "iou",
        "on_object_epg",
    }


def test_a_class_that_is_defined_again_takes_its_place(table):
    for title in ("First", "Second"):

        @map_metric("mine", title=title)
        class Mine(MeanMetric):
            pass

    assert MAP_METRICS["mine"].title == "Second"
    assert MAP_METRICS["mine"].kind is Mine


@pytest.mark.parametrize(
    ("key", "options", "kind", "message"),
    [
        (
            "epg",
            {},
            MeanMetric,
            r"the key 'epg' of torchmetrics\S+ is that of \S+EnergyPointingGame",
        ),
        ("f1", {}, MeanMetric, r"MeanMetric has the key 'f1'\. Use 'meanmetric'\. Identifiers"),
        *(
            (key, {}, MeanMetric, rf"MeanMetric has the key '{key}'\. Use 'meanmetric'\. Ident")
            for key in (
                "loss",
                "lr",
                "epoch",
                "loss_loc",
                "seconds",
                "skipped",
                "checkpoint",
                "kept",
            )
        ),
        *(
            (key, {}, MeanMetric, rf"MeanMetric has the key '{key}'\. .*do not end in _undefined")
            for key in ("epg_undefined", "iou_threshold", "mine_undefined")
        ),
        ("my score", {}, MeanMetric, r"MeanMetric has the key 'my score'\."),
        ("mine", {"needs": ("box",)}, MeanMetric, r"unknown need 'box'\. Did you mean 'boxes'\?"),
        (
            "mine",
            {"options": ("treshold",)},
            MeanMetric,
            r"unknown option 'treshold'\. Did you mean",
        ),
        (
            "mine",
            {"needs": ("logits", "region")},
            MeanMetric,
            r"MeanMetric needs 'logits', 'region', of images and of pairs .* Make two metrics of it\.",
        ),
        (
            "mine",
            {"options": ("groups",)},
            MeanMetric,
            r"MeanMetric has the option 'groups' and needs 'region'\. Add 'groups' to needs\.",
        ),
        ("mine", {}, EnergyPointingGame(), r"is no class of torchmetrics\. Derive one"),
        ("mine", {}, len, r"is no class of torchmetrics\. Derive one"),
    ],
)
def test_mistakes_are_told(table, key, options, kind, message):
    before = dict(MAP_METRICS)
    with pytest.raises(OptionError, match=rf"^map_metric: .*{message}"):
        map_metric(key, title="Mine", **options)(kind)
    assert before == MAP_METRICS


class Strength(MeanMetric):
    def update(self, attribution, mask):
        super().update(attribution.abs().mean((1, 2)))


@pytest.mark.parametrize(("key", "part"), [("worst_class", "accuracy"), ("on_object", "epg")])
def test_a_name_of_compute_takes_no_other_numbers_place(table, key, part):
    @map_metric(key, title="Mine", default=True)
    class Named(Strength):
        def compute(self):
            return {part: super().compute()}

    data = Subset(DecoyDigits("test", size=24, masks=True), range(4))
    with pytest.raises(
        OptionError, match=rf"^evaluate: two numbers are called '{key}_{part}'\. Re"
    ):
        evaluate(small_cnn(10), data, layer="stage2")


def test_an_entry_without_the_decorator_takes_no_place_in_the_row_of_an_epoch(table):
    MAP_METRICS["lr"] = MapMetric("lr", Strength, "Mine", default=True)
    data = Subset(DecoyDigits("test", size=24), range(4))
    config = TrainConfig(epochs=1, layer="stage2", device="cpu")
    with pytest.raises(OptionError, match=r"^train: two numbers are called 'lr'\. Rename"):
        train(small_cnn(10), data, data, config, progress=False)
