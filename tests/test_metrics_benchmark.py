"""``benchmarks/metrics.py`` measures metrics with and without Quantus, and writes a table of what it measured."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import metrics_quantus
import pytest
import torch

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "metrics.py"


@pytest.fixture(scope="module")
def benchmark() -> dict:
    return runpy.run_path(str(BENCHMARK))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_without_quantus_its_columns_are_empty(
    benchmark: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "quantus", None)
    path, page = tmp_path / "metrics.json", tmp_path / "page.md"
    benchmark["main"](["--quick", "--images", "2", "--json", str(path)])
    printed = capsys.readouterr().out
    assert printed.startswith("Quantus is not installed: its columns stay empty.\n")
    found = json.loads(path.read_text())
    assert [row["metric"] for row in found["rows"]] == list(benchmark["DEFINITIONS"])
    for row in found["rows"]:
        assert row["ours per s"] > 0 and row["ours"] >= 0
        assert "Quantus" not in row and row["ours over it"] is None
    # The same maps, whichever way.
    assert [row["apart"] for row in found["passes"]] == pytest.approx([0] * 4, abs=1e-5)
    benchmark["main"](["--json", str(path), "--table", str(page)])
    text = page.read_text()
    assert text.endswith(" Quantus was not installed.\n")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(lines) == 9
    assert all(line.count(" - ") == 6 for line in lines)


def test_a_row_says_whether_values_are_equal(benchmark: dict) -> None:
    row = {
        "metric": "epg",
        "images": 8,
        "ours": 0.25,
        "ours per s": 9000.0,
        "quantus per s": 1000.0,
    }
    row |= {"in Quantus": "RelevanceMassAccuracy", "its defaults": 0.5, "ours over it": 9.0}
    same, other = (benchmark["table"]([row | {"Quantus": v}]) for v in (0.25, 0.2501))
    assert "0.25 (equal)" in same and "RelevanceMassAccuracy" in same and "9000" in same
    assert "0.2501" in other and "(equal)" not in other
    broken = benchmark["table"]([row | {"Quantus": float("nan")}])
    assert "nan" in broken and "(equal)" not in broken


@pytest.mark.filterwarnings("ignore")
def test_quantus_finds_the_same_where_the_definition_is_the_same(benchmark: dict) -> None:
    package = metrics_quantus.quantus_package()
    if package is None:
        pytest.skip("Quantus is not installed")
    case = benchmark["make_case"](4, 60, 15, 4)
    ours, theirs = benchmark["own"](case), metrics_quantus.questions(package, case)
    assert set(ours) == set(theirs) == set(benchmark["DEFINITIONS"])
    for name in ("epg", "gridpg", "pointing_game", "perturbation", "deletion", "insertion"):
        assert theirs[name].value() == pytest.approx(ours[name](), rel=1e-5), name
    # Other draws of the same.
    assert theirs["sensitivity"].value() == pytest.approx(ours["sensitivity"](), rel=0.2)
