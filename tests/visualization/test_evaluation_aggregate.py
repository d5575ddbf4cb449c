"""The figure of AggAtt has every mean map, its scale, its numbers, and says them in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from explainguide.errors import OptionError, ShapeError
from explainguide.metrics import aggregate_maps
from explainguide.visualization import aggregate_plot

from .samples import Mistake, check_mistake, render


def means(count: int = 100) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    maps = torch.randn(count, 6, 6, generator=generator)
    found = aggregate_maps(maps, torch.rand(count, generator=generator))
    return {"maps": found.maps, "counts": found.counts, "scores": found.scores}


def shown(figure, row: int, column: int) -> np.ndarray:
    return np.asarray(figure.axes[6 * row + column].images[0].get_array())


def test_one_row_a_method_and_one_column_a_bin():
    many, few = means(), means(20)  # of 20 maps none is in the first bin
    figure = aggregate_plot(
        {"ixg": many["maps"], "gradcam": few["maps"]},
        counts={"ixg": many["counts"], "gradcam": few["counts"]},
        scores={"ixg": many["scores"]},
        box=(0, 0, 2, 2),
    )
    assert len(figure.axes) == 2 * 6 + 1  # and the colour bar
    words = [text.get_text() for text in figure.texts]
    for expected in ("0 to 2%", "98 to 100%", "gradcam: 0 maps", "1 map"):
        assert expected in words
    share = f"{100 * float(many['scores'][0]):.0f}%"
    assert f"ixg: 2 maps, {share}" in words
    label = figure.get_label()
    assert label.startswith(
        "Mean maps by percentile of the score, the best 0 to 2% on the left, the cell"
    )
    assert f"ixg; 0 to 2%: 2 maps, {share};" in label
    assert "gradcam; 0 to 2%: 0 maps;" in label
    assert np.unique(shown(figure, 1, 0)).tolist() == pytest.approx([0.85])  # empty: grey
    render(figure)


def test_the_maps_of_a_method_have_one_scale():
    maps = torch.zeros(6, 2, 2)
    maps[0, 0, 0], maps[1, 0, 0] = 4.0, 2.0
    figure = aggregate_plot({"a": maps, "b": 10 * maps[[1, 0, 2, 3, 4, 5]]}, percentile=100)
    colours = {
        (row, column): tuple(shown(figure, row, column)[0, 0])
        for row in (0, 1)
        for column in (0, 1, 2)
    }
    assert colours[0, 0] == colours[1, 1]
    assert colours[0, 1] == colours[1, 0]
    assert len({colours[0, 0], colours[0, 1], colours[0, 2]}) == 3
    signed = aggregate_plot({"a": -maps}, sign="signed")
    assert tuple(shown(signed, 0, 0)[0, 0]) != tuple(shown(signed, 0, 2)[0, 0])
    plain = aggregate_plot({"a": -maps})
    assert tuple(shown(plain, 0, 0)[0, 0]) == tuple(shown(plain, 0, 2)[0, 0])


def test_arrays_are_taken_too():
    maps = means()["maps"]
    first, second = (aggregate_plot({"ixg": each}) for each in (maps, maps.numpy()))
    assert np.array_equal(shown(first, 0, 3), shown(second, 0, 3))
    assert first.get_label() == second.get_label()
    empty = aggregate_plot({"ixg": np.full((6, 2, 2), np.nan)})
    assert np.unique(shown(empty, 0, 5)).tolist() == pytest.approx([0.85])


MAPS = torch.rand(6, 4, 4)
MISTAKES: list[Mistake] = [
    (lambda: aggregate_plot({}), ShapeError, ["aggregate_plot: maps is empty. Pass the mean maps"]),
    (
        lambda: aggregate_plot({"a": MAPS[:5]}),
        ShapeError,
        [
            "maps['a'] has shape (5, 4, 4) for 6 bins. Pass one mean map a bin. It must be (B, h, w)."
        ],
    ),
    (
        lambda: aggregate_plot({"a": MAPS}, counts={"a": [1, 2]}),
        ShapeError,
        ["counts['a'] has shape (2,) for 6 bins. Pass one number a bin. It must be (B,)."],
    ),
    (
        lambda: aggregate_plot({"abc": MAPS}, scores={"abd": [0.5] * 6}),
        OptionError,
        ["scores has an unknown method 'abd'. Did you mean 'abc'? The methods are 'abc'."],
    ),
    (
        lambda: aggregate_plot({"a": torch.where(MAPS > 0.5, torch.nan, MAPS)}),
        OptionError,
        ["maps['a'] has ", "values that are NaN or infinite, in bins that are not empty."],
    ),
    (
        lambda: aggregate_plot({"a": MAPS}, sign="both"),
        OptionError,
        ["unknown sign 'both'", "'positive', 'signed' are allowed."],
    ),
    (
        lambda: aggregate_plot({"a": MAPS}, percentile=20),
        OptionError,
        ["percentile is 20. It must be in [50, 100]."],
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m[2][0][:40] for m in MISTAKES])
def test_mistakes_are_told(mistake):
    check_mistake(mistake, {"aggregate_plot"})
