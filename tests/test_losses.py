"""Each loss: equals its reference, has the right gradient, and stays finite at the edges."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from explainguide.errors import OptionError, ShapeError
from explainguide.losses import LOSSES, energy_loss, l1_loss, reff_loss, rrr_loss
from explainguide.staging import resolve_loss

from .reference import losses as reference

DEAD = {"energy": 1.0, "l1": None, "ppce": 100.0, "rrr": 0.0, "gradmask": 0.0, "reff": 0.0}


def maps(count: int = 4) -> Tensor:
    return torch.randn(count, 5, 6, dtype=torch.float64)


def masks(count: int = 4) -> Tensor:
    return (torch.rand(count, 5, 6) > 0.6).double()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_equals_its_reference(name: str, scale: float) -> None:
    attribution, mask = maps() * scale, masks()
    expected = [
        getattr(reference, name)(a.tolist(), m.tolist())
        for a, m in zip(attribution, mask, strict=True)
    ]
    found = LOSSES[name](attribution, mask)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(LOSSES[name](attribution, mask.bool()), found)


@pytest.mark.parametrize("name", LOSSES)
def test_fractional_masks(name: str) -> None:
    attribution, mask = maps(), torch.rand(4, 5, 6).double()
    if name == "reff":
        pytest.skip("the reference squares the mask, as the loss does; covered by gradcheck")
    expected = [
        getattr(reference, name)(a.tolist(), m.tolist())
        for a, m in zip(attribution, mask, strict=True)
    ]
    torch.testing.assert_close(
        LOSSES[name](attribution, mask), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    assert gradcheck(lambda a: LOSSES[name](a, masks_once), maps().requires_grad_())


masks_once = (torch.arange(120).reshape(4, 5, 6) % 3 == 0).double()


@pytest.mark.parametrize(
    "loss",
    [
        partial(energy_loss, floor="absolute"),
        partial(l1_loss, normalize="paper"),
        partial(rrr_loss, normalize=False),
        partial(reff_loss, variant="l1"),
        partial(reff_loss, variant="l2"),
    ],
)
def test_gradcheck_of_options(loss) -> None:
    assert gradcheck(lambda a: loss(a, masks_once), maps().requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dead", [0.0, -1.0])
@pytest.mark.parametrize("mask", ["empty", "some", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_maps_are_finite_with_a_bounded_gradient(
    name: str, dead: float, mask: str, dtype: torch.dtype
) -> None:
    region = {"empty": torch.zeros(4, 5, 6), "some": masks(), "full": torch.ones(4, 5, 6)}[mask]
    attribution = torch.full((4, 5, 6), dead, dtype=dtype, requires_grad=True)
    loss = LOSSES[name](attribution, region)
    (gradient,) = torch.autograd.grad(loss.sum(), attribution)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 100
    if DEAD[name] is not None and dead == 0 and not (name == "ppce" and mask == "empty"):
        assert (loss == DEAD[name]).all()
        assert not gradient.any()


@pytest.mark.parametrize("tiny", [1e-30, 1e-38])
def test_energy_does_not_depend_on_the_scale(tiny: float) -> None:
    attribution = torch.tensor([[[3.0, 1.0], [-4.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    leaf = (attribution * tiny).requires_grad_()
    loss = energy_loss(leaf, mask)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.25]), rtol=1e-4, atol=0)
    assert torch.autograd.grad(loss.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_images_do_not_mix(name: str) -> None:
    attribution, mask = maps(), masks()
    together = LOSSES[name](attribution, mask)
    alone = [LOSSES[name](a[None], m[None]) for a, m in zip(attribution, mask, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_never_hidden(name: str, bad: float) -> None:
    attribution, mask = maps(2), torch.ones(2, 5, 6).double()
    mask[:, 0] = 0
    attribution[0, 0, 0] = attribution[0, 2, 2] = bad
    loss = LOSSES[name](attribution, mask)
    assert not loss[0].isfinite()
    assert loss[1].isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_the_name_is_the_function_less_its_ending(name: str) -> None:
    function = LOSSES[name]
    assert function.__name__ == f"{name}_loss"
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:2]] == ["attribution", "mask"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_and_dtypes_are_checked(name: str) -> None:
    with pytest.raises(ShapeError) as wrong:
        LOSSES[name](torch.zeros(2, 4, 4), torch.zeros(2, 8, 8))
    assert str(wrong.value) == (
        f"{name}_loss: attribution has shape (2, 4, 4) but mask has shape (2, 8, 8); both must be "
        "(N, H, W)."
    )
    with pytest.raises(ShapeError, match=r"dtype torch.uint8.*`mask > 0`"):
        LOSSES[name](torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8))


def test_two_stages_are_one_at_the_same_resolution() -> None:
    attribution, mask = maps(), masks()
    for name, function in LOSSES.items():
        staged = resolve_loss(name, caller="test")
        found = staged.compare(staged.prepare(attribution), mask)
        torch.testing.assert_close(found, function(attribution, mask))
    for options in ({"normalize": "paper"}, {"normalize": False}):
        staged = resolve_loss(partial(l1_loss, **options), caller="test")
        found = staged.compare(staged.prepare(attribution), mask)
        torch.testing.assert_close(found, l1_loss(attribution, mask, **options))


def test_an_unknown_variant() -> None:
    with pytest.raises(OptionError, match="unknown variant 'l3'"):
        reff_loss(maps(), masks(), variant="l3")
