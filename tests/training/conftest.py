"""A few small images, and one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import Dataset, Subset

from explainguide.datasets import DecoyDigits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    data, test = DecoyDigits("train", size=24), DecoyDigits("test", size=24, masks=True)
    return Subset(data, range(20)), Subset(test, range(8))
