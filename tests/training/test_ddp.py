"""DistributedDataParallel in a user's own loop: two processes get the weights of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from explainguide import ExplanationGuidance

from .two_processes import Blocks, farthest, in_two, needs_gloo, train

pytestmark = needs_gloo

# Options of DistributedDataParallel, and of the loop.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it comes": ({}, {}),
    "no process has one": ({}, {"annotated": ()}),
    "one has none, fast": ({}, {"annotated": (1, 3), "fast": True}),
    "one has none, not fast": ({}, {"annotated": (1, 3), "fast": False}),
    "at the input, fast": ({}, {"layer": "input", "fast": True}),
    "two layers": ({}, {"layer": ["input", "second"]}),
    "views of the buckets": ({"gradient_as_bucket_view": True}, {"pieces": 2}),
    "looks for unused parameters": ({"find_unused_parameters": True}, {}),
    "one small bucket after another": ({"bucket_cap_mb": 1e-4}, {}),
    "no_sync": ({}, {"pieces": 2}),
    "no_sync, one has none": ({"find_unused_parameters": True}, {"pieces": 2, "annotated": (2, 4)}),
    "integrated gradients": ({}, {"attribution": "intgrad"}),
}


class Spare(Blocks):
    """With a parameter that no pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))


def build(name: str) -> nn.Module:
    unused = CASES[name][0].get("find_unused_parameters") if name in CASES else False
    return Spare() if unused else Blocks()


def work(rank: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, (how, loop) in CASES.items():
        model = build(name).double()
        found[name] = train(model, rank, wrapped=DistributedDataParallel(model, **how), **loop)
    single = Blocks()
    wrapped = DistributedDataParallel(single)
    found["float32"] = train(single, rank, wrapped=wrapped, dtype=torch.float32, steps=1)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return in_two(work, tmp_path_factory.mktemp("ddp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ddp_gives_the_weights_of_one_process(both: list[Any], name: str) -> None:
    expected = train(build(name).double(), None, **CASES[name][1])
    for found in both:
        assert farthest(found[name], expected) < 1e-12
    start = {n: p.detach() for n, p in build(name).double().named_parameters()}
    assert farthest(start, expected) > 0.1
    if CASES[name][1].get("annotated") != ():
        assert farthest(train(build(name).double(), None, lam=0.0), expected) > 1e-2


@pytest.mark.slow
def test_ddp_in_single_precision(both: list[Any]) -> None:
    """One step: more of them, as large as these, make of rounding alone 1.4e-6."""
    expected = train(Blocks(), None, dtype=torch.float32, steps=1)
    for found in both:
        assert farthest(found["float32"], expected) < 1e-6


def test_the_fast_forms_run_in_these_ddp_cases() -> None:
    guide = ExplanationGuidance(model := Blocks().double(), "input", fast=True)
    model(torch.rand(2, 3, 12, 12).double())
    guide.loss_loc([None, None], [0, 1])
    assert "conv2d" in guide.fast
