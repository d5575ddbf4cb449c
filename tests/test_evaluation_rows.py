"""Rows as CSV, JSON and Markdown: what is written is what is read."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from explainguide.report import Result, Score, result_rows
from explainguide.tables import rows_as_csv, rows_as_json, rows_as_markdown

from .visualization.evaluation_samples import EVIL, full_page

ROWS: list[dict[str, object]] = [
    {"model": 'a, "b"\nc', "epg": 0.1 + 0.2, "count": 3, "known": True},
    {"model": "=1+1|<b>", "epg": math.nan, "loss": math.inf},
    {"model": "ü\N{EN DASH}", "epg": None, "loss": np.float32(0.5), "count": np.int64(2)},
]


def test_csv_is_read_back() -> None:
    read = list(csv.DictReader(io.StringIO(rows_as_csv(ROWS))))
    assert list(read[0]) == ["model", "epg", "count", "known", "loss"]
    assert [row["model"] for row in read] == [row["model"] for row in ROWS]
    assert [row["epg"] for row in read] == ["0.30000000000000004", "", ""]
    assert float(read[0]["epg"]) == ROWS[0]["epg"]
    assert [row["loss"] for row in read] == ["", "inf", "0.5"]
    assert [row["count"] for row in read] == ["3", "", "2"]


def test_csv_has_the_lines_of_its_standard() -> None:
    assert rows_as_csv([{"a": 1.5}, {"a": 2}]) == "a\r\n1.5\r\n2\r\n"
    assert rows_as_csv([{"a": None}]) == 'a\r\n""\r\n'
    assert rows_as_csv([]) == rows_as_csv([{}]) == ""


def test_json_is_read_back() -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(rows_as_json(ROWS), parse_constant=refuse)
    assert read == [
        {"model": 'a, "b"\nc', "epg": 0.1 + 0.2, "count": 3, "known": True},
        {"model": "=1+1|<b>", "epg": None, "loss": "Infinity"},
        {"model": "ü\N{EN DASH}", "epg": None, "loss": 0.5, "count": 2},
    ]
    assert json.loads(rows_as_json([])) == []
    assert json.loads(rows_as_json([{"x": -math.inf}])) == [{"x": "-Infinity"}]


def test_json_is_a_row_a_line() -> None:
    lines = rows_as_json(ROWS).splitlines()
    assert len(lines) == len(ROWS) + 2
    assert lines[2].startswith('  {"model": "=1+1')


def test_markdown_keeps_texts_within_their_cells() -> None:
    head, rule, *rows = rows_as_markdown(ROWS).splitlines()
    cells = [line.replace("\\|", "").count("|") for line in (head, rule, *rows)]
    assert cells == [6] * 5
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        'a, "b" c',
        r"=1+1\|&lt;b>",
        "ü\N{EN DASH}",
    ]
    assert "0.3000" in rows[0] and " - " in rows[1]
    assert rows_as_markdown([]) == ""


@pytest.mark.parametrize("mark", list("\\`*_[]~|"))
def test_markup_is_text(mark: str) -> None:
    assert f"x\\{mark}y" in rows_as_markdown([{"model": f"x{mark}y"}])


def test_results_become_rows() -> None:
    rows = result_rows(
        [
            Result(
                "a.pt",
                {"epg": Score(0.5, 0.4, 0.6, undefined=2, note="few"), "iou": Score(None)},
                "ixg",
                "layer4",
                notes=["no better than a Gaussian"],
            ),
            Result("b.pt", {"epg": Score(0.25)}),
        ]
    )
    assert rows == [
        {
            "model": "a.pt",
            "attribution": "ixg",
            "layer": "layer4",
            "epg": 0.5,
            "epg low": 0.4,
            "epg high": 0.6,
            "epg undefined": 2,
            "iou": None,
            "notes": "no better than a Gaussian; few",
        },
        {"model": "b.pt", "attribution": "", "layer": "", "epg": 0.25},
    ]


def test_the_rows_of_a_page_survive_each_form() -> None:
    rows = result_rows(full_page().results)
    read = list(csv.DictReader(io.StringIO(rows_as_csv(rows))))
    again = json.loads(rows_as_json(rows))
    assert [row["model"] for row in again] == [row["model"] for row in rows]
    assert again[-1]["model"] == read[-1]["model"] == EVIL
    for row, of_csv, of_json in zip(rows, read, again, strict=True):
        for key, value in row.items():
            if isinstance(value, float):
                expected = None if math.isnan(value) else value
                assert of_json[key] == expected
                assert (float(of_csv[key]) if of_csv[key] else None) == expected
    assert len(rows_as_markdown(rows).splitlines()) == len(rows) + 2
