"""Losses of boxes at the maps' own resolution: the values and the gradients of full resolution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from explainguide import Annotations, ExplanationGuidance
from explainguide.annotations import rasterize_boxes
from explainguide.annotations.boxes import box_masks, spans
from explainguide.annotations.cells import ChosenBoxes, between_edges, have_pixels
from explainguide.annotations.forms import FORMS, form
from explainguide.attr import ATTRIBUTIONS, AttentionRelevance, GradCam
from explainguide.errors import OptionError, ShapeError
from explainguide.guidance.comparison import Chosen, compare
from explainguide.losses import (
    LOSSES,
    energy_loss,
    gradmask_loss,
    l1_loss,
    localization_loss,
    reff_loss,
    rrr_loss,
)
from explainguide.losses.sums import Sums, upsampling
from explainguide.losses.table import resolve_loss
from tests.networks import FOR_ANY_NETWORK, TARGETS, SmallCnn, batch
from tests.training.counted import Counted, needs_newer_torch
from tests.vits import build, size_of

D = torch.float64
CLASSES = 3
SIZES = [((7, 7), (224, 224)), ((5, 3), (33, 40)), ((1, 1), (31, 30)), ((4, 6), (57, 61))]
# What is computed at the maps' own resolution. The flag: for maps that are not negative only.
EXACT: dict[str, tuple[Any, bool]] = {
    "energy": ("energy", True),
    "energy, absolute floor": (partial(energy_loss, floor="absolute", eps=1e-3), True),
    "energy, large floor": (partial(energy_loss, eps=1.5), True),
    "l1": ("l1", False),
    "l1, paper": (partial(l1_loss, normalize="paper"), False),
    "rrr": ("rrr", False),
    "rrr, paper": (partial(rrr_loss, normalize="paper"), False),
    "rrr, not normalised": (partial(rrr_loss, normalize=False), False),
    "gradmask": ("gradmask", False),
    "reff": (partial(reff_loss, variant="outside"), False),
}


def random_boxes(count: int, objects: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Of any size, overlapping, some partly outside the image."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([size[1], size[0]])
    low = (torch.rand(count, objects, 2, generator=generator) * 1.1 - 0.2) * scale
    extent = torch.rand(count, objects, 2, generator=generator) * 0.6 * scale + 0.3
    return torch.cat([low, low + extent], -1)


def region(
    size: tuple[int, int], *, objects: int = 3, count: int = 3, slots: int = 2, seed: int = 0
) -> Chosen:
    """Of drawn classes; one image has boxes of one class only, one no box at all."""
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(0, CLASSES, (count, objects), generator=generator)
    labels[-1] = -1
    boxes = random_boxes(count, objects, size, seed)
    boxes[-1] = 0
    classes = torch.randint(-1, CLASSES, (slots, count), generator=generator)
    return Chosen(Annotations(boxes, labels), classes, size)


def with_gradient(
    loss: Any, maps: Tensor, chosen: Chosen, *, coarse: bool, non_negative: bool
) -> tuple[Tensor, Tensor]:
    """One value a map, and the gradient of their weighted sum; a map is a relu's where it says so."""
    staged = resolve_loss(loss)
    if not coarse:
        staged = staged._replace(coarse=None)
    leaf = maps.clone().requires_grad_()
    given = torch.relu(leaf) if non_negative else leaf
    losses = compare(staged, "a loss", given, chosen, non_negative=non_negative)
    weights = 1 + torch.arange(losses.numel(), dtype=losses.dtype).view_as(losses)
    return losses.detach(), torch.autograd.grad((losses * weights).sum(), leaf)[0]


class Tensors(TorchDispatchMode):
    """Within this context the largest tensor that an operation makes is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        made = [t for t in (found if isinstance(found, tuple) else (found,)) if torch.is_tensor(t)]
        self.largest = max([self.largest, *(t.numel() for t in made)])
        return found


def is_coarse(
    loss: Any, *, non_negative: bool = True, chosen: Chosen | None = None, places: int = 7
) -> bool:
    """Whether no tensor is as large as the masks."""
    chosen = chosen or region((96, 96), objects=2)
    slots, count = chosen.classes.shape
    maps = torch.rand(slots, count, places, places)
    with Tensors() as tensors:
        compare(resolve_loss(loss), "a loss", maps, chosen, non_negative=non_negative)
    assert tensors.operations > 5
    return tensors.largest < slots * count * chosen.size[0] * chosen.size[1]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("places", "size"), SIZES)
@pytest.mark.parametrize("objects", [1, 2, 5])
def test_values_and_gradients_are_those_of_full_resolution(
    name: str, places: tuple[int, int], size: tuple[int, int], objects: int
) -> None:
    loss, non_negative = EXACT[name]
    chosen = region(size, objects=objects)
    maps = torch.randn(2, 3, *places, dtype=D, generator=torch.Generator().manual_seed(2))
    ways = [
        with_gradient(loss, maps, chosen, coarse=coarse, non_negative=non_negative)
        for coarse in (True, False)
    ]
    (values, gradient), (expected, of_pixels) = ways
    scale = expected.abs().max()
    torch.testing.assert_close(values / scale, expected / scale, rtol=0, atol=1e-12)
    single = expected.numel() * scale / maps.abs().min()  # divided by itself, its gradient is 0
    scale = single if places == (1, 1) else of_pixels.abs().max()
    torch.testing.assert_close(gradient / scale, of_pixels / scale, rtol=0, atol=1e-12)
    assert is_coarse(loss, non_negative=non_negative)


@pytest.mark.parametrize("name", EXACT)
def test_float32_is_near(name: str) -> None:
    loss, non_negative = EXACT[name]
    maps = torch.randn(2, 3, 7, 7, dtype=D, generator=torch.Generator().manual_seed(2))
    exact, near = (
        with_gradient(
            loss, maps.to(dtype), region((224, 224)), coarse=True, non_negative=non_negative
        )
        for dtype in (D, torch.float32)
    )
    for found, expected in zip(near, exact, strict=True):
        assert found.dtype == torch.float32
        scale = expected.abs().max()
        torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_dead_maps_are_as_at_full_resolution(name: str, value: float) -> None:
    loss, non_negative = EXACT[name]
    maps = torch.full((2, 3, 7, 7), value, dtype=D)
    maps[0, 0] = 1.0 + torch.arange(49, dtype=D).view(7, 7)
    ways = [
        with_gradient(loss, maps, region((96, 96)), coarse=coarse, non_negative=non_negative)
        for coarse in (True, False)
    ]
    for found, expected in zip(*ways, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.isfinite().all()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(name: str, value: float) -> None:
    loss, non_negative = EXACT[name]
    maps = torch.rand(1, 2, 7, 7, dtype=D)
    maps[0, 0, 3, 3] = value
    boxes = Annotations(torch.tensor([[[0.0, 0, 20, 20]]] * 2), torch.zeros(2, 1).long())
    chosen = Chosen(boxes, torch.zeros(1, 2).long(), (96, 96))
    ways = [
        with_gradient(loss, maps, chosen, coarse=coarse, non_negative=non_negative)[0]
        for coarse in (True, False)
    ]
    for found in ways:
        assert found.isfinite().tolist() == [[False, True]]


@pytest.mark.parametrize("loss", ["energy", "rrr", "gradmask"])
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("size", [96, 100])
def test_what_lies_inside_as_a_whole_costs_exactly_nothing(
    loss: str, dtype: torch.dtype, size: int
) -> None:
    """A place that reaches no pixel outside the box counts for 0 there, not for a rounding error."""
    box = torch.tensor([[[0.0, 0, 60, size]]])
    chosen = Chosen(
        Annotations(box, torch.zeros(1, 1).long()), torch.zeros(1, 1).long(), (size, size)
    )
    maps = torch.zeros(1, 1, 7, 7, dtype=dtype)
    maps[..., :3] = torch.rand(7, 3)
    value, gradient = with_gradient(loss, maps, chosen, coarse=True, non_negative=True)
    assert value.item() == 0
    assert gradient[..., :3].abs().max() < 1e-6 if loss == "energy" else not gradient.any()


@pytest.mark.parametrize("loss", ["energy", "l1", "rrr", "gradmask"])
def test_a_box_over_all_of_the_image(loss: str) -> None:
    whole = Annotations(torch.tensor([[[-3.0, 0, 99, 500]]]), torch.zeros(1, 1).long())
    chosen = Chosen(whole, torch.zeros(1, 1).long(), (96, 96))
    maps = torch.rand(1, 1, 7, 7, dtype=D)
    ways = [
        with_gradient(loss, maps, chosen, coarse=coarse, non_negative=True)
        for coarse in (True, False)
    ]
    for found, expected in zip(*ways, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_sums_have_the_gradients_of_finite_differences() -> None:
    chosen = region((40, 36), count=2, slots=1)
    sums = Sums(chosen.cells, (4, 3), chosen.size, False)
    maps = torch.randn(2, 4, 3, dtype=D, requires_grad=True)
    assert gradcheck(sums.squares_outside, maps)


def test_sums_are_those_of_pixels() -> None:
    """By hand: one row of two places, 1 and 3, on four pixels, which are 1, 1.5, 2.5 and 3."""
    low, high = spans(torch.tensor([[[1.0, 0, 2.5, 1]]]), (1, 4))
    sums = Sums(lambda: between_edges(low, high, torch.ones(1, 1), (1, 4)), (1, 2), (1, 4), True)
    maps = torch.tensor([[[1.0, 3.0]]])
    inside, outside = sums.weights(maps)
    assert inside.tolist() == [[[1.0, 1.0]]]
    assert outside.tolist() == [[[1.0, 1.0]]]
    assert sums.squares_outside(maps).tolist() == [10.0]
    assert sums.pixels == 4


def test_sums_over_a_long_side() -> None:
    """Running sums in whole numbers have an end; here one place has all of the pixels."""
    low, high = spans(torch.tensor([[[1.0, 0, 30001, 1]]]), (2, 40000))
    sums = Sums(
        lambda: between_edges(low, high, torch.ones(1, 1), (2, 40000)), (1, 1), (2, 40000), True
    )
    inside, outside = sums.weights(torch.ones(1, 1, 1, dtype=D))
    assert (inside.item(), outside.item()) == (30000, 50000)
    assert sums.squares_outside(torch.full((1, 1, 1), 3.0, dtype=D)).tolist() == [450000]


@pytest.mark.parametrize("places", [1, 2, 3, 7, 14, 28])
@pytest.mark.parametrize("pixels", [1, 2, 7, 33, 224, 299])
def test_the_weights_are_those_of_interpolate(places: int, pixels: int) -> None:
    eye = torch.eye(places, dtype=D)[:, None, None]
    expected = F.interpolate(eye, (1, pixels), mode="bilinear", align_corners=False)[:, 0, 0].T
    found = upsampling(places, pixels, device=torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def paint(cells: Any, size: tuple[int, int]) -> Tensor:
    """The masks that cells make, a cell at a time."""
    masks = torch.zeros(*cells.covered.shape[:-2], *size)
    for *place, row, column in cells.covered.nonzero().tolist():
        image = place[-1]
        top, bottom = cells.edges[0, image, row : row + 2].tolist()
        left, right = cells.edges[1, image, column : column + 2].tolist()
        masks[(*place, slice(top, bottom), slice(left, right))] += 1
    return masks


@pytest.mark.parametrize("objects", [0, 1, 2, 6])
def test_cells_are_the_union_of_boxes(objects: int) -> None:
    size = (19, 23)
    boxes = random_boxes(8, objects, size)
    if objects == 6:
        boxes[0, 0] = boxes[0, 1]
        boxes[1, 0] = torch.tensor([5.0, 6, 5, 6])  # no pixel
        boxes[2, 0] = torch.tensor([9.0, 9, 3, 3])  # inverted
        boxes[3, 0, 0] = torch.nan
        boxes[4, 0] = torch.tensor([-torch.inf, 2, torch.inf, 4])
        boxes[5, :] = torch.tensor([30.0, 0, 40, 4])  # outside
        boxes[6, 1, :2] = boxes[6, 0, 2:]  # side by side
    chosen = (torch.rand(3, 8, objects) > 0.4).float()
    expected = rasterize_boxes(boxes, chosen, size)
    low, high = spans(boxes, size)
    assert torch.equal(paint(between_edges(low, high, chosen, size), size), expected)
    assert torch.equal(have_pixels(low, high, chosen), expected.flatten(2).any(2))


def test_what_is_not_exact_stays_at_full_resolution() -> None:
    assert not is_coarse("energy", non_negative=False)
    for loss in (
        "ppce",
        "relevance",
        partial(l1_loss, normalize=False),
        partial(reff_loss, variant="l1"),
        partial(reff_loss, variant="l2"),
        lambda attribution, mask: energy_loss(attribution, mask),
    ):
        assert not is_coarse(loss)
    chosen = region((96, 96), objects=2)
    annotations = chosen.regions
    masks = box_masks(annotations.boxes, chosen.size)
    assert not is_coarse(
        "l1", chosen=Chosen(replace(annotations, masks=masks), chosen.classes, chosen.size)
    )


def test_values_of_ones_own_are_not_replaced() -> None:
    @functools.wraps(energy_loss)
    def twice(attribution: Tensor, mask: Tensor, **options: Any) -> Tensor:
        return 2 * energy_loss(attribution, mask, **options)

    class Halved(Annotations):
        def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
            return super().region(classes, size) / 2

    chosen = region((96, 96), objects=2)
    halved = Halved(chosen.regions.boxes, chosen.regions.labels)
    assert not is_coarse(twice)
    assert not is_coarse("l1", chosen=Chosen(halved, chosen.classes, chosen.size))


def test_an_option_that_the_coarse_form_does_not_name_is_not_ignored() -> None:
    def coarse(attribution: Tensor, sums: Sums) -> Tensor:
        return (sums.weights(attribution)[0] * attribution).sum((1, 2))

    @localization_loss(coarse=coarse)
    def own_loss(attribution: Tensor, mask: Tensor, *, power: int = 1) -> Tensor:
        return (attribution * mask).sum((1, 2)) ** power

    LOSSES.pop("own")
    assert is_coarse(own_loss)
    assert not is_coarse(partial(own_loss, power=2))
    maps = torch.rand(2, 3, 7, 7, dtype=D)
    ways = [
        with_gradient(own_loss, maps, region((96, 96)), coarse=coarse, non_negative=True)
        for coarse in (True, False)
    ]
    torch.testing.assert_close(*ways, rtol=1e-11, atol=1e-11)


def test_a_coarse_form_returns_one_value_a_map() -> None:
    @localization_loss(coarse=lambda attribution, sums: sums.weights(attribution)[0].mean())
    def reduced_loss(attribution: Tensor, mask: Tensor) -> Tensor:
        return (attribution * mask).sum((1, 2))

    LOSSES.pop("reduced")
    with pytest.raises(
        ShapeError, match=r"the loss 'a loss' returned \(\) for 6 maps\. Do not red"
    ):
        is_coarse(reduced_loss)


@pytest.mark.parametrize(
    "loss", [partial(energy_loss, floor="low"), partial(rrr_loss, normalize="text")]
)
def test_options_are_refused_as_at_full_resolution(loss: Any) -> None:
    ones = torch.ones(1, 4, 4)
    with pytest.raises(OptionError) as expected:
        loss(ones, ones)
    with pytest.raises(OptionError) as found:
        is_coarse(loss)
    assert str(found.value) == str(expected.value)
    assert str(found.value).startswith(f"{loss.func.__name__}: ")


def test_maps_of_the_images_own_size_and_many_boxes_stay_as_they_are() -> None:
    """Where it would not be cheaper."""
    assert not is_coarse("l1", places=96)
    assert not is_coarse("l1", places=64)
    assert not is_coarse("l1", chosen=region((96, 96), objects=40))


def with_masks(annotations: Annotations, size: int) -> Annotations:
    """The same regions, as masks."""
    return replace(annotations, masks=box_masks(annotations.boxes, (size, size)))


def guided(
    model: nn.Module, annotations: Any, images: Tensor, **options: Any
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """`loss_loc`, its gradient, and the guide's maps."""
    generator = torch.Generator().manual_seed(4)
    with ExplanationGuidance(model, generator=generator, **options) as guide:
        model(images)
        value = guide.loss_loc(annotations)
        gradients = torch.autograd.grad(value.sum(), list(model.parameters()), allow_unused=True)
        return value.detach(), [g for g in gradients if g is not None], guide.attributions


GUIDES: dict[str, dict[str, Any]] = {
    "grad-cam, energy": {"attribution": "gradcam"},
    "layer-cam, absolute floor": {
        "attribution": "layercam",
        "loss": partial(energy_loss, floor="absolute"),
    },
    "ixg, energy": {},
    "ixg, l1, all": {"loss": "l1", "target": "all"},
    "ixg, rrr, predicted": {"loss": "rrr", "target": "predicted"},
    "gradient, gradmask": {"attribution": "gradient", "loss": gradmask_loss, "reduction": "none"},
    "intgrad, rrr": {"attribution": "intgrad", "loss": "rrr"},
    "ppce": {"loss": "ppce"},
    "negatives, log p": {"loss": "l1", "negatives": 0.7, "score": "log_prob"},
    "two layers": {"layer": ["stem", "body"], "loss": "reff", "attribution": "gradcam"},
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_of_boxes_is_one_of_their_masks(name: str) -> None:
    options = {"layer": "body", **GUIDES[name]}
    torch.manual_seed(0)
    model = SmallCnn().double()
    images, annotations = batch(dtype=D), Annotations.from_targets(TARGETS)
    found = guided(model, annotations, images, **options)
    expected = guided(model, with_masks(annotations, 12), images, **options)
    for mine, other in zip(
        [found[0], *found[1], *found[2].values()],
        [expected[0], *expected[1], *expected[2].values()],
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
    assert len(found[1]) == len(expected[1]) > 4


def test_relevance_of_boxes_is_that_of_their_masks() -> None:
    vit = build("vit")
    side, _ = size_of(vit)
    model = vit.model.double()
    images = batch(size=side, dtype=D)
    box = {"boxes": torch.tensor([[2.0, 3, side - 7, side]]), "labels": torch.tensor([1])}
    annotations = Annotations.from_targets([box, None, box])
    options = {"attribution": AttentionRelevance(model)}
    found, expected = (
        guided(model, given, images, **options)
        for given in (annotations, with_masks(annotations, side))
    )
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-11, atol=1e-12)


def every_map(name: str) -> tuple[Any, Tensor]:
    """The maps of an attribution on a network with random weights."""
    torch.manual_seed(1)
    if name in FOR_ANY_NETWORK:
        model = SmallCnn()
        method = ATTRIBUTIONS[name](model, "body")
        return method, torch.cat([method.attribute(batch(), target=k) for k in range(4)])
    vit = build("vit")
    method = ATTRIBUTIONS[name](vit.model.float())
    return method, method.attribute(batch(size=size_of(vit)[0]), target=1)


@pytest.mark.parametrize("name", sorted(set(ATTRIBUTIONS) - {"bcos"}))
def test_attributions_say_rightly_that_their_maps_are_not_negative(name: str) -> None:
    method, maps = every_map(name)
    assert (maps > 0).any()
    assert bool((maps >= 0).all()) == method.non_negative
    assert not ATTRIBUTIONS["bcos"].non_negative


def test_a_subclass_says_it_of_itself() -> None:
    """Its maps may be others: what its parent says is not taken for granted."""

    class Signed(GradCam):
        @staticmethod
        def combine(feature: Tensor, gradient: Tensor) -> Tensor:
            return (gradient.mean((-2, -1), keepdim=True) * feature).sum(-3)

    class Scaled(GradCam):
        non_negative = True

    assert GradCam.non_negative
    assert Scaled.non_negative
    assert not Signed.non_negative
    torch.manual_seed(0)
    model = SmallCnn().double()
    annotations = Annotations.from_targets(TARGETS)
    found, expected = (
        guided(model, given, batch(dtype=D), attribution=Signed(model, "body"), layer="body")
        for given in (annotations, with_masks(annotations, 12))
    )
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-12, atol=1e-12)


def test_a_form_of_ones_own_may_be_made_of_boxes() -> None:
    class Halves:
        """The left half of each image."""

        most_classes = 1

        def presence(self, num_classes: int) -> Tensor:
            return torch.ones(3, num_classes, dtype=torch.bool)

        def region(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
            raise AssertionError("no mask is needed")

        def chosen_boxes(self, classes: Tensor) -> ChosenBoxes:
            return ChosenBoxes(torch.tensor([[[0.0, 0, 6, 12]]] * 3), torch.ones(*classes.shape, 1))

    @form("the word 'left'", lambda value, batch: value == "left")
    def left(word: str, batch: Any) -> Halves:
        return Halves()

    try:
        torch.manual_seed(0)
        model = SmallCnn().double()
        masks = torch.zeros(3, 12, 12)
        masks[..., :6] = 1
        options: dict[str, Any] = {"layer": "body", "loss": "l1", "target": "predicted"}
        found, expected = (guided(model, g, batch(dtype=D), **options) for g in ("left", masks))
    finally:
        FORMS.pop()
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["energy", "l1", "rrr"])
def test_under_autocast_the_weights_are_the_same(loss: str, dtype: torch.dtype) -> None:
    maps, chosen = torch.rand(2, 3, 7, 7), region((224, 224))
    expected = with_gradient(loss, maps, chosen, coarse=True, non_negative=True)
    with torch.autocast("cpu", dtype=dtype):
        found = with_gradient(loss, maps, region((224, 224)), coarse=True, non_negative=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_boxes_made_in_inference_mode() -> None:
    with torch.inference_mode():
        annotations = Annotations.from_targets(TARGETS)
    torch.manual_seed(0)
    model = SmallCnn().double()
    found, expected = (
        guided(model, given, batch(dtype=D), layer="body", loss="rrr")
        for given in (annotations, Annotations.from_targets(TARGETS))
    )
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 3])
def test_without_any_object(count: int) -> None:
    chosen = Chosen(Annotations.from_targets([None] * count), torch.full((2, count), -1), (96, 96))
    assert chosen.have_pixels().tolist() == [[False] * count] * 2
    maps = torch.rand(2, count, 7, 7, dtype=D)
    for loss in ("energy", "l1", "rrr"):
        ways = [
            with_gradient(loss, maps, chosen, coarse=coarse, non_negative=True)
            for coarse in (True, False)
        ]
        torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-12)


@needs_newer_torch
@pytest.mark.parametrize("loss", ["energy", "l1", "rrr", "gradmask"])
@pytest.mark.parametrize("target", ["sample", "all", "predicted"])
def test_nothing_is_read_and_operations_are_as_many_for_any_batch(loss: str, target: str) -> None:
    counts = []
    for repeats in (1, 7):
        model = SmallCnn()
        images = torch.cat([batch()] * repeats)
        annotations = Annotations.from_targets(TARGETS * repeats)
        options: dict[str, Any] = {"attribution": "gradcam", "loss": loss, "target": target}
        with ExplanationGuidance(model, layer="body", **options) as guide:
            for _ in range(2):  # the first looks for second derivatives
                model(images)
                with Counted() as counter:
                    value = guide.loss_loc(annotations)
                assert counter.reads == []
            value.backward()
        counts.append(counter.operations)
    assert counts[0] == counts[1] > 50


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 does not trace all of it")
def test_it_is_compiled_as_a_whole() -> None:
    chosen = region((96, 96))

    def function(maps: Tensor) -> Tensor:
        again = Chosen(chosen.regions, chosen.classes, chosen.size)
        return compare(STAGED, "l1", maps, again, non_negative=True)

    STAGED = resolve_loss("l1")
    maps = torch.rand(2, 3, 7, 7, dtype=D)
    compiled: Callable[[Tensor], Tensor] = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(maps), function(maps), rtol=1e-12, atol=0)
