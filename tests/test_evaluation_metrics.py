"""Every metric through `evaluate`: the numbers of the classes used by hand on the same maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset
from torchmetrics import MeanMetric

from explainguide.attr import ATTRIBUTIONS
from explainguide.errors import DataError, ExplainGuideWarning, OptionError, ShapeError
from explainguide.evaluation import BatchMaps, evaluate, grid_game
from explainguide.metrics import (
    MAP_METRICS,
    DeletionCurve,
    Infidelity,
    InsertionCurve,
    IoUCurve,
    PixelAveragePrecision,
    PixelPerturbation,
    SensitivityMax,
    map_metric,
)

from .test_evaluation import CLASSES, SIZE, Scenes, tiny

ASKING = ["perturbation", "insertion", "deletion", "infidelity", "sensitivity"]
OF_MAPS = [*ASKING, "pxap", "iou_curve"]
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])

# Where an image has few colours, equal values go together.
pytestmark = pytest.mark.filterwarnings("ignore:PixelPerturbation. the highest")


class Colours(nn.Module):
    """Knows six colours, or with ``logits=1`` red from green; ``pool`` has half of the image's size."""

    def __init__(self, logits: int = 6) -> None:
        super().__init__()
        self.conv, self.act, self.pool = nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.AvgPool2d(2)
        self.head = nn.Linear(6, logits, bias=False)
        self.conv.weight.data = 2 * COLOURS[:, :, None, None] - 1
        self.head.weight.data = 4 * (torch.eye(6) if logits == 6 else torch.eye(6)[1:2] - 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.act(self.conv(x - 0.5))).mean((2, 3)))


class Painted(torch.utils.data.Dataset[Any]):
    """Images of one colour and noise, with a box of the colour's class, and a group."""

    groups: ClassVar = ["even", "odd"]

    def __init__(self, labels: str, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(2)
        self.items = []
        for i in range(count):
            k = i % (2 if labels == "binary" else 6)
            noise = torch.rand(3, SIZE, SIZE, generator=generator)
            image = COLOURS[k][:, None, None] * noise[:1] ** 0.2 + 0.2 * noise
            box = torch.tensor([[2.0, 3, 12, 14]])
            annotation = {"boxes": box, "labels": torch.tensor([k])}
            hot = F.one_hot(torch.tensor(k), 6).float()
            self.items.append((image, hot if labels == "multi-hot" else k, annotation, i // 2 % 2))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.fixture
def states() -> Iterator[list[Tensor]]:
    """A metric "spy" keeps the state of the generator, layer by layer, before the others draw."""
    seen: list[Tensor] = []

    @map_metric("spy", title="Spy")
    class Spy(MeanMetric):
        def update(self, attribution: Tensor, mask: Tensor) -> None:
            seen.append(torch.get_rng_state())
            super().update(attribution.mean((1, 2)))

    yield seen
    del MAP_METRICS["spy"]


def own(model: nn.Module, name: str, layer: str) -> Callable[[Tensor, Tensor], Tensor]:
    """An attribution's maps, at the layer's own resolution."""
    if name == "captum:Saliency":
        saliency = captum.attr.Saliency(model)
        return lambda images, target: saliency.attribute(
            images.clone().requires_grad_(), target=target
        ).sum(1)
    if name == "center":
        return lambda images, target: torch.zeros(
            len(images), *images.shape[-2:]
        )  # always the same
    method = ATTRIBUTIONS[name](model, layer)
    return lambda images, target: method.attribute(images, target=target)[:, 0]


def by_hand(
    model: nn.Module, batch: BatchMaps, layer: str, name: str, *, multilabel: bool, state: Tensor
) -> dict[str, float]:
    """The numbers of one layer's maps."""
    maps, images, classes = batch.maps[layer], batch.images[batch.rows], batch.classes

    def explain(images: Tensor, target: Tensor) -> Tensor:
        found = own(model, name, layer)(images, target)[:, None]
        size = images.shape[-2:]
        return F.interpolate(found, size, mode="bilinear", align_corners=False)[:, 0].detach()

    if name != "center":
        torch.testing.assert_close(maps, explain(images, classes))
    metrics: dict[str, Any] = {
        "perturbation": PixelPerturbation(multilabel=multilabel),
        "insertion": InsertionCurve(multilabel=multilabel),
        "deletion": DeletionCurve(multilabel=multilabel),
        "infidelity": Infidelity(),
        "sensitivity": SensitivityMax(),
        "pxap": PixelAveragePrecision(),
        "iou_curve": IoUCurve(),
    }
    before = torch.get_rng_state()
    torch.set_rng_state(state)
    for key, metric in metrics.items():
        if key == "sensitivity":
            metric.update(
                maps,
                images,
                classes,
                explain if name != "center" else lambda x, k: maps[:1].expand(len(x), -1, -1),
            )
        elif key in ASKING:
            metric.update(maps, images, classes, model)
        else:
            metric.update(maps, batch.regions)
    torch.set_rng_state(before)
    found = {key: metric.compute() for key, metric in metrics.items()}
    numbers = {f"perturbation_{part}": value for part, value in found["perturbation"].items()}
    numbers |= {f"{k}_area": found[k]["area"] for k in ("insertion", "deletion", "iou_curve")}
    numbers |= {k: found[k] for k in ("infidelity", "sensitivity", "pxap")}
    numbers |= {f"{key}_undefined": metrics[key].undefined for key in ASKING}
    return {key: float(value) for key, value in numbers.items()}


@pytest.mark.parametrize("labels", ["index", "multi-hot"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ixg", ["input", "pool"]),
        ("gradcam", ["pool"]),
        ("captum:Saliency", ["input"]),
        ("center", ["input"]),
    ],
)
def test_every_metric_is_that_of_its_class(
    labels: str, name: str, layers: list[str], states: list[Tensor]
) -> None:
    model, data, told = Colours().eval(), Painted(labels), []
    multilabel = labels == "multi-hot"
    foreign = name in ("captum:Saliency", "center")
    found = evaluate(
        model,
        data,
        attribution=name,
        layer=None if foreign else layers,
        metrics=["spy", *OF_MAPS, "gridpg"],
        grid_size=2,
        on_batch=told.append,
    )
    (batch,) = told
    assert list(batch.maps) == layers
    assert found["pairs"] == len(batch.rows) == 24
    each = []
    for layer, state in zip(layers, states, strict=True):
        numbers = by_hand(model, batch, layer, name, multilabel=multilabel, state=state)
        game = grid_game(
            model,
            own(model, name, layer),
            data,
            n=2,
            by="sigmoid" if multilabel else "softmax",
        ).numbers
        assert game["grids"] > 0
        if name != "center":
            numbers["gridpg"] = game["gridpg"]
            numbers["gridpg_undefined"] = game["gridpg_undefined"]
        else:
            assert found["gridpg"] == pytest.approx(1 / 4)  # knows nothing of the cell
        assert found["gridpg_grids"] == game["grids"]
        each.append(numbers)
        if len(layers) > 1:
            assert {k: found[f"{k} {layer}"] for k in numbers} == pytest.approx(numbers, rel=1e-5)
    for key in each[0]:
        total = sum(numbers[key] for numbers in each)
        mean = total if key.endswith("_undefined") else total / len(layers)
        assert found[key] == pytest.approx(mean, rel=1e-5), key
    assert 0 < found["deletion_area"] < 1
    if name == "center":
        assert found["sensitivity"] == 0


def test_softmax_and_sigmoid_differ() -> None:
    """That labels are multi-hot decides what a probability is, and when a class is said."""
    numbers = [
        evaluate(Colours(), Painted(labels), layer="input", metrics=["insertion"])["insertion_area"]
        for labels in ("index", "multi-hot")
    ]
    assert abs(numbers[0] - numbers[1]) > 0.01


def test_a_model_with_one_logit(states: list[Tensor]) -> None:
    model, data, told = Colours(1).eval(), Painted("binary"), []
    names = ["spy", *OF_MAPS, "worst_group_accuracy"]
    found = evaluate(model, data, layer="pool", metrics=names, on_batch=told.append)
    (batch,) = told
    assert batch.classes.unique().tolist() == [0, 1]
    expected = by_hand(model, batch, "pool", "ixg", multilabel=False, state=states[0])
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    assert found["worst_group_accuracy"] <= found["accuracy"] == 1
    with pytest.raises(DataError, match=r"^grid_game: only 2 classes have"):
        evaluate(model, data, layer="pool", metrics=["gridpg"], grid_size=2)


def test_maps_that_are_not_finite_are_told_and_left_out() -> None:
    """By each metric of maps, and by the game."""

    def breaks(images: Tensor, target: Tensor) -> Tensor:
        maps = images.sum(1)
        return torch.where((target == 3)[:, None, None], torch.nan, maps)

    names = ["gridpg", *OF_MAPS]  # the game comes first
    with pytest.warns(ExplainGuideWarning, match="not finite") as caught:
        found = evaluate(
            Colours(), Painted("index"), attribution=breaks, metrics=names, grid_size=2
        )
    told = [str(w.message).partition(":")[0] for w in caught if "not finite" in str(w.message)]
    assert told == [f"{MAP_METRICS[key].kind.__name__}.compute" for key in names]
    assert {found[f"{key}_undefined"] for key in ASKING} == {4}  # images of class 3
    assert found["gridpg_undefined"] > 0
    assert all(value == value for value in found.values())


def test_how_often_images_are_loaded_changes_no_number() -> None:
    names = ["perturbation", "insertion", "deletion", "pxap", "iou_curve", "gridpg"]
    whole, parts = (
        evaluate(
            *(Colours(), Painted("index")),
            layer="pool",
            metrics=names,
            grid_size=2,
            batch_size=size,
        )
        for size in (32, 5)
    )
    assert whole == pytest.approx(parts, rel=1e-5)


def test_the_worst_group() -> None:
    model, data = tiny(), Scenes(17, multilabel=False)
    data.items = [(*item, i // 4 % 3) for i, item in enumerate(data.items)]
    data.groups = ["land", "water", "air"]  # type: ignore[attr-defined]
    with torch.no_grad():
        said = model.eval()(torch.stack([item[0] for item in data.items])).argmax(1)
    labels, groups = (torch.tensor([item[i] for item in data.items]) for i in (1, 3))
    shares = [float((said == labels)[groups == g].float().mean()) for g in range(3)]
    assert len(set(shares)) > 1
    names = ["worst_group_accuracy", "epg"]
    for given in (data, Subset(data, range(17))):
        found = evaluate(model, given, layer="stage2", metrics=names, batch_size=5)
        assert found["worst_group_accuracy"] == pytest.approx(min(shares))
        assert list(found)[:4] == ["accuracy", "worst_class_accuracy", names[0], "epg"]
    none = Subset(data, [i for i in range(17) if groups[i] != 2])
    with pytest.warns(ExplainGuideWarning, match="'air'"):
        found = evaluate(model, none, layer="stage2", metrics=names)
    assert found["worst_group_accuracy"] == pytest.approx(min(shares[:2]))


def test_groups_that_are_missing() -> None:
    data, metrics = Scenes(3, multilabel=False), ["worst_group_accuracy"]
    with pytest.raises(OptionError) as named:
        evaluate(tiny(), data, layer="stage2", metrics=metrics)
    assert str(named.value) == (
        "evaluate: metric 'worst_group_accuracy' needs groups, and the data set names none. List their "
        "names in its attribute groups, and let each item end with the index of one. Data with groups "
        "are allowed."
    )
    data.groups = ["land", "water"]  # type: ignore[attr-defined]
    with pytest.raises(DataError) as given:
        evaluate(tiny(), data, layer="stage2", metrics=metrics)
    assert str(given.value) == (
        "evaluate: metric 'worst_group_accuracy' needs groups, and the items have none. Return image, "
        "labels, annotation, group. The index of a name in the data set's groups is allowed."
    )
    data.items = [(*item, 2) for item in data.items]
    with pytest.raises(DataError, match=r"^WorstGroupAccuracy\.compute: 0 labels and 3 groups"):
        evaluate(tiny(), data, layer="stage2", metrics=metrics)
    hot = Scenes(3)
    hot.items = [(*item, 0) for item in hot.items]
    hot.groups = ["land"]  # type: ignore[attr-defined]
    with pytest.raises(
        ShapeError, match=rf"^WorstGroupAccuracy\.update: .*\(3, {CLASSES}\) are multi"
    ):
        evaluate(tiny(), hot, layer="stage2", metrics=metrics)


def test_groups_of_another_kind_are_no_matter_where_no_metric_needs_them() -> None:
    data = Scenes(3, multilabel=False)
    data.groups = 5  # type: ignore[attr-defined]
    assert "epg" in evaluate(tiny(), data, layer="stage2")


def test_data_with_groups_are_judged_by_group_without_being_asked() -> None:
    class Plain(Painted):
        groups: ClassVar[list[str]] = []

    plain = evaluate(Colours(), Plain("index"), layer="pool")
    found = evaluate(Colours(), Painted("index"), layer="pool")
    assert found.keys() - plain.keys() == {"worst_group_accuracy"}
    part = Subset(Painted("index"), range(4))
    assert "worst_group_accuracy" in evaluate(Colours(), part, layer="pool")
    assert "worst_group_accuracy" not in evaluate(Colours(), part, layer="pool", metrics=["epg"])
    several = evaluate(Colours(), Painted("multi-hot"), layer="pool")
    assert "worst_group_accuracy" not in several  # they have no one answer
