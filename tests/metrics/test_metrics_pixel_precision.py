"""Pixel average precision is scikit-learn's on the same pixels; where it is not exact, its bound holds."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics import MetricCollection

from explainguide.errors import ExplainGuideWarning, GuidanceError, OptionError, ShapeError
from explainguide.metrics import PixelAveragePrecision, pixel_average_precision
from explainguide.metrics.precision_recall import bin_of, bins, bounded_precision

CUTS = [(0, 11), (0, 4, 11), range(12), (0, 0, 11)]


def expected(maps, masks):
    """Scikit-learn's, of all pixels."""
    return average_precision_score(masks.flatten().numpy(), maps.flatten().double().numpy())


def fill(metric, maps, masks, cuts=(0, 4, 11)):
    for start, stop in pairwise(cuts):
        metric.update(maps[start:stop], masks[start:stop])
    return metric


def many(count=20, size=40, seed=0):
    """Signed maps that know something, every third without a negative value."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, size, size, generator=generator) > 0.7
    maps = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    maps = (maps + 0.7 * masks) * torch.rand(count, 1, 1, generator=generator)
    maps[::3] = maps[::3].relu()
    return maps, masks


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("scale", [1.0, 1e-9, -1e6])
def test_it_is_that_of_scikit_learn(images, cuts, scale):
    maps, masks, _ = images
    maps = maps * scale
    maps[0] = maps[0].round()  # ties within a map and between maps
    metric = fill(PixelAveragePrecision(), maps, masks, cuts)
    assert float(metric.compute()) == pytest.approx(expected(maps, masks), rel=1e-12)
    assert float(pixel_average_precision(maps, masks)) == pytest.approx(
        expected(maps, masks), rel=1e-12
    )
    assert metric.error == 0
    assert metric.bounds == (float(metric.compute()),) * 2
    assert metric.undefined_kinds == {"not_finite": 0}  # constant and negative maps are ranked too


@pytest.mark.parametrize("kept", [0, 100, 31999])
@pytest.mark.parametrize("bits", [10, 14, 18, 24])
def test_the_bound_of_the_error_holds(kept, bits):
    maps, masks = many()
    exact = expected(maps, masks)
    metric = PixelAveragePrecision(exact_pixels=kept, bits=bits)
    fill(metric, maps, masks, (0, 1, 2, 13, 20))
    value = float(metric.compute())
    lowest, highest = metric.bounds
    assert lowest <= exact <= highest
    assert lowest <= value <= highest
    assert 0 < abs(value - exact) <= metric.error
    assert metric.error == max(value - lowest, highest - value)
    assert metric.error < 128 * 2.0**-bits  # halved with each bit


def test_it_is_exact_up_to_the_last_pixel_that_is_kept():
    maps, masks = many()
    exact = expected(maps, masks)
    metric = fill(PixelAveragePrecision(exact_pixels=maps.numel()), maps, masks, range(21))
    assert float(metric.compute()) == pytest.approx(exact, rel=1e-12)
    assert metric.error == 0
    metric.update(maps[:1, :1, :1], masks[:1, :1, :1])
    metric.compute()
    assert metric.error > 0
    metric.update(maps[:0], masks[:0])
    metric.reset()
    assert fill(metric, maps, masks, (0, 20)).compute() == pytest.approx(exact, rel=1e-12)
    assert metric.error == 0


@pytest.mark.parametrize("first", ["inside", "outside"])
def test_the_bounds_are_reached(first):
    """All pixels lie in one bin: in both orders the exact value is what the bounds say."""
    scores = torch.linspace(1.5, 1.5001, 12, dtype=torch.float64)
    falling = torch.tensor([True] * 5 + [False] * 7)
    inside = falling.flip(0) if first == "inside" else falling
    metric = PixelAveragePrecision(exact_pixels=0, bits=10)
    metric.update(scores[None, None], inside[None, None])
    metric.compute()
    exact = expected(scores, inside)
    reached = metric.bounds[1 if first == "inside" else 0]
    assert reached == pytest.approx(exact, rel=1e-12)


def test_equal_scores_of_a_bin_reach_the_upper_bound_above_others():
    """One pixel above, then two that are equal and right: ties raise the precision of the first."""
    scores = torch.tensor([2.0, 1.0, 1.0, 0.999])
    inside = torch.tensor([False, True, True, False])
    found = bounded_precision(*counts_of(scores, inside, 10), equal=0)
    assert found.highest == pytest.approx(2 / 3)
    assert found.highest == pytest.approx(expected(scores, inside))


def counts_of(scores, inside, bits):
    place = bin_of(scores, bits)
    width = bins(bits)
    return [torch.bincount(place[inside == yes], minlength=width) for yes in (False, True)]


@pytest.mark.parametrize("bits", [10, 18, 24])
def test_bins_keep_the_order_and_zero_is_alone(bits):
    generator = torch.Generator().manual_seed(2)
    special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e-45,
        -1e-45,
        1e-38,
        -1e-38,
        3.4e38,
        -3.4e38,
        math.inf,
        -math.inf,
    ]
    scores = torch.randn(5000, generator=generator)
    scores = torch.cat([scores * 1e-30, scores, (scores * 9).exp(), torch.tensor(special)])
    place = bin_of(scores, bits)
    in_order = place[scores.argsort()]
    assert (in_order.diff() >= 0).all()
    assert in_order[0] >= 0
    assert in_order[-1] < bins(bits)
    assert torch.equal(place == 2 ** (bits - 1), scores == 0)
    # In proportion to the score: a bin is never wider than 2 to the (9 - bits).
    normal = scores[(scores.abs() > 1e-37) & scores.isfinite()]
    _, at = bin_of(normal, bits).unique(return_inverse=True)
    low = torch.full((int(at.max()) + 1,), math.inf).scatter_reduce(0, at, normal, "amin")
    high = torch.full((int(at.max()) + 1,), -math.inf).scatter_reduce(0, at, normal, "amax")
    assert ((high - low) / torch.minimum(high.abs(), low.abs()) <= 2.0 ** (9 - bits)).all()


def test_maps_of_zeros_have_no_error():
    """Most pixels of many maps are zero: that they are equal is known."""
    maps = torch.zeros(2, 3, 3)
    maps[:, 0, 0] = 1.0
    masks = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[:, 0, 0] = True
    metric = PixelAveragePrecision(exact_pixels=0)
    metric.update(maps, masks)
    assert float(metric.compute()) == pytest.approx(expected(maps, masks))
    assert metric.error == pytest.approx(0, abs=1e-12)


def test_forward_gives_the_batch_and_keeps_all():
    maps, masks = many(6)
    for kept in (maps.numel(), 3 * 1600):
        metric = PixelAveragePrecision(exact_pixels=kept)
        for i in range(6):
            value = metric(maps[i : i + 1], masks[i : i + 1])
            assert float(value) == pytest.approx(expected(maps[i], masks[i]), rel=1e-12)
            with pytest.raises(
                GuidanceError, match=r"^PixelAveragePrecision\.error: compute\(\) has"
            ):
                _ = metric.error
        value = float(metric.compute())
        exact = kept == maps.numel()
        assert value == pytest.approx(expected(maps, masks), rel=1e-12 if exact else 1e-3)
        assert (metric.error == 0) == exact
        assert metric.undefined == 0


def test_clone_pickle_and_a_state_dict():
    maps, masks = many(6)
    metric = PixelAveragePrecision()
    metric.persistent(True)
    fill(metric, maps, masks, (0, 3))
    loaded = PixelAveragePrecision()
    loaded.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric)), loaded):
        fill(copy, maps, masks, (3, 6))
        assert float(copy.compute()) == pytest.approx(expected(maps, masks), rel=1e-12)
        assert copy.error == 0
    # A full one that takes the place of an empty one knows that it does not have all pixels.
    small = PixelAveragePrecision(exact_pixels=5000)
    small.persistent(True)
    fill(small, maps, masks, (0, 3))
    state = {k: v.clone() for k, v in small.state_dict().items()}
    fill(small, maps, masks, (3, 6))
    small.load_state_dict(state)
    fill(small, maps, masks, (3, 4))
    found = float(small.compute())
    assert found == pytest.approx(expected(maps[:4], masks[:4]), rel=1e-3)
    assert abs(found - expected(maps[:4], masks[:4])) <= small.error


def test_a_collection_takes_two_of_a_kind_for_one_and_is_right():
    """Equal metrics share their states; those of other options do not."""
    maps, masks = many(6)
    unit = maps.abs() / maps.abs().max()
    collection = MetricCollection(
        {
            "a": PixelAveragePrecision(exact_pixels=5000),
            "b": PixelAveragePrecision(exact_pixels=5000),
            "all": PixelAveragePrecision(),
            "comet": PixelAveragePrecision(definition="comet"),
            "choe": PixelAveragePrecision(definition="choe"),
            "minmax": PixelAveragePrecision(normalize="minmax"),
        }
    )
    for start in range(0, 4, 2):
        collection.update(unit[start : start + 2], masks[start : start + 2])
    collection(unit[4:], masks[4:])
    values = {name: float(value) for name, value in collection.compute().items()}
    exact = expected(unit, masks)
    assert values["all"] == pytest.approx(exact, rel=1e-12)
    assert values["a"] == values["b"] == pytest.approx(exact, rel=1e-3)
    assert collection["b"].error == collection["a"].error > 0
    assert len(set(values.values())) == 5


@pytest.mark.parametrize("kept", [0, 2**20])
def test_broken_maps_are_left_out_and_told(kept):
    maps, masks = many(6)
    broken, weak = maps.clone(), masks.double()
    broken[1, 0, 0], broken[3, 1, 1], weak[4, 0, 0] = math.nan, -math.inf, math.nan
    metric = fill(PixelAveragePrecision(exact_pixels=kept), broken, weak, (0, 2, 6))
    text = (
        r"^PixelAveragePrecision\.compute: of 6 images, 3 have a map or mask that is not finite\."
    )
    with pytest.warns(ExplainGuideWarning, match=text) as caught:
        value = metric.compute()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    sound = [0, 2, 5]
    assert float(value) == pytest.approx(
        expected(maps[sound], masks[sound]), rel=1e-12 if kept else 1e-3
    )
    assert metric.undefined_kinds == {"not_finite": 3}
    assert pixel_average_precision(broken, weak).isnan()
    assert PixelAveragePrecision()(broken[:2], weak[:2]) > 0  # of a batch, without a warning


def test_each_map_can_be_brought_to_0_and_1():
    maps, masks = many(5)
    maps[2] = -3.0
    unit = [(m - m.min()) / (m.max() - m.min()) for i, m in enumerate(maps) if i != 2]
    rest = [0, 1, 3, 4]
    exact = expected(torch.stack(unit), masks[rest])
    metric = fill(PixelAveragePrecision(normalize="minmax"), maps, masks, (0, 5))
    assert float(metric.compute()) == pytest.approx(exact, rel=1e-12)
    assert metric.undefined_kinds == {"not_finite": 0, "constant": 1}
    found = pixel_average_precision(maps, masks, normalize="minmax")
    assert float(found) == pytest.approx(exact, rel=1e-12)
    assert pixel_average_precision(maps * math.inf, masks, normalize="minmax").isnan()


def by_numpy(scores, inside, definition, steps):
    """The programs' sums over NumPy's histograms."""
    low = 1 if definition == "comet" else 0
    edges = np.arange(low, steps + 1) / steps
    if definition == "choe":
        edges = np.append(edges, [2.0, 3.0])
    hits, others = (
        np.histogram(scores[inside == yes], bins=edges)[0][::-1].cumsum() for yes in (True, False)
    )
    recall = hits / hits[-1]
    precision = hits / np.maximum(hits + others, 1)
    if definition == "comet":
        recall, precision = np.append(1 / 10001, recall), np.append(1.0, precision)
    return (precision[1:] * np.diff(recall)).sum()


@pytest.mark.parametrize(
    ("definition", "steps"), [("comet", None), ("comet", 40), ("choe", None), ("choe", 7)]
)
def test_the_programs_sums(definition, steps):
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(6, 30, 30, generator=generator, dtype=torch.float64)
    masks = torch.rand(6, 30, 30, generator=generator) < maps * 0.5
    maps[0], maps[1, :10] = maps[0].round(decimals=2), 1.0  # on edges, and at the end
    number = steps or {"comet": 20, "choe": 1000}[definition]
    want = by_numpy(maps.flatten().numpy(), masks.flatten().numpy(), definition, number)
    metric = fill(PixelAveragePrecision(definition=definition, steps=steps), maps, masks, (0, 2, 6))
    assert float(metric.compute()) == pytest.approx(want, rel=1e-12)
    assert metric.error == 0
    found = pixel_average_precision(maps, masks, definition=definition, steps=steps)
    assert float(found) == pytest.approx(want, rel=1e-12)
    # Maps that leave [0, 1] are no maps of theirs.
    out = torch.cat([maps, maps[:1] + 0.1, maps[:1] - 0.1])
    fill(metric, out, masks[[*range(6), 0, 1]], (6, 8))
    assert float(metric.compute()) == pytest.approx(want, rel=1e-12)
    assert metric.undefined_kinds == {"not_finite": 0, "outside_0_1": 2}
    assert pixel_average_precision(out, masks[[*range(6), 0, 1]], definition=definition).isnan()


def test_nothing_in_a_mask_gives_nan():
    maps, nowhere = torch.rand(2, 3, 3), torch.zeros(2, 3, 3)
    for options in ({}, {"exact_pixels": 0}, {"definition": "choe"}, {"definition": "comet"}):
        metric = PixelAveragePrecision(**options)
        metric.update(maps, nowhere)
        assert metric.compute().isnan()
        assert math.isnan(metric.error) or "exact_pixels" not in options
        metric.reset()
        metric.update(maps[:0], nowhere[:0])
        assert metric.compute().isnan()
    assert pixel_average_precision(maps, nowhere).isnan()
    assert pixel_average_precision(maps[:0], nowhere[:0]).isnan()
    assert pixel_average_precision(maps, nowhere, definition="comet").isnan()


def test_shapes_dtypes_and_devices():
    maps, masks = many(3)
    weak = masks * 0.6
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        kept = PixelAveragePrecision()
        kept.update(maps.to(dtype)[:, None], weak.half()[:, None])
        assert kept.compute().dtype == torch.float32
        assert float(kept.compute()) == pytest.approx(expected(maps.to(dtype), masks), rel=1e-6)
        found = pixel_average_precision(maps.to(dtype), weak)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(expected(maps.to(dtype), masks), rel=1e-6)
    metric = PixelAveragePrecision()
    metric.set_dtype(torch.float32)  # for devices without float64
    metric.update(maps.float(), masks)
    assert float(metric.compute()) == pytest.approx(expected(maps.float(), masks), rel=1e-6)
    dtypes = {state.dtype for state in metric.metric_state.values()}
    assert dtypes == {torch.float32, torch.int64, torch.uint8}  # no count in a float


@pytest.mark.parametrize("options", [{}, {"normalize": "minmax"}, {"definition": "comet"}])
def test_nothing_is_read_back_before_compute(options):
    # A meta tensor has no values, so whatever would need one on the host raises.
    maps, masks = torch.rand(2, 5, 5, device="meta"), torch.ones(2, 5, 5, device="meta")
    assert pixel_average_precision(maps, masks, **options).device.type == "meta"
    metric = PixelAveragePrecision(**options).to("meta")
    metric.update(maps, masks)
    metric.update(maps, masks)
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}


def test_memory_does_not_grow():
    metric = PixelAveragePrecision(exact_pixels=1000)
    maps, masks = many(2, requires := 30)
    sizes = {name: state.shape for name, state in metric.metric_state.items()}
    for _ in range(5):
        metric.update(maps.clone().requires_grad_(), masks)
    assert {name: state.shape for name, state in metric.metric_state.items()} == sizes
    assert not any(state.requires_grad for state in metric.metric_state.values())
    assert maps.shape[1] == requires


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"definition": "comets"}, r"unknown definition 'comets'\. Did you mean 'comet'"),
        ({"normalize": "max"}, r"unknown normalize 'max'\..*'minmax', or None, are allowed"),
        (
            {"steps": 20},
            r"steps is 20 with definition='standard', where every .* Use definition='choe'",
        ),
        ({"steps": 1, "definition": "choe"}, r"steps is 1\. A whole number from 2"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(OptionError, match=rf"^PixelAveragePrecision: {text}"):
        PixelAveragePrecision(**options)
    maps, masks = many(1)
    with pytest.raises(OptionError, match=rf"^pixel_average_precision: {text}"):
        pixel_average_precision(maps, masks, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exact_pixels": -1}, r"exact_pixels is -1\. A whole number from 0 on"),
        ({"bits": 9}, r"bits is 9\. A whole number from 10 on"),
        ({"bits": 25}, r"bits is 25\. A whole number from 10"),
    ],
)
def test_sizes_are_checked(options, text):
    with pytest.raises(OptionError, match=rf"^PixelAveragePrecision: {text}"):
        PixelAveragePrecision(**options)


def test_mistakes_name_the_call():
    maps, masks = many(1)
    with pytest.raises(
        ShapeError, match=r"^PixelAveragePrecision\.update: mask has dtype torch.int64"
    ):
        PixelAveragePrecision().update(maps, masks.long())
    with pytest.raises(ShapeError, match=r"^pixel_average_precision: attribution has shape"):
        pixel_average_precision(maps, masks[:, :3])
    with pytest.raises(ValueError, match="Unexpected keyword"):
        PixelAveragePrecision(threshold=0.5)
    assert repr(PixelAveragePrecision(definition="comet")) == (
        "PixelAveragePrecision(definition='comet', normalize=None, steps=20)"
    )
