"""Random maps and masks that hold every special case, and the slow reference."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / "metrics.py"
    spec = importlib.util.spec_from_file_location("reference_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    """Eleven maps, masks and box masks of 6 x 9 in float64; the last five are special."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(11, 6, 9, generator=generator, dtype=torch.float64)
    masks = torch.rand(11, 6, 9, generator=generator) > 0.6
    boxes = torch.zeros(11, 6, 9, dtype=torch.bool)
    boxes[:, 1:5, 2:8] = True
    maps[5].abs_()
    maps[6] = -maps[6].abs()  # nothing positive
    maps[7] = 0.7  # constant
    maps[8], masks[8] = 0.0, False  # nothing at all
    masks[9] = False
    masks[10] = True
    return maps, masks, boxes
