"""The front and the representative checkpoint."""

import math

import pytest
import torch

from explainguide.errors import OptionError, ShapeError
from explainguide.metrics import pareto_front, representative


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("bin", [0.005, 0.1, None])
def test_front_equals_the_incremental_reference(reference, width, bin):
    generator = torch.Generator().manual_seed(width)
    points = torch.rand(60, width, generator=generator, dtype=torch.float64)
    points[30:45] = points[:15]  # exact repeats
    rows = [tuple(row) for row in points.tolist()]
    expected = reference.pareto_front(rows, bin)
    assert pareto_front(rows, bin=bin) == expected
    assert pareto_front(points, bin=bin) == expected
    # Filtering the front again, or the front and one more point, changes nothing.
    kept = pareto_front(rows[:-1], bin=bin)
    again = pareto_front([rows[i] for i in kept] + rows[-1:], bin=bin)
    assert [[*kept, len(rows) - 1][i] for i in again] == expected


def test_half_a_bin_rounds_to_even():
    # 0.5, 1.5 and 2.5 bins go to 0, 2 and 2.
    assert pareto_front([(0.125,), (0.375,), (0.625,)], bin=0.25) == [1]


def test_equals_keep_the_earliest():
    assert pareto_front([(0.5, 0.5), (0.501, 0.499), (0.5, 0.5)]) == [0]
    assert pareto_front([(0.5, 0.5), (0.5, 0.5)], bin=None) == [0]


def test_a_diverged_checkpoint_is_not_on_the_front():
    nan = math.nan
    assert pareto_front([(0.5, nan), (0.4, 0.4), (nan, nan)]) == [1]
    assert representative([(0.8, nan), (nan, 0.9), (0.8, 0.4)], 0.8) == 2


def test_no_points():
    assert pareto_front([]) == []
    assert pareto_front(torch.zeros(0, 3)) == []
    assert representative([], 0.8) is None


def test_representative_takes_the_highest_epg_that_keeps_f1():
    points = [(0.85, 0.5, 0.1), (0.8, 0.7, 0.1), (0.7999, 0.9, 0.1), (0.9, 0.6, 0.1)]
    assert representative(points, 0.85) == 1  # exactly five points less still counts
    assert representative(torch.tensor(points, dtype=torch.float64), 0.85) == 1
    assert representative(points, 0.85, max_drop=0.06) == 2
    assert representative(points, 0.85, max_drop=0.0) == 3
    assert representative(points, 1.0) is None
    assert representative([row[::-1] for row in points], 0.85, f1=2, epg=1) == 1


@pytest.mark.parametrize("baseline", [i / 100 for i in range(5, 101)])
def test_a_drop_of_exactly_the_limit_counts(baseline):
    assert representative([(round(baseline - 0.05, 2), 0.5)], baseline) == 0
    assert representative([(round(baseline - 0.0501, 4), 0.5)], baseline) is None


def test_representative_is_on_the_exact_front():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        points = torch.rand(30, 3, generator=generator, dtype=torch.float64)
        points = (points * 8).round() / 8  # many ties
        chosen = representative(points, 0.6)
        assert chosen in pareto_front(points, bin=None)


@pytest.mark.parametrize("points", [[1.0, 2.0], [(1.0, 2.0), (1.0,)], [("a", "b")], [()], 3])
@pytest.mark.parametrize("function", [pareto_front, lambda p: representative(p, 0.5)])
def test_what_is_not_a_table_is_refused(points, function):
    with pytest.raises(ShapeError, match=r"^(pareto_front|representative): points .* one row a"):
        function(points)


def test_options_are_checked():
    with pytest.raises(OptionError, match=r"^pareto_front: bin is 0\. Use bin=None"):
        pareto_front([(1.0,)], bin=0)
    with pytest.raises(OptionError, match=r"^representative: baseline_f1 is 79\.4\. Divide"):
        representative([(79.4, 71.7)], 79.4)
    with pytest.raises(ShapeError, match=r"epg=1 but the points have 1 columns"):
        representative([(0.5,)], 0.5)
