"""An overlay keeps the image where there is no attribution, and colours it where there is."""

from __future__ import annotations

import pytest
import torch

from explainguide.errors import OptionError, ShapeError
from explainguide.visualization import overlay

from .samples import Mistake, bump, check_mistake, images, nan_map

IMAGE = images()[0]


@pytest.mark.parametrize("sign", ["positive", "signed"])
@pytest.mark.parametrize("shape", [(40, 60), (1, 40, 60), (5, 7), (1, 1), (80, 120)])
def test_overlay_has_the_shape_of_the_image_and_stays_in_range(sign, shape):
    attribution = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    picture = overlay(images()[0], attribution, sign=sign)
    assert picture.shape == (3, 40, 60)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert torch.equal(picture, overlay(images()[0], attribution, sign=sign))


@pytest.mark.parametrize("sign", ["positive", "signed"])
@pytest.mark.parametrize("size", [(40, 60), (3, 3)])
def test_a_zero_map_leaves_the_image_as_it_is(sign, size):
    image = images()[0]
    assert torch.equal(overlay(image, torch.zeros(size), sign=sign), image)


@pytest.mark.parametrize("sign", ["positive", "signed"])
def test_places_without_attribution_are_unmarked(sign):
    image = images()[0]
    picture = overlay(image, bump(), sign=sign)
    assert torch.equal(picture[..., 20:40], image[..., 20:40])
    assert not torch.allclose(picture[:, 10:30, 5:20], image[:, 10:30, 5:20], atol=0.1)


def test_positive_shows_no_negative_part():
    image = images()[0]
    assert torch.equal(overlay(image, bump())[..., 40:], image[..., 40:])
    assert torch.equal(overlay(image, -bump().clamp(min=0)), image)


def test_signed_is_orange_for_and_purple_against_with_the_same_opacity():
    black, white = torch.zeros(3, 40, 60), torch.ones(3, 40, 60)
    on_black, on_white = (overlay(ground, bump(), sign="signed") for ground in (black, white))
    assert on_black[0, 20, 10] > on_black[2, 20, 10] + 0.15
    assert on_black[2, 20, 50] > on_black[0, 20, 50] + 0.15
    clear = (on_white - on_black).mean(0)  # what is seen of the ground: 1 - opacity
    assert torch.allclose(clear[20, 10], clear[20, 50])
    assert torch.allclose(clear[20, 10], torch.tensor(0.1), atol=1e-6)


def test_scale_does_not_matter_even_when_it_is_tiny_or_huge():
    image, attribution = images()[0], bump().double()
    expected = overlay(image, attribution, sign="signed")
    for factor in (1e-60, 1e30):
        assert torch.allclose(overlay(image, attribution * factor, sign="signed"), expected)


def test_percentile_keeps_one_extreme_pixel_from_paling_the_others():
    image, attribution = torch.zeros(3, 40, 60), bump()
    attribution[0, 0] = 1.0
    assert overlay(image, attribution)[:, 20, 10].max() > 0.5
    assert overlay(image, attribution, percentile=100)[:, 20, 10].max() < 1e-3


def test_alpha_is_the_opacity_of_the_strongest_attribution():
    image = images()[0]
    assert torch.equal(overlay(image, bump(), alpha=0.0), image)
    on_black, on_white = (overlay(torch.full_like(image, v), bump(), alpha=0.5) for v in (0.0, 1.0))
    assert torch.allclose((on_white - on_black)[:, 20, 10], torch.full((3,), 0.5), atol=1e-6)


def test_grey_takes_the_colours_of_the_image_out():
    picture = overlay(images()[0], torch.zeros(40, 60), grey=True)
    assert torch.equal(picture[0], picture[1])
    assert torch.equal(picture[0], picture[2])
    assert picture.std() > 0.05  # still an image


def test_a_map_is_upsampled_bilinearly():
    coarse = torch.tensor([[0.0, 1.0]])
    picture = overlay(torch.ones(3, 8, 16), coarse, sign="signed", percentile=100)
    seen = 1 - picture[1, 4]  # green falls as orange gets stronger
    assert (seen.diff() >= -1e-6).all()
    assert seen[0] == 0
    assert 0.05 < seen[8] < seen[15]


def test_overlay_reads_half_precision_and_leaves_the_graph_alone():
    image = images()[0].bfloat16()
    attribution = bump().requires_grad_()
    assert not overlay(image, attribution).requires_grad
    assert attribution.grad is None


MISTAKES: list[Mistake] = [
    (lambda: overlay(IMAGE.numpy(), bump()), ShapeError, ["image is a ndarray", "as_tensor"]),
    (lambda: overlay(IMAGE.permute(1, 2, 0), bump()), ShapeError, ["(40, 60, 3)", "permute"]),
    (lambda: overlay(IMAGE[:1], bump()), ShapeError, ["(1, 40, 60)", "expand"]),
    (lambda: overlay(images(), bump()), ShapeError, ["(2, 3, 40, 60)", "(3, H, W)"]),
    (lambda: overlay((IMAGE * 255).byte(), bump()), ShapeError, ["torch.uint8", "/ 255"]),
    (lambda: overlay(IMAGE * 255, bump()), OptionError, ["ranges from", "Divide it by 255"]),
    (lambda: overlay(IMAGE * 4 - 2, bump()), OptionError, ["ranges from", "Undo the norm"]),
    (lambda: overlay(IMAGE / 0, bump()), OptionError, ["ranges from", "[0, 1]"]),
    (lambda: overlay(IMAGE, nan_map()), OptionError, ["3 of 2400", "NaN or infinite", "check"]),
    (lambda: overlay(IMAGE, torch.zeros(8, 5, 5)), ShapeError, ["(8, 5, 5)", "Sum over channels"]),
    (lambda: overlay(IMAGE, torch.zeros(0, 5)), ShapeError, ["(0, 5)", "(h, w)"]),
    (lambda: overlay(IMAGE, bump(), sign="sign"), OptionError, ["'sign'", "Did you mean 'signed'"]),
    (lambda: overlay(IMAGE, bump(), alpha=1.5), OptionError, ["alpha is 1.5", "[0, 1]"]),
    (
        lambda: overlay(IMAGE, bump(), percentile=0.99),
        OptionError,
        ["is 0.99", "Did you mean 99?", "[50, 100]"],
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[2][0])
def test_a_mistake_is_one_line_that_names_the_callable_and_the_fix(mistake):
    check_mistake(mistake, {"overlay"})
