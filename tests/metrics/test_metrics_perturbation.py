"""Perturbation equals the slow reference; undefined maps are counted and never averaged in."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torchmetrics import MetricCollection
from torchvision.transforms.v2.functional import gaussian_blur

from explainguide.errors import ExplainGuideWarning, GuidanceError
from explainguide.metrics import PixelPerturbation, perturb, pixel_perturbation
from tests.metrics.asked import Small, defined, seven, told_elsewhere
from tests.reference import perturbation as slow

pytestmark = told_elsewhere

FRACTIONS = (0.05, 0.1, 0.2)
MODES = ("remove", "keep")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.37, 0.5, 0.99])
@pytest.mark.parametrize("fill", ["mean", "colour"])
def test_images_equal_the_reference(mode, fraction, fill):
    maps, images, _ = seven()
    maps[2] = (2 * maps[2]).round()  # ties
    colour = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    options = {"fraction": fraction, "mode": mode}
    found = perturb(images, maps, fill=fill if fill == "mean" else colour, **options)
    for i in (0, 1, 2, 3, 4, 6):
        used = images[i].mean((1, 2)) if fill == "mean" else colour
        expected = slow.perturbed(images[i], maps[i], fraction, mode, used)
        torch.testing.assert_close(found[i], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_torchs_quantile(fraction, dtype):
    maps = torch.randn(20, 7, 11, dtype=dtype)  # 76 steps: the ranks are between two values
    kept = perturb(torch.ones(20, 1, 7, 11), maps, fraction=fraction, fill=0.0)
    threshold = torch.quantile(maps.flatten(1), 1 - fraction, dim=1)
    assert torch.equal(kept[:, 0] == 1, maps < threshold[:, None, None])


@pytest.mark.parametrize("fraction", [i / 100 for i in range(1, 100)])
def test_a_rank_that_is_whole_is_a_pixel(fraction):
    """Of 101 pixels the highest p of 100 steps, and the one at the threshold."""
    maps = torch.randperm(101).reshape(1, 1, 101) * 0.1
    kept = perturb(torch.ones(1, 1, 1, 101), maps, fraction=fraction, mode="keep", fill=0.0)
    assert int(kept.sum()) == round(100 * fraction) + 1


@pytest.mark.slow
def test_images_may_be_large():
    """The quantile of older versions of torch takes no more than 16 million numbers."""
    maps = torch.rand(1, 4100, 4100)
    kept = perturb(torch.ones(1, 1, 4100, 4100), maps, fraction=0.1, mode="keep", fill=0.0)
    assert float(kept.mean()) == pytest.approx(0.1, abs=1e-6)


def test_what_stands_in_place_of_the_pixels():
    maps, images, _ = seven()
    maps, images = maps[:3], images[:3]
    images = images + torch.tensor([0.0, 10.0, -5.0])[None, :, None, None]

    def change(**options):
        return perturb(images, maps, fraction=0.3, **options)

    gone = change(fill=1e9) == 1e9
    assert gone.any()
    torch.testing.assert_close(change(fill=images[0].mean((1, 2)))[0], change(fill="mean")[0])
    # The border reflects, so the window is no wider than the image allows: 5 pixels to each side.
    blurred = gaussian_blur(images, [11, 11], [5.0, 5.0])
    torch.testing.assert_close(change(fill="blur"), torch.where(gone, blurred, images))
    torch.testing.assert_close(
        change(fill=lambda images: -images), torch.where(gone, -images, images)
    )


def test_blur_of_small_images_is_narrower():
    images = torch.rand(2, 3, 3, 8)
    changed = perturb(images, torch.rand(2, 3, 8), fraction=0.5, fill="blur")
    blurred = gaussian_blur(images, [5, 5], [5.0, 5.0])
    assert ((changed == images) | (changed == blurred)).all()
    line = torch.rand(1, 3, 1, 8)
    assert torch.equal(perturb(line, torch.rand(1, 1, 8), fraction=0.5, fill="blur"), line)


def test_noise_is_that_of_the_generator_and_of_the_image():
    images = torch.randn(2, 3, 64, 64) * torch.tensor([1.0, 4.0, 0.1])[None, :, None, None] + 7
    maps = torch.rand(2, 64, 64)

    def change(seed):
        generator = torch.Generator().manual_seed(seed)
        return perturb(images, maps, fraction=0.9, fill="noise", generator=generator)

    first = change(0)
    assert torch.equal(first, change(0))
    assert not torch.equal(first, change(1))
    torch.testing.assert_close(first.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.3)
    torch.testing.assert_close(first.std((2, 3)), images.std((2, 3)), rtol=0.1, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multilabel", [False, True])
def test_the_function_is_the_model_on_these_images(mode, multilabel):
    maps, images, target = seven()
    model = Small()
    options = {"mode": mode, "fill": 0.0}
    found = pixel_perturbation(
        maps, images, target, model, fractions=FRACTIONS, multilabel=multilabel, **options
    )
    for column, fraction in enumerate(FRACTIONS):
        logits = model(perturb(images, maps, fraction=fraction, **options))
        said = logits.argmax(1) == target
        if multilabel:
            said = logits[torch.arange(7), target] >= 0
        expected = torch.where(defined(), said.double(), torch.nan)
        torch.testing.assert_close(found[:, column], expected, equal_nan=True)
    assert not found.requires_grad


@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), range(8), (0, 0, 7)])
@pytest.mark.parametrize("mode", MODES)
def test_the_class_is_the_mean_of_the_function(mode, cuts):
    maps, images, target = seven()
    model = Small()
    metric = PixelPerturbation(mode=mode)
    for start, stop in pairwise(cuts):
        metric.update(*(part[start:stop] for part in (maps, images, target)), model)
    found = metric.compute()
    expected = pixel_perturbation(maps, images, target, model, mode=mode).nanmean(0)
    assert list(found) == [f"{mode}_5", f"{mode}_10", f"{mode}_20"]
    torch.testing.assert_close(torch.stack(list(found.values())), expected, rtol=1e-13, atol=0)
    assert metric.undefined == 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_spoils_nothing(value):
    maps, images, target = seven()
    kept = pixel_perturbation(maps, images, target, Small())
    maps[0, 0, 0] = value
    found = pixel_perturbation(maps, images, target, Small())
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], kept[1:], equal_nan=True)


def test_equal_values_go_together_and_it_is_said():
    """Nine tenths of the map are zero, so that no 20% are the highest: all of it goes."""
    maps = torch.zeros(1, 10, 10)
    maps[0, 0] = torch.rand(10) + 0.1
    images, target = torch.rand(1, 3, 10, 10), torch.tensor([0])
    metric = PixelPerturbation(fractions=(0.05, 0.2))
    metric.update(maps, images, target, lambda images: torch.zeros(len(images), 3))
    told = r"^PixelPerturbation: the highest 0\.2 of the pixels were 1 of them on the mean over the maps"
    with pytest.warns(ExplainGuideWarning, match=told):
        metric.compute()
    assert metric.shares == pytest.approx({"remove_5": 0.05, "remove_20": 1.0})


def test_shares_belong_to_compute():
    maps, images, target = seven()
    metric = PixelPerturbation(mode="keep")
    metric.update(maps, images, target, Small())
    with pytest.raises(GuidanceError, match=r"^PixelPerturbation\.shares: compute\(\) has not run"):
        _ = metric.shares
    metric.compute()
    # Of 54 pixels 3, 6 and 11.
    assert metric.shares == pytest.approx({"keep_5": 3 / 54, "keep_10": 6 / 54, "keep_20": 11 / 54})


def test_the_direction_is_that_of_the_mode():
    assert PixelPerturbation.higher_is_better is False
    assert PixelPerturbation().higher_is_better is False
    kept = PixelPerturbation(mode="keep")
    assert kept.higher_is_better is True
    assert pickle.loads(pickle.dumps(kept)).higher_is_better is True
    # An image of two halves; the class is the sign of the left one, which the map names.
    maps, images = torch.zeros(1, 1, 4), torch.tensor([[[[3.0, 3.0, -1.0, -1.0]]]])
    maps[0, 0, :2] = torch.tensor([2.0, 1.0])

    def model(images):
        total = images[:, 0, 0].sum(1)
        return torch.stack([total, -total], 1)

    for mode, value in (("remove", 0.0), ("keep", 1.0)):
        metric = PixelPerturbation(mode=mode, fractions=(0.34,), fill=0.0)
        metric.update(maps, images, torch.tensor([0]), model)
        assert metric.compute() == {f"{mode}_34": value}


def test_one_logit_tells_two_classes():
    maps, images, _ = seven()
    model = Small(classes=1)
    logits = model(perturb(images, maps, fraction=0.2))[:, 0]
    for label in (0, 1):
        target = torch.full((7,), label)
        found = pixel_perturbation(maps, images, target, model, fractions=(0.2,))[:, 0]
        expected = torch.where(defined(), ((logits >= 0) == bool(label)).double(), torch.nan)
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_half_precision_and_one_channel():
    maps, images, target = seven()
    model = Small().float()
    halves = maps.half()[:, None], images.half(), target
    found = pixel_perturbation(*halves, lambda images: model(images.float()).half())
    assert found.dtype == torch.float32
    assert perturb(images.half(), maps, fraction=0.1, fill="blur").dtype == torch.float16


def test_nothing_is_read_from_the_device():
    """A meta tensor has no values, so whatever would need one on the host raises."""
    maps, images, target = (part.to("meta") for part in seven())
    model = Small().to("meta")
    for fill in ("mean", "blur", "noise", 0.0):
        metric = PixelPerturbation(fill=fill).to("meta")
        metric.update(maps, images, target, model)
        assert metric.metric_state.keys()


def test_memory_does_not_grow():
    maps, images, target = seven()
    metric = PixelPerturbation()
    sizes = []
    for _ in range(3):
        metric.update(maps, images, target, Small())
        states = metric.metric_state.values()
        sizes.append([(type(s), s.numel(), s.requires_grad) for s in states])
    assert sizes[0] == sizes[1] == sizes[2]


def test_forward_copies_pickles_and_collections():
    maps, images, target = seven()
    model = Small()
    metric = PixelPerturbation(fill="noise", generator=torch.Generator().manual_seed(0))
    batch = metric(maps, images, target, model)
    assert list(batch) == ["remove_5", "remove_10", "remove_20"]
    with pytest.raises(GuidanceError, match=r"^PixelPerturbation\.undefined: compute\(\) has not"):
        _ = metric.undefined
    value = metric.compute()
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert other.compute() == value
    metric.reset()
    assert all(v.isnan() for v in compute_of_nothing(metric).values())
    # Two settings are two metrics, though both begin with the same sums.
    collection = MetricCollection(
        {"remove": PixelPerturbation(), "keep": PixelPerturbation(mode="keep")}
    )
    for _ in range(2):
        collection.update(maps, images, target, model)
    found = collection.compute()
    for mode in MODES:
        alone = PixelPerturbation(mode=mode)
        alone.update(maps, images, target, model)
        for name, number in alone.compute().items():
            key = name if name in found else f"{mode}_{name}"
            torch.testing.assert_close(found[key], number)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def compute_of_nothing(metric):
    with pytest.warns(UserWarning, match="``compute`` method"):
        return metric.compute()


def test_repr_names_the_options():
    shown = repr(
        PixelPerturbation(mode="keep", fill=torch.tensor([0.0, 1.0, 2.0]), multilabel=True)
    )
    assert shown == (
        "PixelPerturbation(fractions=(0.05, 0.1, 0.2), mode='keep', fill=[0.0, 1.0, 2.0], multilabel=True)"
    )
