"""Accuracy by group: a loop over images, names, groups without images, and labels that do not exist."""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from torchmetrics import MetricCollection

from explainguide.errors import (
    DataError,
    ExplainGuideWarning,
    GuidanceError,
    OptionError,
    ShapeError,
)
from explainguide.metrics import WorstGroupAccuracy, group_accuracy
from explainguide.tables import format_table

NAMES = ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")


def sample(count=50, classes=3, groups=4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, max(classes, 2), (count,), generator=generator)
    return logits, labels, torch.randint(0, groups, (count,), generator=generator)


def by_a_loop(logits, labels, groups, number):
    right, images = [0] * number, [0] * number
    for z, label, group in zip(logits.tolist(), labels.tolist(), groups.tolist(), strict=True):
        said = int(z[0] >= 0) if len(z) == 1 else z.index(max(z))
        right[group] += said == label
        images[group] += 1
    return [r / n if n else math.nan for r, n in zip(right, images, strict=True)], images


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("cuts", [(0, 50), (0, 7, 7, 50)])
def test_equals_a_loop(classes, cuts):
    batch = sample(classes=classes)
    want, images = by_a_loop(*batch, 4)
    found = group_accuracy(*batch, num_groups=4)
    assert found.accuracy.tolist() == pytest.approx(want)
    assert found.images.tolist() == images
    metric = WorstGroupAccuracy(groups=NAMES)
    for start, stop in pairwise(cuts):
        metric.update(*(part[start:stop] for part in batch))
    assert float(metric.compute()) == pytest.approx(min(want))
    assert metric.accuracies == pytest.approx(dict(zip(NAMES, want, strict=True)))
    assert metric.images == dict(zip(NAMES, images, strict=True))
    assert metric.worst_group == NAMES[want.index(min(want))]
    assert metric.table[1] == {"group": NAMES[1], "accuracy": want[1], "images": images[1]}
    assert NAMES[2] in format_table(metric.table)


def test_a_group_without_images_is_named_and_left_out():
    logits, labels, groups = sample()
    groups = torch.where(groups == 2, 3, groups)
    metric = WorstGroupAccuracy(groups=NAMES)
    metric.update(logits, labels, groups)
    text = r"^WorstGroupAccuracy\.compute: there are no images of 'waterbird on land'\. Their acc"
    with pytest.warns(ExplainGuideWarning, match=text) as caught:
        value = metric.compute()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    want, _ = by_a_loop(logits, labels, groups, 4)
    assert float(value) == pytest.approx(min(want[0], want[1], want[3]))
    assert math.isnan(metric.accuracies["waterbird on land"])
    assert metric.images["waterbird on land"] == 0
    assert group_accuracy(logits, labels, groups, num_groups=4).accuracy[2].isnan()
    # The first batches of `forward` have few groups: that is no news.
    assert 0 <= metric(logits[:1], labels[:1], groups[:1]) <= 1


def test_without_images_there_is_no_worst_group():
    metric = WorstGroupAccuracy(groups=3)
    metric.update(torch.rand(0, 2), torch.zeros(0).long(), torch.zeros(0).long())
    assert metric.compute().isnan()
    assert metric.worst_group is None
    assert list(metric.images) == ["0", "1", "2"]


def test_of_one_logit_labels_may_be_of_any_type():
    logits, labels, groups = sample(classes=1)
    for given in (labels, labels.float(), labels.bool(), labels[:, None], labels[:, None].double()):
        found = group_accuracy(logits, given, groups, num_groups=4)
        assert torch.equal(found.accuracy, group_accuracy(logits, labels, groups, num_groups=4)[0])
    zero = group_accuracy(torch.zeros(1, 1), torch.ones(1), torch.zeros(1).long(), num_groups=1)
    assert zero.accuracy == 1  # a logit of 0 is class 1
    odd = group_accuracy(
        torch.zeros(1, 1), torch.full((1,), 0.5), torch.zeros(1).long(), num_groups=1
    )
    assert odd.accuracy.isnan()


@pytest.mark.parametrize(
    ("labels", "groups", "counts"),
    [([0, 3, -100], [0, 1, 1], "2 labels and 0"), ([0, 1, 2], [4, 0, -1], "0 labels and 2")],
)
def test_labels_and_groups_that_do_not_exist(labels, groups, counts):
    logits, labels, groups = torch.rand(3, 3), torch.tensor(labels), torch.tensor(groups)
    metric = WorstGroupAccuracy(groups=4)
    metric.update(logits, labels, groups)
    text = rf"^WorstGroupAccuracy\.compute: {counts} groups of images are none .* from 0 to 3 are"
    with pytest.raises(DataError, match=text):
        metric.compute()
    metric.reset()
    assert metric(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 3])) == 1
    assert group_accuracy(logits, labels, groups, num_groups=4).accuracy.isnan().all()


def test_nan_logits_count_as_wrong_and_are_told():
    logits = torch.tensor([[math.nan, 1.0], [-math.inf, 1.0]])
    labels, groups = torch.tensor([0, 1]), torch.tensor([0, 1])
    metric = WorstGroupAccuracy(groups=["a", "b"])
    metric.update(logits, labels, groups)
    with pytest.warns(
        ExplainGuideWarning, match=r"compute: 1 of 2 images have NaN among their log"
    ):
        assert metric.compute() == 0
    assert metric.accuracies == {"a": 0.0, "b": 1.0}
    assert group_accuracy(logits, labels, groups, num_groups=2).accuracy.tolist() == [0.0, 1.0]


def test_numbers_belong_to_compute():
    batch = sample()
    metric = WorstGroupAccuracy(groups=4)
    for name in ("accuracies", "images", "worst_group", "table"):
        text = rf"^WorstGroupAccuracy\.{name}: compute\(\) has not run since the last update\. Call"
        with pytest.raises(GuidanceError, match=text):
            getattr(metric, name)
    metric.update(*batch)
    metric.compute()
    table = metric.table
    copy = pickle.loads(pickle.dumps(metric))
    assert copy.table == table
    metric(*batch)
    with pytest.raises(GuidanceError):
        _ = metric.table
    metric.compute()
    assert metric.table == [{**row, "images": 2 * row["images"]} for row in table]
    metric.reset()
    with pytest.raises(GuidanceError):
        _ = metric.table
    metric.set_dtype(torch.float16)  # counts stay whole
    metric.update(*batch)
    assert {state.dtype for state in metric.metric_state.values()} == {torch.int64}
    metric.compute()
    assert metric.table == table


def test_a_collection_keeps_metrics_of_other_groups_apart():
    names = {"two": ["a", "b"], "also two": ["c", "d"], "same": ["a", "b"]}
    collection = MetricCollection({k: WorstGroupAccuracy(groups=v) for k, v in names.items()})
    for _ in range(2):
        collection.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert set(map(float, collection.compute().values())) == {1.0}
    assert collection["also two"].images == {"c": 2, "d": 2}
    assert collection["same"].images == {"a": 2, "b": 2}


def test_dtypes_and_devices():
    logits, labels, groups = sample()
    half = group_accuracy(logits.half(), labels.int(), groups.byte(), num_groups=4)
    assert half.accuracy.dtype == torch.float32
    assert group_accuracy(logits.double(), labels, groups, num_groups=4)[0].dtype == torch.float64
    # A meta tensor has no values, so whatever would need one on the host raises.
    meta = [part.to("meta") for part in (logits, labels, groups)]
    assert group_accuracy(*meta, num_groups=4).accuracy.device.type == "meta"
    metric = WorstGroupAccuracy(groups=4).to("meta")
    metric.update(*meta)
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}


LOGITS, LABELS, GROUPS = sample()
MISTAKES = {
    "multi-hot": (
        (LOGITS, torch.zeros(50, 3), GROUPS),
        r"labels of shape \(50, 3\) are multi-hot\. Judge one class at a time: logits\[:, k:k\+1\]",
    ),
    "float labels": (
        (LOGITS, LABELS.float(), GROUPS),
        r"labels of .* dtype torch.float32 .* labels\.long\(\)\.",
    ),
    "too few labels": ((LOGITS, LABELS[:3], GROUPS), r"labels of shape \(3,\) .* for 50 images"),
    "float groups": ((LOGITS, LABELS, GROUPS / 2), r"groups of shape .* dtype torch.float32"),
    "two groups": ((LOGITS, LABELS, GROUPS[:, None].expand(50, 2)), r"groups of shape \(50, 2\)"),
    "flat logits": (
        (LOGITS[:, 0], LABELS, GROUPS),
        r"logits have shape \(50,\).* logits\[:, None\]",
    ),
    "whole logits": ((LABELS[:, None], LABELS, GROUPS), r"logits have shape .* dtype torch.int64"),
    "a list": ((LOGITS, LABELS, ["a"] * 50), r"groups is a list\. Convert with torch\.as_tensor"),
}


@pytest.mark.parametrize(("batch", "text"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_refused(batch, text):
    with pytest.raises(ShapeError, match=rf"^WorstGroupAccuracy\.update: {text}"):
        WorstGroupAccuracy(groups=4).update(*batch)
    with pytest.raises(ShapeError, match=rf"^group_accuracy: {text}"):
        group_accuracy(*batch, num_groups=4)


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        (0, r"groups is 0\. A whole number from 1 on is allowed"),
        (True, r"groups is True\. A whole number"),
        ("land", r"groups is 'land'\. Use groups=4, or their names"),
        ([], r"groups is \[\]\. Use groups=4"),
        ([1, 2], r"groups is \[1, 2\]\. Use groups=4"),
        (["a", "b", "a"], r"two groups are called 'a'\. Give each a name of its own"),
    ],
)
def test_groups_are_checked_when_built(groups, text):
    with pytest.raises(OptionError, match=rf"^WorstGroupAccuracy: {text}"):
        WorstGroupAccuracy(groups=groups)


def test_the_functions_number_is_checked():
    with pytest.raises(OptionError, match=r"^group_accuracy: num_groups is 0\."):
        group_accuracy(*sample(), num_groups=0)
    assert repr(WorstGroupAccuracy(groups=["a", "b"])) == "WorstGroupAccuracy(groups=['a', 'b'])"
