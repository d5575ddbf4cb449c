"""The metric functions equal the slow reference, and say what they refuse."""

import math

import pytest
import torch

from explainguide.errors import OptionError, ShapeError
from explainguide.metrics import (
    energy_pointing_game,
    localization_iou,
    on_object_energy,
    pointing_game,
)

TWO_MASKS = {"energy": energy_pointing_game, "iou": localization_iou, "pointing": pointing_game}


def on_boxes(attribution, mask, **options):
    """`on_object_energy` with the whole image as the box, to run with the others."""
    return on_object_energy(attribution, mask, torch.ones_like(mask), **options)


FUNCTIONS = {**TWO_MASKS, "on_object": on_boxes}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def expect(values):
    """Reference values as a tensor, undefined as NaN."""
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_energy_equals_the_reference(images, reference):
    maps, masks, _ = images
    expected = [
        reference.energy_pointing_game(a.tolist(), m.tolist())
        for a, m in zip(maps, masks, strict=True)
    ]
    assert_equal(energy_pointing_game(maps, masks), expect(expected))
    assert expected.count(None) == 2


@pytest.mark.parametrize("threshold", [0, 0.1, 0.5, 0.95])
def test_iou_equals_the_reference(images, reference, threshold):
    maps, masks, _ = images
    expected = [
        reference.localization_iou(a.tolist(), m.tolist(), threshold)
        for a, m in zip(maps, masks, strict=True)
    ]
    assert_equal(localization_iou(maps, masks, threshold=threshold), expect(expected))
    assert expected.count(None) == 1


def test_on_object_equals_the_reference(images, reference):
    maps, masks, boxes = images
    expected = [
        reference.on_object_energy(a.tolist(), m.tolist(), b.tolist())
        for a, m, b in zip(maps, masks, boxes, strict=True)
    ]
    assert_equal(on_object_energy(maps, masks, boxes), expect(expected))


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3, 15])
def test_pointing_equals_the_reference(images, reference, tolerance):
    maps, masks, _ = images
    masks = masks & (torch.arange(9) < 3)  # leaves room to miss
    expected = [
        reference.pointing_game(a.tolist(), m.tolist(), tolerance)
        for a, m in zip(maps, masks, strict=True)
    ]
    assert_equal(pointing_game(maps, masks, tolerance=tolerance), expect(expected))


def test_tied_maxima_share_the_hit():
    attribution = torch.tensor([[[2.0, 2.0, 2.0, 1.0]]])
    mask = torch.tensor([[[True, False, False, True]]])
    torch.testing.assert_close(pointing_game(attribution, mask), torch.tensor([1 / 3]))


def test_tolerance_is_a_disc_and_includes_its_edge():
    attribution = torch.zeros(1, 7, 7)
    attribution[0, 0, 0] = 1.0
    for (row, column), least in {(0, 3): 3, (3, 4): 5, (2, 2): 3}.items():
        mask = torch.zeros(1, 7, 7, dtype=torch.bool)
        mask[0, row, column] = True
        assert pointing_game(attribution, mask, tolerance=least) == 1
        assert pointing_game(attribution, mask, tolerance=least - 1) == 0


def test_on_object_ignores_the_segmentation_outside_the_box():
    attribution = torch.tensor([[[1.0, 1.0, 50.0]]])
    segmentation = torch.tensor([[[True, False, True]]])
    box = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(
        on_object_energy(attribution, segmentation, box), torch.tensor([0.5])
    )


def test_energy_does_not_depend_on_scale_unless_asked():
    attribution = torch.tensor([[[3e-12, 1e-12]]])
    mask = torch.tensor([[[True, False]]])
    torch.testing.assert_close(energy_pointing_game(attribution, mask), torch.tensor([0.75]))
    assert energy_pointing_game(attribution, mask, min_energy=1e-7).isnan()


def test_soft_masks_weigh_pixels():
    attribution = torch.tensor([[[1.0, 1.0, 0.0]]])
    mask = torch.tensor([[[0.5, 0.0, 1.0]]])
    assert energy_pointing_game(attribution, mask) == 0.25
    # P M = 0.5; P + M - P M = 1 + 1 + 1.
    torch.testing.assert_close(localization_iou(attribution, mask), torch.tensor([0.5 / 3]))
    assert pointing_game(attribution, mask) == 0.25


@every_function
def test_undefined_images_are_nan_or_zero(function):
    attribution = torch.tensor([[[-1.0, -2.0]], [[1.0, 2.0]]])
    mask = torch.zeros(2, 1, 2, dtype=torch.bool)
    torch.testing.assert_close(
        function(attribution, mask), torch.tensor([math.nan, 0.0]), equal_nan=True
    )
    torch.testing.assert_close(function(attribution, mask, undefined="zero"), torch.zeros(2))


@every_function
def test_a_full_mask_scores_one_on_a_constant_map(function):
    torch.testing.assert_close(
        function(torch.full((2, 3, 3), 0.3), torch.ones(2, 3, 3)), torch.ones(2)
    )


@every_function
@pytest.mark.parametrize("undefined", ["exclude", "zero"])
def test_a_broken_map_is_not_hidden(function, undefined):
    attribution = torch.tensor([[[1.0, math.nan]], [[1.0, 0.0]]])
    mask = torch.tensor([[[True, False]], [[True, False]]])
    scores = function(attribution, mask, undefined=undefined)
    assert scores.isnan().tolist() == [True, False]


@every_function
def test_shapes_and_dtypes(function, images):
    maps, masks, _ = images
    plain = function(maps, masks)
    assert plain.shape == (11,)
    assert plain.dtype == torch.float64
    assert_equal(function(maps[:, None], masks[:, None]), plain)
    assert_equal(function(maps[:, None], masks.float()), plain)
    assert function(maps.half(), masks).dtype == torch.float32
    assert function(maps.bfloat16(), masks[:, None].half()).dtype == torch.float32
    assert function(maps[:0], masks[:0]).shape == (0,)


@every_function
def test_images_do_not_mix_and_inputs_stay(function, images):
    maps, masks, _ = images
    copy = maps.clone()
    alone = torch.cat([function(maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))])
    assert_equal(function(maps, masks), alone)
    assert torch.equal(maps, copy)


@every_function
def test_nothing_is_read_back_from_the_device(function):
    # A meta tensor has no values, so whatever would need one on the host raises.
    maps, masks = torch.rand(2, 5, 5, device="meta"), torch.ones(2, 5, 5, device="meta")
    assert function(maps, masks).device.type == "meta"


def test_energy_can_be_differentiated():
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 3, 4, generator=generator) > 0.5
    assert torch.autograd.gradcheck(lambda a: energy_pointing_game(a, mask), maps)
    assert torch.autograd.gradcheck(lambda a: on_boxes(a, mask), maps)
    dead = torch.full((1, 2, 2), -1.0, requires_grad=True)
    energy_pointing_game(dead, torch.ones(1, 2, 2), undefined="zero").sum().backward()
    assert dead.grad is not None
    assert torch.equal(dead.grad, torch.zeros(1, 2, 2))


MAPS, MASK = torch.rand(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
MISTAKES = {
    "resolution": (
        (MAPS, torch.ones(2, 8, 8)),
        r"game: attribution has shape \(2, 4, 4\) but mask has shape \(2, 8, 8\)\. Resize the .*"
        r"interpolate\(attribution, \(8, 8\).* Both must be \(N, H, W\) or \(N, 1, H, W\)\.",
    ),
    "count": ((MAPS, MASK[:1]), r"\(2, 4, 4\) but .* \(1, 4, 4\)\. Give one mask for each map\."),
    "integer mask": (
        (MAPS, MASK.long()),
        r"mask has dtype torch.int64.*mask\.bool\(\) or mask > 0",
    ),
    "byte mask": ((MAPS, MASK.byte()), r"mask has dtype torch.uint8.*mask\.bool\(\) or mask > 0"),
    "integer map": ((MASK.long(), MASK), r"attribution has dtype torch.int64.*\.float\(\)"),
    "swapped": ((MASK, MAPS), r"attribution has dtype torch.bool\. Did you swap"),
    "one image": ((MAPS[0], MASK[0]), r"attribution has shape \(4, 4\)\..* attribution\[None\]"),
    "channels": (
        (torch.rand(2, 3, 4, 4), MASK),
        r"\(2, 3, 4, 4\)\. Sum over .*attribution\.sum\(1\)",
    ),
    "classes": ((MAPS, torch.ones(2, 5, 4, 4)), r"mask\[torch\.arange\(N\), target\]"),
    "vector": ((torch.rand(3), MASK), r"attribution has shape \(3,\)\. Bring .* It must be"),
    "array": ((MAPS, MASK.numpy()), r"mask is a ndarray\. Convert with torch\.as_tensor"),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("name", ["energy_pointing_game", "localization_iou", "pointing_game"])
def test_what_shapes_are_refused(name, arguments, text):
    function = {f.__name__: f for f in TWO_MASKS.values()}[name]
    if name != "energy_pointing_game":
        text = text.removeprefix("game: ")
    with pytest.raises(ShapeError, match=text) as caught:
        function(*arguments)
    assert str(caught.value).startswith(f"{name}: ")


def test_the_box_mask_is_named():
    with pytest.raises(ShapeError, match=r"^on_object_energy: box_mask has dtype.*box_mask > 0"):
        on_object_energy(MAPS, MASK, MASK.long())


@every_function
def test_unknown_undefined_is_refused(function):
    with pytest.raises(OptionError, match=r"unknown undefined='zeros'\. Did you mean 'zero'\?"):
        function(MAPS, MASK, undefined="zeros")


@pytest.mark.parametrize("threshold", [1.0, -0.1, math.nan, 50, "fit", None])
def test_thresholds_outside_the_range_are_refused(threshold):
    with pytest.raises(
        OptionError, match=r"^localization_iou: threshold has the value .* \[0, 1\)"
    ):
        localization_iou(MAPS, MASK, threshold=threshold)


@pytest.mark.parametrize("tolerance", [-1, 1.5])
def test_other_tolerances_are_refused(tolerance):
    with pytest.raises(OptionError, match=r"^pointing_game: tolerance is .* whole number"):
        pointing_game(MAPS, MASK, tolerance=tolerance)


def test_a_negative_energy_is_refused():
    with pytest.raises(OptionError, match=r"^energy_pointing_game: min_energy is -1\.0\."):
        energy_pointing_game(MAPS, MASK, min_energy=-1.0)
