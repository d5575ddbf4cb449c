"""Each loss: equals its reference, has the right gradient, and stays finite at the edges."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from explainguide.errors import OptionError, ShapeError
from explainguide.losses import (
    LOSSES,
    confidence_boosting,
    energy_loss,
    l1_loss,
    ppce_loss,
    reff_loss,
    relevance_loss,
    rrr_loss,
)
from explainguide.losses.table import resolve_loss

from .reference import losses as reference

DEAD = {"energy": 1.0, "l1": None, "ppce": 100.0, "rrr": 0.0, "gradmask": 0.0, "reff": 0.0}
DEAD["relevance"] = None  # what is missing inside the mask; see below


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
        partial(relevance_loss, background=0.7, foreground=1.3),
    ],
)
def test_gradcheck_of_options(loss) -> None:
    assert gradcheck(lambda a: loss(a, masks_once), maps().requires_grad_())


def by_the_text(attribution: Tensor) -> Tensor:
    """The positive part of A / max(A), a pixel at a time (Rao et al., 2023, Sec. 3, Notation)."""
    found = [reference.normalised_by_the_text(a.tolist()) for a in attribution]
    return torch.tensor(found, dtype=attribution.dtype)


@pytest.mark.parametrize("loss", [l1_loss, ppce_loss])
def test_the_normalisation_of_the_papers_text(loss) -> None:
    attribution, mask = maps(), masks()
    attribution[0] -= 2 * attribution[0].abs().max()  # no value is positive
    attribution[1, 0, 0] = (
        -3 * attribution[1].abs().max()
    )  # the largest magnitude is a negative value
    attribution[2] = 0
    found = loss(attribution, mask, normalize="paper")
    torch.testing.assert_close(found, loss(by_the_text(attribution), mask, normalize=False))
    dead = loss(torch.zeros_like(attribution), mask)
    torch.testing.assert_close(found[[0, 2]], dead[[0, 2]])


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
        staged = resolve_loss(name)
        found = staged.compare(staged.prepare(attribution), mask)
        torch.testing.assert_close(found, function(attribution, mask))
    for options in ({"normalize": "paper"}, {"normalize": False}):
        staged = resolve_loss(partial(l1_loss, **options))
        found = staged.compare(staged.prepare(attribution), mask)
        torch.testing.assert_close(found, l1_loss(attribution, mask, **options))


def test_an_unknown_variant() -> None:
    with pytest.raises(OptionError, match="unknown variant 'l3'"):
        reff_loss(maps(), masks(), variant="l3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.0, 1e-30, 0.1])
def test_a_constant_map_has_no_relevance_and_no_gradient(
    constant: float, dtype: torch.dtype
) -> None:
    attribution = torch.full((2, 3, 4), constant, dtype=dtype)
    attribution[:, 0, 0] *= 1 + torch.finfo(dtype).eps  # constant but for rounding
    attribution.requires_grad_()
    mask = torch.zeros(2, 3, 4)
    mask[0, :2] = 1
    loss = relevance_loss(attribution, mask)
    (gradient,) = torch.autograd.grad(loss.sum(), attribution)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.3 * 8 / 12, 0.0], dtype=dtype))
    assert not gradient.any()


def test_one_constant_map_does_not_spoil_a_batch() -> None:
    attribution = maps(2)
    attribution[0] = 5.0
    attribution.requires_grad_()
    loss = relevance_loss(attribution, masks(2))
    (gradient,) = torch.autograd.grad(loss.sum(), attribution)
    assert gradient.isfinite().all() and gradient[1].any()


def test_relevance_knows_no_scale_and_no_offset() -> None:
    attribution, mask = maps(), masks()
    expected = relevance_loss(attribution, mask)
    torch.testing.assert_close(relevance_loss(3e5 * attribution - 7, mask), expected)


def test_relevance_lies_between_its_ends() -> None:
    mask = masks(1)
    assert relevance_loss(mask, mask) == 0
    torch.testing.assert_close(
        relevance_loss(-mask, mask), (2 * (1 - mask) + 0.3 * mask).mean((-2, -1))
    )


@pytest.mark.parametrize("name", ["background", "foreground"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_relevance_that_are_not_allowed(name: str, weight: float) -> None:
    with pytest.raises(OptionError, match=f"^relevance_loss: {name} is {weight}"):
        relevance_loss(maps(), masks(), **{name: weight})


@pytest.mark.parametrize("temperature", [0.65, 1.0, 2.0])
def test_confidence_boosting_is_minus_the_log_of_the_largest_probability(
    temperature: float,
) -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    expected = -(logits / temperature).softmax(1).amax(1).log()
    options = {"temperature": temperature}
    each = confidence_boosting(logits, reduction="none", **options)
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(confidence_boosting(logits, **options), expected.mean())
    torch.testing.assert_close(
        confidence_boosting(logits, reduction="sum", **options), expected.sum()
    )
    assert gradcheck(
        lambda z: confidence_boosting(z, reduction="none", **options), logits.requires_grad_()
    )


def test_confidence_boosting_raises_the_confidence() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(confidence_boosting(logits), logits)
    assert gradient[0, 0] < 0 < gradient[0, 1:].min()


def test_confidence_boosting_of_half_precision_and_of_nothing() -> None:
    assert confidence_boosting(torch.randn(2, 3).bfloat16()).dtype == torch.float32
    assert confidence_boosting(torch.zeros(0, 3), reduction="none").shape == (0,)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        ((3,), {}, r"logits have shape \(3,\) and dtype torch.float32"),
        ((2, 3), {"temperature": 0.0}, r"temperature is 0\.0\. Use 1\.0\."),
        ((2, 3), {"temperature": float("nan")}, "temperature is nan"),
        ((2, 3), {"reduction": "avg"}, "unknown reduction 'avg'"),
        ((2, 3), {"reduction": "Sum"}, "Did you mean 'sum'"),
    ],
)
def test_what_confidence_boosting_refuses(logits: tuple, options: dict, message: str) -> None:
    with pytest.raises((OptionError, ShapeError), match=f"^confidence_boosting: .*{message}"):
        confidence_boosting(torch.zeros(logits), **options)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_silent_energy_of_a_positive_part_below_the_floor(scale: float) -> None:
    """A trace of evidence counts as a share of the whole map, and its gradient stays bounded."""
    attribution = torch.tensor([[[1e-10, -0.6], [-0.4, 0.0]]], dtype=torch.float64) * scale
    attribution.requires_grad_()
    mask = torch.tensor([[[True, False], [True, False]]])
    loss = energy_loss(attribution, mask)
    # 1 - 1e-10 / (1e-7 * 1); all of the trace lies inside, so that without the floor it is 0.
    torch.testing.assert_close(loss, torch.tensor([0.999], dtype=torch.float64), atol=1e-9, rtol=0)
    loss.sum().backward()
    slope = torch.tensor(-1e7 / scale, dtype=torch.float64)
    torch.testing.assert_close(attribution.grad[0, 0, 0], slope, rtol=1e-2, atol=0)


def test_rrr_by_the_papers_text_divides_by_the_largest_value() -> None:
    attribution = torch.tensor([[[2.0, 1.0], [-4.0, 0.0]], [[-1.0, -2.0], [-4.0, 0.0]]])
    mask = torch.zeros(2, 2, 2)
    assert rrr_loss(attribution, mask).tolist() == [0.25 + 0.0625 + 1, 0.0625 + 0.25 + 1]
    # The second map has no positive value, and counts as 0.
    dead = attribution.clone().requires_grad_()
    found = rrr_loss(dead, mask, normalize="paper")
    assert found.tolist() == [1 + 0.25 + 4, 0]
    found.sum().backward()
    assert dead.grad is not None and not dead.grad[1].any() and dead.grad[0].any()
