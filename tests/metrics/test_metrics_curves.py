"""Insertion and deletion equal the slow reference, however images and steps are cut into batches."""

import pickle
from itertools import pairwise

import pytest
import torch
from torchmetrics import MetricCollection

from explainguide.metrics import DeletionCurve, InsertionCurve, deletion_curve, insertion_curve
from tests.metrics.asked import Small, defined, seven, told_elsewhere
from tests.reference import perturbation as slow

pytestmark = told_elsewhere

KINDS = {
    "insertion": (InsertionCurve, insertion_curve),
    "deletion": (DeletionCurve, deletion_curve),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def of_reference(kind, maps, images, target, steps, multilabel=False):
    """The curves of the defined images; what is taken or left is 0."""
    model, curves = Small(), []
    for i in range(len(maps)):
        if not defined()[i]:
            continue

        def probability(image, i=i):
            logits = model(image[None])[0].tolist()
            powers = torch.tensor(logits, dtype=torch.float64)
            found = powers.sigmoid() if multilabel else powers.exp() / powers.exp().sum()
            return float(found[target[i]])

        nothing = torch.zeros_like(images[i])
        ends = (images[i], nothing) if kind == "insertion" else (nothing, images[i])
        curves.append(slow.curve(ends[0], maps[i], ends[1], steps, probability))
    return torch.tensor(curves, dtype=torch.float64)


@every_kind
@pytest.mark.parametrize("steps", [1, 4, 7, 54, 60])
@pytest.mark.parametrize("multilabel", [False, True])
def test_equal_the_reference(kind, steps, multilabel):
    maps, images, target = seven()
    maps[2] = (2 * maps[2]).round()  # ties, in reading order
    options = {"steps": steps, "fill": 0.0, "multilabel": multilabel}
    found = KINDS[kind][1](maps, images, target, Small(), **options)
    expected = of_reference(kind, maps, images, target, steps, multilabel)
    torch.testing.assert_close(found[defined()], expected, rtol=1e-12, atol=1e-12)
    assert found[~defined()].isnan().all()
    assert not found.requires_grad


@every_kind
@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), (0, 0, 7)])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_class_is_the_mean(kind, cuts, chunk):
    maps, images, target = seven()
    metric = KINDS[kind][0](steps=6, fill=0.0, chunk=chunk)
    for start, stop in pairwise(cuts):
        metric.update(*(part[start:stop] for part in (maps, images, target)), Small())
    found = metric.compute()
    assert list(found) == ["shares", "values", "area"]
    expected = of_reference(kind, maps, images, target, 6).mean(0)
    torch.testing.assert_close(found["values"], expected, rtol=1e-12, atol=1e-12)
    assert float(found["area"]) == pytest.approx(slow.area(expected.tolist()), rel=1e-12)
    torch.testing.assert_close(found["shares"], torch.arange(7, dtype=torch.float64) / 6)
    assert metric.undefined == 2


@every_kind
def test_a_chunk_bounds_the_forward_pass(kind):
    maps, images, target = seven()
    model, seen = Small(), []

    def counted(images):
        seen.append(len(images))
        return model(images)

    KINDS[kind][1](maps, images, target, counted, steps=9, chunk=16)
    assert sum(seen) == 70
    assert max(seen) == 16


def test_the_ends_are_the_image_and_the_fill():
    maps, images, target = seven()
    model = Small()
    whole = model(images).softmax(1)[torch.arange(7), target][defined()]
    for fill in ("mean", "blur", 0.0, torch.ones(3), lambda images: -images):
        into = insertion_curve(maps, images, target, model, steps=3, fill=fill)[defined()]
        out = deletion_curve(maps, images, target, model, steps=3, fill=fill)[defined()]
        torch.testing.assert_close(into[:, -1], whole.detach())
        torch.testing.assert_close(out[:, 0], whole.detach())
        torch.testing.assert_close(into[:, 0], out[:, -1])


def test_a_better_map_has_the_better_area():
    """The model sums; the map that is the image brings the largest pixels first."""
    images = torch.rand(4, 1, 6, 6) * 2 - 0.5

    def model(images):
        total = images.sum((1, 2, 3))
        return torch.stack([total, -total], 1)

    target = torch.zeros(4, dtype=torch.long)
    areas = {}
    for kind in (InsertionCurve, DeletionCurve):
        for sign in (1, -1):
            metric = kind(fill=0.0)
            metric.update(sign * images[:, 0], images, target, model)
            areas[kind, sign] = metric.compute()["area"]
    assert areas[InsertionCurve, 1] > areas[InsertionCurve, -1]
    assert areas[DeletionCurve, 1] < areas[DeletionCurve, -1]
    assert InsertionCurve.higher_is_better is True
    assert DeletionCurve.higher_is_better is False


def test_one_logit_tells_two_classes():
    maps, images, _ = seven()
    model = Small(classes=1)
    options = {"steps": 3, "fill": 0.0}
    yes, no = (
        insertion_curve(maps, images, torch.full((7,), label), model, **options)[defined()]
        for label in (1, 0)
    )
    torch.testing.assert_close(yes, 1 - no)
    torch.testing.assert_close(yes[:, -1], model(images)[:, 0].sigmoid()[defined()].detach())


@every_kind
def test_nothing_is_read_from_the_device(kind):
    maps, images, target = (part.to("meta") for part in seven())
    metric = KINDS[kind][0](steps=4, chunk=8).to("meta")
    metric.update(maps, images, target, Small().to("meta"))
    assert metric.metric_state.keys()


@every_kind
def test_noise_forward_and_pickle(kind):
    maps, images, target = seven()

    def build(seed):
        generator = torch.Generator().manual_seed(seed)
        return KINDS[kind][0](steps=4, fill="noise", generator=generator)

    first, same, other = (build(seed)(maps, images, target, Small()) for seed in (0, 0, 1))
    assert torch.equal(first["values"], same["values"])
    assert not torch.equal(first["values"], other["values"])
    metric = build(0)
    metric.update(maps, images, target, Small())
    read = pickle.loads(pickle.dumps(metric)).compute()
    assert torch.equal(read["values"], metric.compute()["values"])
    assert repr(metric) == f"{KINDS[kind][0].__name__}(steps=4, fill='noise')"


def test_two_settings_are_two_metrics_of_a_collection():
    maps, images, target = seven()
    settings = {"blur": InsertionCurve(steps=2), "zero": InsertionCurve(steps=2, fill=0.0)}
    collection = MetricCollection(settings)
    collection.update(maps, images, target, Small())
    collection.update(maps, images, target, Small())
    assert len(collection.compute_groups) == 2
