"""Changed images are what they should be, and any metric of maps runs on their explanations."""

import copy

import pytest
import torch
from torch import nn

from explainguide.attr import InputXGradient
from explainguide.metrics import (
    EnergyPointingGame,
    LocalizationIoU,
    PointingGame,
    Robustness,
    drop_pixels,
    energy_pointing_game,
    replace_background,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_every_image_loses_that_share_of_its_pixels(share):
    images = torch.rand(5, 3, 7, 9) + 1
    changed = drop_pixels(images, share=share, fill=0.0, generator=seeded())
    gone = changed == 0
    assert gone.all(1).sum((1, 2)).tolist() == [round(share * 63)] * 5
    assert torch.equal(gone.any(1), gone.all(1))  # with all channels
    assert torch.equal(changed[~gone], images[~gone])
    if share == 0.2:  # each its own
        assert len({tuple(one.flatten().tolist()) for one in gone[:, 0]}) == 5


def test_pixels_are_drawn_uniformly():
    images = torch.ones(4000, 1, 3, 4)
    gone = drop_pixels(images, share=0.25, fill=0.0, generator=seeded()) == 0
    rates = gone.float().mean((0, 1))
    torch.testing.assert_close(rates, torch.full((3, 4), 0.25), rtol=0, atol=0.03)


def test_the_generator_decides():
    images = torch.rand(2, 3, 8, 8)
    first, again, other = (drop_pixels(images, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    one = drop_pixels(images)
    torch.manual_seed(3)
    assert torch.equal(one, drop_pixels(images))
    # The same pixels, whatever the dtype.
    wide = drop_pixels(images.double(), fill=9.0, generator=seeded())
    assert torch.equal(wide == 9.0, drop_pixels(images, fill=9.0, generator=seeded()) == 9.0)


def test_objects_stay_before_other_backgrounds():
    images, backgrounds = torch.rand(50, 3, 4, 4), torch.rand(3, 3, 4, 4) + 5
    mask = torch.rand(50, 4, 4) > 0.5
    changed = replace_background(images, mask, backgrounds, generator=seeded())
    used = set()
    for i in range(50):
        assert torch.equal(changed[i][:, mask[i]], images[i][:, mask[i]])
        same = [torch.equal(changed[i][:, ~mask[i]], b[:, ~mask[i]]) for b in backgrounds]
        assert sum(same) == 1
        used.add(same.index(True))
    assert used == {0, 1, 2}
    again = replace_background(images, mask[:, None], backgrounds, generator=seeded())
    assert torch.equal(changed, again)
    assert not torch.equal(changed, replace_background(images, mask, backgrounds))


def test_a_soft_mask_mixes():
    images, behind = torch.full((1, 1, 1, 3), 2.0), torch.full((1, 1, 1, 3), 6.0)
    mask = torch.tensor([[[0.0, 0.25, 1.0]]])
    assert replace_background(images, mask, behind).flatten().tolist() == [6.0, 5.0, 2.0]
    # What is behind an object is not looked at, or a NaN there would show.
    behind[..., 2] = torch.nan
    assert replace_background(images, mask, behind)[0, 0, 0, 2] == 2.0


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean((2, 3)))


def given():
    images = torch.rand(6, 3, 8, 8)
    mask = torch.zeros(6, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 1:5] = True
    return images, torch.tensor([0, 1, 2, 0, 1, 2]), mask


@pytest.mark.parametrize("kind", [EnergyPointingGame, LocalizationIoU, PointingGame])
def test_any_metric_runs_on_the_changed_images(kind):
    images, target, mask = given()
    method = InputXGradient(Convolution().eval())
    bright = torch.full((1, 3, 8, 8), 3.0)

    def change(images, mask):
        return replace_background(images, mask, bright)

    def explain(images, target):
        return method.attribute(images, target)[:, 0]

    metric = Robustness(kind(), change=change)
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(images[part], target[part], mask[part], explain)
    plain = kind()
    plain.update(explain(change(images, mask), target), mask)
    assert metric.compute() == plain.compute()
    assert metric.metric.undefined == plain.undefined
    assert metric.higher_is_better is kind.higher_is_better
    other = kind()
    other.update(explain(images, target), mask)
    assert metric.compute() != other.compute()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_autograd_is_on_for_the_explanation(mode):
    weight = torch.rand(3, 8, 8)

    def explain(images, target):  # of a plain loop, which does not think of modes
        images = images.requires_grad_()
        (gradient,) = torch.autograd.grad((images * weight).square().sum(), images)
        return gradient.sum(1)

    with mode():
        images, target, mask = given()
        metric = Robustness(EnergyPointingGame(), change=lambda images, mask: images * 1)
        metric.update(images, target, mask, explain)
        value = metric.compute()
    expected = energy_pointing_game((2 * images * weight**2).sum(1), mask).mean()
    torch.testing.assert_close(value, expected)
    assert not any(s.requires_grad for s in metric.metric.metric_state.values())


def test_forward_reset_and_copies():
    images, target, mask = given()
    metric = Robustness(EnergyPointingGame(), change=lambda images, mask: -images)

    def explain(images, target):
        return 1 + images[:, 0]

    value = metric(images, target, mask, explain)
    torch.testing.assert_close(value, energy_pointing_game(1 - images[:, 0], mask).mean())
    assert metric.compute() == value
    fresh = copy.deepcopy(metric)
    metric.reset()
    metric.update(images[:2], target[:2], mask[:2], explain)
    assert metric.compute() != value
    assert fresh.compute() == value
    assert metric.to(torch.device("cpu")).metric is metric.metric


def test_nothing_is_read_from_the_device():
    images, target, mask = (part.to("meta") for part in given())
    metric = Robustness(
        EnergyPointingGame(),
        change=lambda images, mask: replace_background(
            drop_pixels(images), mask, images[:2], generator=None
        ),
    ).to("meta")
    metric.update(images, target, mask, lambda images, target: images[:, 0])
