"""Evaluation: the numbers of a slow, obvious loop; modes, hooks and undefined maps."""

from __future__ import annotations

import json
import math
import re
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric
from torchvision import tv_tensors

from explainguide.attr import ATTRIBUTIONS, InputXGradient
from explainguide.errors import DataError, ExplainGuideError, OptionError, ShapeError
from explainguide.evaluation import BatchMaps, Record, Scores, evaluate
from explainguide.evaluation.classification import ClassificationScores
from explainguide.losses import classification_loss
from explainguide.metrics import (
    MAP_METRICS,
    energy_pointing_game,
    localization_iou,
    map_metric,
    on_object_energy,
)
from explainguide.models import small_cnn
from explainguide.tables import format_table

SIZE, CLASSES = 16, 4


class Scenes(torch.utils.data.Dataset):
    """Random images with boxes of one to three classes; every third without, one with masks."""

    def __init__(self, count: int, *, multilabel: bool = True, masks: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.items: list[Any] = []
        for index in range(count):
            objects = 1 + index % 3
            corner = torch.randint(0, SIZE - 6, (objects, 2), generator=generator).float()
            boxes = torch.cat([corner, corner + 5], 1)
            labels = torch.randperm(CLASSES, generator=generator)[:objects]
            image = torch.randn(3, SIZE, SIZE, generator=generator)
            annotation: dict[str, Any] | None = {
                "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIZE, SIZE)),
                "labels": labels,
            }
            if masks and index == 1:
                full = torch.zeros(objects, SIZE, SIZE, dtype=torch.bool)
                for m, (x1, y1, x2, y2) in zip(full, boxes.int().tolist(), strict=True):
                    m[y1 : y2 - 2, x1:x2] = True
                assert annotation is not None
                annotation["masks"] = tv_tensors.Mask(full)
            hot = torch.zeros(CLASSES)
            hot[labels] = 1
            if index % 3 == 2:
                annotation = None
            self.items.append((image, hot if multilabel else int(labels[0]), annotation))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def tiny(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(classes, widths=(4, 4, 4, 4, 8, 8))


def slow_map_scores(model: nn.Module, data: Scenes, layer: str, name: str) -> dict[str, float]:
    """One image and one class at a time."""
    method = ATTRIBUTIONS[name](model, layer)
    epg, iou, on_object = [], [], []
    for image, _, annotation in data.items:
        if annotation is None:
            continue
        for k in annotation["labels"].unique().tolist():
            found = method.attribute(image[None], target=k)
            found = F.interpolate(found, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
            box, mask = torch.zeros(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
            for i, label in enumerate(annotation["labels"].tolist()):
                if label == k:
                    x1, y1, x2, y2 = annotation["boxes"][i].int().tolist()
                    box[0, y1:y2, x1:x2] = 1
                    if "masks" in annotation:
                        mask[0][annotation["masks"][i]] = 1
            epg.append(float(energy_pointing_game(found, box)))
            iou.append(float(localization_iou(found, box)))
            if "masks" in annotation:
                on_object.append(float(on_object_energy(found, mask, box)))

    def mean(values: list[float]) -> float:
        defined = [v for v in values if not math.isnan(v)]
        return sum(defined) / len(defined)

    return {
        "epg": mean(epg),
        "iou": mean(iou),
        "on_object_epg": mean(on_object),
        "epg_undefined": sum(math.isnan(v) for v in epg),
        "pairs": len(epg),
    }


@pytest.mark.parametrize("layer", ["input", "stage2"])
@pytest.mark.parametrize("name", ["ixg", "gradcam"])
def test_maps_are_scored_as_by_a_slow_loop(layer: str, name: str) -> None:
    model, data = tiny(), Scenes(11)
    found = evaluate(model, data, layer=layer, attribution=name, batch_size=4)
    model.eval()
    expected = slow_map_scores(model, data, layer, name)
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-5)
    assert (found["images"], found["skipped"]) == (11, 0)


def test_f1_and_map_of_multi_hot_labels() -> None:
    model, data = tiny(), Scenes(9)
    found = evaluate(model, data, layer="stage3")
    with torch.no_grad():
        logits = model.eval()(torch.stack([image for image, _, _ in data.items]))
    labels = torch.stack([hot for _, hot, _ in data.items]) > 0
    hits = ((logits >= 0) & labels).sum()
    assert found["f1"] == pytest.approx(float(2 * hits / ((logits >= 0).sum() + labels.sum())))
    precisions = []
    for scores, truth in zip(logits.T, labels.T, strict=True):
        right = truth[scores.argsort(descending=True)]
        at = right.cumsum(0) / torch.arange(1, len(right) + 1)
        precisions.append(float(at[right].mean()))
    assert found["map"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-6)


def test_accuracy_and_worst_class_of_class_indices() -> None:
    model, data = tiny(), Scenes(9, multilabel=False)
    found = evaluate(model, data, layer="stage3")
    with torch.no_grad():
        said = model.eval()(torch.stack([image for image, _, _ in data.items])).argmax(1)
    labels = torch.tensor([label for _, label, _ in data.items])
    assert found["accuracy"] == pytest.approx(float((said == labels).float().mean()))
    worst = min(float((said == labels)[labels == k].float().mean()) for k in labels.unique())
    assert found["worst_class_accuracy"] == pytest.approx(worst)


def test_classes_that_no_image_shows_are_left_out_of_the_mean() -> None:
    scores = ClassificationScores(3, True, torch.device("cpu"))
    scores.update(torch.tensor([[2.0, -1.0, 5.0], [-3.0, 1.0, 4.0]]), torch.eye(3)[:2])
    assert scores.compute()["map"] == pytest.approx(1.0)
    single = ClassificationScores(3, False, torch.device("cpu"))
    single.update(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert single.compute()["worst_class_accuracy"] == 1.0


def test_a_logit_of_zero_is_a_yes() -> None:
    scores = ClassificationScores(2, True, torch.device("cpu"))
    scores.update(torch.zeros(1, 2), torch.ones(1, 2))
    assert scores.compute()["f1"] == 1.0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_grad_mode_gives_the_same_and_the_model_comes_back(mode: Any) -> None:
    model, data = tiny(), Scenes(5)
    expected = evaluate(model, data, layer="input")
    model.train()
    model[0].eval()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with mode():
        assert evaluate(model, data, layer="input") == expected
    assert model.training
    assert model[1].training
    assert not model[0].training
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())


def test_the_model_comes_back_after_an_error() -> None:
    model = tiny(2).train()
    with pytest.raises(ExplainGuideError, match=r"evaluate: the annotations hold label 3, but the"):
        evaluate(model, Scenes(5, multilabel=False), layer="input")
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_without_annotations_there_is_no_epg_and_no_gradient() -> None:
    data = Scenes(4)
    data.items = [(image, label, None) for image, label, _ in data.items]
    found = evaluate(tiny(), data, layer="stage2")
    assert math.isnan(found["epg"])
    assert math.isnan(found["iou"])
    assert found["pairs"] == 0
    assert "on_object_epg" not in found


def test_undefined_maps_are_counted() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Linear(2, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(-self.act(self.conv(x)).mean((2, 3)))

    model = Dead()
    nn.init.ones_(model.head.weight)
    found = evaluate(model, Scenes(5), layer="act", attribution="gradcam")
    assert found["epg_undefined"] == found["pairs"]
    assert math.isnan(found["epg"])


def test_masks_can_be_the_region() -> None:
    model, data = tiny(), Scenes(2)
    boxes = evaluate(model, data, layer="input")
    masks = evaluate(model, data, layer="input", region="masks")
    assert masks["epg"] < boxes["epg"]
    assert masks["on_object_epg"] == boxes["on_object_epg"]


def test_several_layers_are_averaged_and_shown_each() -> None:
    model, data = tiny(), Scenes(5)
    both = evaluate(model, data, layer=["stage1", "stage2"])
    each = [evaluate(model, data, layer=name)["epg"] for name in ("stage1", "stage2")]
    assert [both["epg stage1"], both["epg stage2"]] == pytest.approx(each)
    assert both["epg"] == pytest.approx(sum(each) / 2)


def test_a_fitted_threshold_is_reported() -> None:
    model, data = tiny(), Scenes(5)
    found = evaluate(model, data, layer="stage2", threshold="fit")
    again = evaluate(model, data, layer="stage2", threshold=found["iou_threshold"])
    assert again["iou"] == pytest.approx(found["iou"])


def test_a_threshold_is_fitted_on_other_images_for_each_layer() -> None:
    model, data, others = tiny(), Scenes(5), Scenes(11)
    found = evaluate(model, data, layer=["stage1", "stage2"], fit_on=others)
    for name in ("stage1", "stage2"):
        fitted = evaluate(model, others, layer=name, threshold="fit")["iou_threshold"]
        assert found[f"iou_threshold {name}"] == fitted
        alone = evaluate(model, data, layer=name, threshold=fitted)
        assert found[f"iou {name}"] == pytest.approx(alone["iou"])
    assert found["iou_threshold"] == found["iou_threshold stage1"]
    best = evaluate(model, data, layer="stage2", threshold="fit")
    assert found["iou stage2"] < best["iou"]  # on the images themselves it is too good
    assert found["pairs"] == best["pairs"]
    without = evaluate(model, data, layer="stage2", metrics=["epg"], fit_on=others)
    assert list(without) == ["f1", "map", "epg", "epg_undefined", "images", "pairs", "skipped"]


def test_a_threshold_that_cannot_be_fitted() -> None:
    model, data = tiny(), Scenes(5)
    plain = [(image, labels, None) for image, labels, _ in data.items]
    with pytest.raises(DataError) as caught:
        evaluate(model, data, layer="stage2", fit_on=plain)
    assert str(caught.value) == (
        "evaluate: none of the 5 images of fit_on is annotated, so that no threshold can be fitted on "
        "them. Name images with boxes, or leave fit_on out. One annotated image is enough."
    )
    with pytest.raises(OptionError) as refused:
        evaluate(model, data, layer="stage2", fit_on=data, threshold=0.4)
    assert str(refused.value) == (
        "evaluate: threshold is 0.4 beside fit_on. Leave it out: it is fitted on those images. One of "
        "the two is allowed."
    )
    with pytest.raises(DataError, match="evaluate: fit_on is empty"):
        evaluate(model, data, layer="stage2", fit_on=[])


def test_a_record_keeps_each_score_in_the_order_of_the_data() -> None:
    model, data = tiny(), Scenes(11)
    record = Record()
    layers = ["stage1", "stage2"]
    found = evaluate(model, data, layer=layers, batch_size=4, on_batch=record.add)
    scores = record.finish()
    assert scores.images.tolist() == list(range(11))
    assert scores.pair_images.tolist() == sorted(scores.pair_images.tolist())
    for image, classes in ((0, 1), (1, 2), (2, 0), (3, 1)):  # as Scenes annotates them
        annotation = data.items[image][2]
        expected = [] if annotation is None else sorted(annotation["labels"].tolist())
        assert len(expected) == classes
        assert sorted(scores.classes[scores.pair_images == image].tolist()) == expected
    for layer in layers:
        for key in ("epg", "iou", "on_object_epg"):
            own = scores.scores[layer][key]
            assert own[~np.isnan(own)].mean() == pytest.approx(found[f"{key} {layer}"])
        assert np.isnan(scores.scores[layer]["epg"]).sum() == found[f"epg_undefined {layer}"]
    assert np.isnan(scores.scores["stage1"]["on_object_epg"]).sum() == found["pairs"] - 2
    shown = torch.stack([labels for _, labels, _ in data.items]).bool()
    assert torch.equal(torch.from_numpy(scores.labels), shown)
    hits = (scores.labels & scores.answers).sum() * 2
    assert hits / (scores.labels.sum() + scores.answers.sum()) == pytest.approx(found["f1"])
    again = Scores.from_dict(json.loads(json.dumps(scores.to_dict())))
    for name, value in vars(scores).items():
        if name != "scores":
            np.testing.assert_array_equal(value, getattr(again, name))
    np.testing.assert_array_equal(again.scores["stage2"]["epg"], scores.scores["stage2"]["epg"])


def test_a_record_of_class_indices_groups_and_no_annotation() -> None:
    model = tiny()
    data = [(*item[:2], None, i % 2) for i, item in enumerate(Scenes(5, multilabel=False).items)]
    record = Record()
    found = evaluate(model, data, layer="stage2", on_batch=record.add)
    scores = record.finish()
    assert (scores.labels == scores.answers).mean() == pytest.approx(found["accuracy"])
    assert scores.groups is not None
    assert scores.groups.tolist() == [0, 1, 0, 1, 0]
    assert len(scores.classes) == len(scores.pair_images) == 0
    assert scores.scores == {}
    assert Scores.from_dict(scores.to_dict()).groups.tolist() == [0, 1, 0, 1, 0]  # type: ignore[union-attr]


def test_a_threshold_that_is_fitted_on_the_maps_themselves_gives_no_single_scores() -> None:
    record = Record()
    evaluate(tiny(), Scenes(5), layer="stage2", threshold="fit", on_batch=record.add)
    assert list(record.finish().scores["stage2"]) == ["epg", "on_object_epg"]
    record = Record()
    evaluate(tiny(), Scenes(5), layer="stage2", fit_on=Scenes(8), on_batch=record.add)
    assert list(record.finish().scores["stage2"]) == ["epg", "iou", "on_object_epg"]


def test_what_is_told_of_a_batch_is_what_was_scored() -> None:
    told: list[BatchMaps] = []
    data = Scenes(4)
    evaluate(tiny(), data, layer="stage2", batch_size=2, on_batch=told.append)
    for batch in told:
        expected = energy_pointing_game(batch.maps["stage2"], batch.regions)
        torch.testing.assert_close(batch.scores["stage2"]["epg"], expected, equal_nan=True)
        for row, k, region in zip(batch.rows, batch.classes, batch.regions, strict=True):
            annotation = data.items[int(batch.indices[row])][2]
            assert k in annotation["labels"]
            boxes = annotation["boxes"][annotation["labels"] == k].int().tolist()
            drawn = torch.zeros(SIZE, SIZE)
            for x1, y1, x2, y2 in boxes:
                drawn[y1:y2, x1:x2] = 1
            assert torch.equal(region, drawn)


def test_a_data_set_that_reads_batches_at_once_still_does() -> None:
    class Reading(Scenes):
        asked: ClassVar[list[list[int]]] = []

        def __getitems__(self, indices: list[int]) -> list[Any]:
            self.asked.append(indices)
            return [self[index] for index in indices]

    model, data = tiny(), Reading(5)
    assert evaluate(model, data, layer="stage2") == evaluate(model, Scenes(5), layer="stage2")
    assert Reading.asked == [[0, 1, 2, 3, 4]]


def test_the_metrics_that_are_named_are_those_reported() -> None:
    model, data = tiny(), Scenes(5)
    default = evaluate(model, data, layer="stage2")
    assert list(default)[2:] == [
        *("epg", "iou", "on_object_epg", "epg_undefined"),
        *("images", "pairs", "skipped"),
    ]
    only = evaluate(model, data, layer="stage2", metrics=["iou"])
    assert only == {k: v for k, v in default.items() if "epg" not in k}
    names = ("on_object_epg", "segmentation", "pointing_game", "iou", "epg")
    every = evaluate(model, data, layer=["stage1", "stage2"], metrics=names)
    assert every["epg stage2"] == default["epg"]
    assert 0 <= every["pointing_game"] <= 1
    agreement = {f"segmentation_{part}" for part in ("pixel_accuracy", "miou", "map")}
    assert agreement <= set(every)
    undefined = ("pointing_game_undefined", "epg_undefined stage1", "epg_undefined stage2")
    assert every[undefined[0]] == every[undefined[1]] + every[undefined[2]]
    none = evaluate(model, data, layer="stage2", metrics=[])
    assert list(none) == ["f1", "map", "images", "pairs", "skipped"]


def test_a_metric_of_ones_own_needs_only_its_definition() -> None:
    try:

        @map_metric("box_share", title="Box share", needs=("boxes", "segmentation"))
        class BoxShare(MeanMetric):
            def update(self, attribution: Any, boxes: Any, segmentation: Any) -> None:
                assert attribution.shape == boxes.shape == segmentation.shape
                super().update(segmentation.float().mean((1, 2)) / boxes.float().mean((1, 2)))

        names = ["box_share", "epg"]
        found = evaluate(tiny(), Scenes(5), layer="stage2", metrics=names)
        assert found["box_share"] == pytest.approx(3 / 5, abs=0.2)  # 3 of a box's 5 rows
        assert list(found)[2:5] == ["box_share", "epg", "epg_undefined"]
        without = evaluate(tiny(), Scenes(5, masks=False), layer="stage2", metrics=names)
        assert "box_share" not in without
    finally:
        del MAP_METRICS["box_share"]


def test_where_a_layer_has_no_defined_map_the_mean_is_undefined() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Linear(2, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(-self.act(self.conv(x)).mean((2, 3)))

    model = Half()
    nn.init.ones_(model.head.weight)
    for layers in (["act", "input"], ["input", "act"]):
        found = evaluate(model, Scenes(5), layer=layers)  # at "act" no map has a positive part
        for key in ("epg", "on_object_epg"):
            assert math.isnan(found[key])
            assert 0 <= found[f"{key} input"] <= 1
        assert "on_object_epg act" not in found


def test_unreadable_images_are_counted() -> None:
    data = Scenes(6)
    data.items[0] = data.items[3] = data.items[4] = None
    found = evaluate(tiny(), data, layer="stage2", batch_size=2)
    assert (found["images"], found["skipped"]) == (3, 3)
    data.items = [None, None]
    with pytest.raises(DataError, match="evaluate: none of the 2 images could be read"):
        evaluate(tiny(), data, layer="stage2")


def test_loading_in_workers_gives_the_same() -> None:
    model, data = tiny(), Scenes(6)
    assert evaluate(model, data, layer="input", workers=1) == evaluate(model, data, layer="input")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"attribution": "igx"},
            OptionError,
            r"evaluate: unknown attribution 'igx'\. Did you mean",
        ),
        ({"region": "box"}, OptionError, r"evaluate: unknown region 'box'\. Did you mean 'boxes'"),
        (
            {"metrics": ["epg", "pointing_gme"]},
            OptionError,
            r"evaluate: unknown metric 'pointing_gme'\. Did you mean 'pointing_game'\?.* are allowed\.",
        ),
        ({"metrics": "epg"}, OptionError, r"evaluate: metrics is 'epg'\. Use \['epg'\]\."),
        ({"metrics": 5}, OptionError, r"evaluate: metrics is 5\. Use \['epg'\]\. A list"),
        ({"metrics": [5]}, OptionError, r"evaluate: unknown metric 5\."),
        (
            {"batch_size": 0},
            OptionError,
            r"evaluate: batch_size is 0\. A whole number from 1 on is allowed\.",
        ),
        ({"batch_size": 2.5}, OptionError, r"evaluate: batch_size is 2\.5\. A whole number"),
        ({"batch_size": True}, OptionError, r"evaluate: batch_size is True\. A whole number"),
        (
            {"workers": -1},
            OptionError,
            r"evaluate: workers is -1\. A whole number from 0 on is allowed\.",
        ),
        ({"grid_size": 0}, OptionError, r"evaluate: grid_size is 0\. A whole number from 1 on is"),
        (
            {"device": "gpu"},
            OptionError,
            r"evaluate: device is 'gpu', .*Use 'cpu'\. A device of this machine \('cpu'.*\) is",
        ),
        ({"device": "cuda:99"}, OptionError, r"evaluate: device is 'cuda:99', .*Use 'cpu'\."),
        ({"device": 2.5}, OptionError, r"evaluate: device is 2\.5, "),
        (
            {"layer": "stage7"},
            ExplainGuideError,
            r"evaluate: unknown layer 'stage7'\. Did you mean",
        ),
    ],
)
def test_mistakes_are_told(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        evaluate(tiny(), Scenes(2), **{"layer": "input", **options})


def test_an_attribution_of_another_model_and_a_loader_are_refused() -> None:
    model, data = tiny(), Scenes(2)
    with pytest.raises(OptionError, match="InputXGradient was built for another model"):
        evaluate(model, data, layer="input", attribution=InputXGradient(tiny()))
    with pytest.raises(OptionError, match="evaluate: data is a list_iterator"):
        evaluate(model, iter(data.items), layer="input")
    with pytest.raises(DataError, match="evaluate: data is empty"):
        evaluate(model, [], layer="input")


def test_labels_that_do_not_fit_the_logits() -> None:
    data = Scenes(2, masks=False)
    data.items = [(image, torch.zeros(7), None) for image, _, _ in data.items]
    expected = re.escape("Build the model with num_classes=7?")
    with pytest.raises(ShapeError, match=rf"evaluate: labels of shape \(2, 7\).*{expected}"):
        evaluate(tiny(), data, layer="input")
    data.items = [(image, 9, None) for image, _, _ in data.items]
    with pytest.raises(DataError, match=r"an image has class 9, but the model has 4 logits"):
        evaluate(tiny(), data, layer="input")


def test_the_classification_loss_follows_the_labels() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    index = classification_loss(logits, torch.tensor([0, 1]))
    assert index == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1]))))
    hot = classification_loss(logits, torch.eye(2))
    p = logits.sigmoid()
    by_hand = -(torch.eye(2) * p.log() + (1 - torch.eye(2)) * (1 - p).log()).mean()
    assert float(hot) == pytest.approx(float(by_hand))


def test_a_table_is_aligned() -> None:
    rows = [{"run": "a", "epg": 0.5, "n": 3}, {"run": "long", "epg": math.nan}]
    assert format_table(rows).splitlines() == [
        "run      epg  n",
        "a     0.5000  3",
        "long       -  -",
    ]
    assert format_table(rows, columns=["run", "n"], markdown=True).splitlines() == [
        "| run  |   n |",
        "| ---- | --: |",
        "| a    |   3 |",
        "| long |   - |",
    ]
    assert format_table([]) == ""
