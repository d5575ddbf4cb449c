"""Data sets that stream: shared out among processes and workers as the docs do it; refused by `train`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from explainguide.errors import OptionError
from explainguide.evaluation import evaluate
from explainguide.training import train

from .small_runs import QUICK, tiny

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.zeros(3, 24, 24), 0, None


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [None, 1, 4])
def test_ddp_stream_of_the_docs_gives_each_item_once(workers: int, world: int | None) -> None:
    (code,) = re.findall(
        r"(from itertools import islice\n.*?)\ndigits = ", PAGE.read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(code, names)
    stream = names["Stream"](lambda: iter(range(50)))
    seen = []
    for rank in range(world or 1):
        names["distributed"] = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: world is not None,
            get_rank=lambda rank=rank: rank,
            get_world_size=lambda: world,
        )
        for number in range(workers or 1):
            worker = SimpleNamespace(id=number, num_workers=workers) if workers else None
            names["get_worker_info"] = lambda worker=worker: worker
            seen.append(list(stream))
    assert sorted(chain.from_iterable(seen)) == list(range(50))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_a_stream_is_refused_by_what_needs_an_order(digits: Any) -> None:
    text = (
        "is a stream (Endless), without length or order. Guide a loop of your own with `collate` and "
        "`loss_loc`. Items (image, labels, annotation) by index are allowed."
    )
    with pytest.raises(OptionError) as caught:
        train(tiny(), Endless(), digits[1], QUICK)
    assert str(caught.value) == f"train: train_data {text}"
    with pytest.raises(OptionError) as caught:
        evaluate(tiny(), Endless(), layer="stage2")
    assert str(caught.value) == f"evaluate: data {text}"
