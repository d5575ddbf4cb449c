"""What benchmarks share, ``benchmarks/measured.py``, and the docs' tables of what they have written."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import measured
import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = {
    "step": "step_results.md",
    "cheaper": "cheaper_results.md",
    "loss": "loss_results.md",
    "amp": "amp_results.md",
    "bcos": "bcos_speed_results.md",
    "metrics": "metrics_results.md",
}


def table(rows: list[dict[str, Any]]) -> str:
    return "\n".join(["head", *(str(row) for row in rows)])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_docs_is_what_its_benchmark_makes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = ROOT / "benchmarks" / f"{name}.py"
    page = tmp_path / "page.md"
    given = ["--json", str(program.with_suffix(".json")), "--table", str(page)]
    monkeypatch.setattr("sys.argv", [str(program), *given])
    runpy.run_path(str(program))["main"]()
    assert page.read_text() == (ROOT / "docs" / PAGES[name]).read_text()


def test_what_is_written_is_read_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "new" / "found.json", tmp_path / "page.md"
    parser = measured.common_options("What it measures.", quick=True, rounds=3)
    args = parser.parse_args(["--json", str(path)])
    assert (args.quick, args.rounds) == (False, 3)
    assert not measured.write_table(args, lambda found: "")
    rows = measured.collect(({"model": name, "ratio": 1.5} for name in ("a", "b")), table)
    assert capsys.readouterr().out.splitlines() == [
        str(rows[0]),
        str(rows[1]),
        *table(rows).split("\n"),
    ]
    measured.save(args.json, rows, packages=("torch", "python", "nothing-of-this-name"), rounds=3)
    found = measured.read(path)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["nothing-of-this-name"] is None
    assert (found["device"], found["seed"], found["rounds"]) == ("cpu, one thread", 0, 3)
    assert found["rows"] == rows
    args = parser.parse_args(["--json", str(path), "--table", str(page)])
    assert measured.write_table(args, lambda found: table(found["rows"]))
    assert page.read_text() == table(rows) + "\n"
    measured.save(None, rows)  # where no file is asked for
    assert sorted(tmp_path.iterdir()) == [path.parent, page]


def test_a_table_needs_the_file_that_it_is_made_of(tmp_path: Path) -> None:
    args = measured.common_options("").parse_args(["--table", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit, match="--table needs --json"):
        measured.write_table(args, str)
    assert not list(tmp_path.iterdir())


def test_steps_take_turns_and_the_first_rounds_are_left_out() -> None:
    ran: list[str] = []
    steps = {name: lambda name=name: ran.append(name) for name in ("plain", "a", "b")}

    def clock(step: Any) -> float:
        step()
        return float(len(ran))

    times = measured.in_turns(steps, 2, clock=clock, warm=2)
    assert ran == ["plain", "a", "b", "a", "b", "plain", "b", "plain", "a", "plain", "a", "b"]
    assert times == {"plain": [8.0, 10.0], "a": [9.0, 11.0], "b": [7.0, 12.0]}
    assert measured.medians_over(times, "plain") == {
        "a": pytest.approx((9 / 8 + 11 / 10) / 2),
        "b": pytest.approx((7 / 8 + 12 / 10) / 2),
    }
