"""Fixtures that every test may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import _cur_sdpa_kernel_backends
from torch.overrides import _get_current_function_mode_stack

# Last, because benchmarks/bcos.py has the name of a package that tests compare with.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_global_is_left() -> Iterator[None]:
    before = set(_cur_sdpa_kernel_backends()), len(_get_current_function_mode_stack())
    yield
    after = set(_cur_sdpa_kernel_backends()), len(_get_current_function_mode_stack())
    assert after == before, "the choice of attention kernel, or a function mode, was left behind"
