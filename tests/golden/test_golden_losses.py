"""The losses equal the authors' program, values and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.losses import LOSSES, energy_loss, l1_loss, ppce_loss
from explainguide.losses.table import resolve_loss

from .reader import boxes_to_mask, load

NAMES = {"Energy": "energy", "L1": "l1", "RRR": "rrr", "PPCE": "ppce"}
# The program's behaviour at the edges, where our default follows the maths.
PROGRAM = {"energy": partial(energy_loss, floor="absolute")}


def loss_of(name: str, *, program: bool = True):
    return PROGRAM.get(name, LOSSES[name]) if program else LOSSES[name]


def value_and_gradient(loss, attribution: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    leaf = attribution.clone().requires_grad_()
    value = loss(leaf[None], mask[None].to(leaf.dtype))[0]
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("published", NAMES)
def test_every_map_and_every_box_set(published: str) -> None:
    tensors, case = load("01_losses", "losses_16x20")
    compared = 0
    for map_name in case["maps"]:
        attribution = tensors[f"map/{map_name}"]
        for box_name, boxes in case["boxes"].items():
            expected = case["results"][f"{map_name}|{box_name}|{published}"]
            mask = boxes_to_mask(boxes, (16, 20))
            value, gradient = value_and_gradient(loss_of(NAMES[published]), attribution, mask)
            assert gradient.isfinite().all()
            if mask.sum() == 0 and published == "PPCE":
                assert value == 0  # NaN in the program
                continue
            assert float(value) == pytest.approx(expected["pp_value"], rel=1e-9, abs=1e-9), (
                map_name,
                box_name,
            )
            key = f"pp_grad/{map_name}/{box_name}/{published}"
            if key in tensors and not expected["pp_grad_has_nan"]:
                torch.testing.assert_close(
                    gradient.to(tensors[key].dtype),
                    tensors[key],
                    rtol=1e-9 if tensors[key].dtype == torch.float64 else 1e-6,
                    atol=1e-9,
                    msg=lambda m, k=key: f"{k}: {m}",
                )
                compared += 1
    assert compared > 60


def test_energy_follows_the_paper_where_the_program_has_a_floor() -> None:
    _, case = load("01_losses", "losses_16x20")
    tensors, _ = load("01_losses", "losses_16x20")
    for map_name in case["maps"]:
        for box_name, boxes in case["boxes"].items():
            paper = case["results"][f"{map_name}|{box_name}|Energy"]["paper_value"]
            if not isinstance(paper, float):
                continue
            mask = boxes_to_mask(boxes, (16, 20))
            value = energy_loss(tensors[f"map/{map_name}"][None], mask[None])
            assert float(value) == pytest.approx(1 + paper, rel=1e-9, abs=1e-9)


def test_the_papers_order_of_normalisation() -> None:
    """The text divides the signed map by its maximum. (The stored `paper_value` of L1 and PPCE divides
    by the largest magnitude, which the text does not.)"""
    tensors, case = load("01_losses", "losses_16x20")
    compared = 0
    for map_name in case["maps"]:
        attribution = tensors[f"map/{map_name}"]
        if attribution.max() <= 0:  # no positive part, and nothing to divide by
            continue
        by_the_text = (attribution / attribution.max()).clamp(min=0)
        for boxes in case["boxes"].values():
            mask = boxes_to_mask(boxes, (16, 20))
            for loss in (l1_loss, ppce_loss):
                expected = loss(by_the_text[None], mask[None], normalize=False)
                value = loss(attribution[None], mask[None], normalize="paper")
                torch.testing.assert_close(value, expected)
                compared += 1
    assert compared > 60


@pytest.mark.parametrize("published", NAMES)
def test_coarse_then_upsampled(published: str) -> None:
    tensors, case = load("01_losses", "losses_interp_4x5_to_16x20")
    _, boxes_case = load("01_losses", "losses_16x20")
    staged = resolve_loss(NAMES[published])

    def guided(attribution: Tensor, mask: Tensor) -> Tensor:
        coarse = staged.prepare(attribution)
        fine = F.interpolate(coarse[:, None], (16, 20), mode="bilinear")[:, 0]
        return staged.compare(fine, mask)

    compared = 0
    for key, expected in case["results"].items():
        map_name, box_name, name = key.split("|")
        if name != published:
            continue
        mask = boxes_to_mask(boxes_case["boxes"][box_name], (16, 20))
        value, gradient = value_and_gradient(guided, tensors[f"map/{map_name}"], mask)
        assert float(value) == pytest.approx(expected["value"], rel=1e-9)
        stored = tensors[f"pp_grad/{map_name}/{box_name}/{name}"]
        torch.testing.assert_close(gradient, stored.double(), rtol=1e-9, atol=1e-9)
        compared += 1
    assert compared == 9


@pytest.mark.parametrize("published", NAMES)
def test_a_batch_is_the_sum_over_annotated_images(published: str) -> None:
    tensors, case = load("01_losses", "losses_batch")
    maps = tensors["attributions"][:, 0]
    total = 0.0
    for attribution, boxes in zip(maps, case["bbs"], strict=True):
        if boxes is not None:
            mask = boxes_to_mask(boxes, (8, 8))
            total += float(LOSSES[NAMES[published]](attribution[None], mask[None]))
    assert total == pytest.approx(case["sum"][published], rel=1e-9)
