"""Images and maps that the tests of pictures share, and the check of an error's text."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from explainguide.errors import ExplainGuideError

# A call, its exception, and words of the message in their order.
Mistake = tuple[Callable[[], object], type[ExplainGuideError], list[str]]


def images(count: int = 2, height: int = 40, width: int = 60) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def bump(height: int = 40, width: int = 60) -> Tensor:
    """Positive on the left, negative on the right, zero in the middle."""
    attribution = torch.zeros(height, width)
    attribution[10:30, 5:20] = 2e-6
    attribution[10:30, 40:55] = -2e-6
    return attribution


def nan_map() -> Tensor:
    attribution = torch.zeros(40, 60)
    attribution[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    return attribution


def render(figure: Figure) -> np.ndarray:
    """The figure as (height, width, 3) in [0, 1]."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]


def check_mistake(mistake: Mistake, callables: set[str]) -> None:
    """One line that starts with the public callable and has the words."""
    call, exception, words = mistake
    with pytest.raises(ExplainGuideError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is exception
    assert "\n" not in message
    assert message.split(":")[0] in callables
    place = -1
    for part in words:
        place = message.find(part, place + 1)
        assert place >= 0, f"{part!r} is not in {message!r}, or out of order"
