"""Fixtures that every test may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

# Last, because benchmarks/bcos.py has the name of a package that tests compare with.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))


def attention_kernels() -> list[bool]:
    """Torch's choice of attention kernels, by names that every version has."""
    of = torch.backends.cuda
    return [
        of.flash_sdp_enabled(),
        of.mem_efficient_sdp_enabled(),
        of.math_sdp_enabled(),
        of.cudnn_sdp_enabled(),
    ]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_global_is_left() -> Iterator[None]:
    before = attention_kernels(), len(_get_current_function_mode_stack())
    yield
    after = attention_kernels(), len(_get_current_function_mode_stack())
    assert after == before, "the choice of attention kernel, or a function mode, was left behind"
