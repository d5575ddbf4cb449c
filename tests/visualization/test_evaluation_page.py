"""The evaluation page: its figures, its pictures, what it refuses, and that everybody can read it."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from explainguide.errors import AnnotationError, ExplainGuideError, OptionError, ShapeError
from explainguide.report import (
    Bars,
    Difference,
    EvaluationPage,
    Example,
    Gallery,
    MeanMap,
    MeanMaps,
    MetricNote,
    Pareto,
    Result,
    Score,
    ShownMap,
    check_page_path,
    write_evaluation,
    write_report,
)
from explainguide.visualization import overlay
from explainguide.visualization.page_charts import bar_chart, nice_limits, pareto_chart
from explainguide.visualization.page_numbers import interval_text, range_text, value_text, verdict
from explainguide.visualization.page_pictures import as_image, where

from .evaluation_samples import EVIL, METRICS, bump, example, full_page, scene
from .html_checks import Node, colours, contrast, faults, read

SHOWN = EVIL.replace("\u202e", "\N{REPLACEMENT CHARACTER}").replace(
    "\0", "\N{REPLACEMENT CHARACTER}"
)
EPG = METRICS["epg"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_evaluation(full_page(), path).read_text(encoding="utf-8")


def small(**changes: Any) -> EvaluationPage:
    given: dict[str, Any] = {
        "title": "Small",
        "metrics": {"epg": EPG},
        "results": [Result("a", {"epg": Score(0.5)})],
    }
    return EvaluationPage(**{**given, **changes})


def write(tmp_path: Path, **changes: Any) -> Node:
    return read(write_evaluation(small(**changes), tmp_path / "r.html").read_text(encoding="utf-8"))


def cells(table: Node) -> list[list[str]]:
    """The text of each cell; lines of a cell are told apart by a stroke."""
    for line in table.every("br"):
        line.children = [" / "]
    rows = [[c for c in row.children if isinstance(c, Node)] for row in table.every("tr")]
    return [[" ".join(cell.text.split()) for cell in row] for row in rows]


def results(tmp_path: Path, *scores: Score, note: MetricNote = EPG, **changes: Any) -> list[str]:
    rows = [Result(str(i), {"epg": score}) for i, score in enumerate(scores)]
    page = write(tmp_path, results=rows, metrics={"epg": note}, **changes)
    return [row[1] for row in cells(page.every("table")[0])[1:]]


# --- Nothing but itself, and for everybody


def test_a_full_page_has_no_fault(full: str) -> None:
    assert faults(read(full)) == []


@pytest.mark.parametrize(
    ("find", "put", "fault"),
    [
        ('lang="en"', "", "no language"),
        ("<h2", "<h4", "follows one of level"),
        (' scope="row"', "", "has no scope"),
        (' tabindex="0"', "", "keyboard"),
        ('href="#made"', 'href="#nowhere"', "leads to #nowhere"),
        (re.compile('alt="[^"]*"'), 'alt=""', "image has no text"),
        (re.compile("<desc.*?</desc>"), "", "drawing has no text"),
        ('id="made"', 'id="results"', "twice"),
    ],
)
def test_a_fault_is_found(full: str, find: Any, put: str, fault: str) -> None:
    broken = full.replace(find, put) if isinstance(find, str) else find.sub(put, full)
    if "h2" in str(find):
        broken = broken.replace("</h2>", "</h4>")
    assert any(fault in found for found in faults(read(broken)))


def test_the_page_loads_and_runs_nothing(full: str) -> None:
    page = read(full)
    assert {node.tag for node in page.every("*")}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "form", "base", "a[href^=http]"}
    )
    for node in page.every("*"):
        assert not any(name.startswith("on") for name in node.attributes)
        assert "style" not in node.attributes
        for key in ("src", "href"):
            link = node.attributes.get(key)
            assert link is None or re.match(r"#|data:image/(webp|jpeg);base64,", link)
    style = page.every("style")[0].text
    assert "url(" not in style and "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = page.every("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def test_hostile_names_stay_text(full: str) -> None:
    page = read(full)
    assert len(page.every("title")) == 1 + len(page.every("svg", role="img"))
    assert all((i.attributes["src"] or "").startswith("data:") for i in page.every("img"))
    shown = [node.text for node in page.every("bdi")]
    assert shown.count(SHOWN) >= 6
    assert any(SHOWN in (image.attributes["alt"] or "") for image in page.every("img"))
    assert "\u202e" not in full and "\0" not in full


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    page = write(tmp_path, skipped={name: ""}, provenance={"Data": name})
    assert "caf\N{REPLACEMENT CHARACTER}.jpg" in page.text


def test_colours_can_be_told_apart(full: str) -> None:
    """AA of WCAG 2.2: 4.5 for text, 3 for what is drawn and for the focus."""
    style = read(full).every("style")[0].text
    found = colours(style)
    assert found["light"] != found["dark"]
    for which, colour in found.items():
        paper = colour["--paper"]
        for text in ("--ink", "--soft", "--good", "--link"):
            assert contrast(colour[text], paper) >= 4.5, (which, text)
        for text in ("--ink", "--soft"):
            assert contrast(colour[text], colour["--tint"]) >= 4.5, (which, text)
        for drawn in ("--bar-0", "--bar-1", "--bar-2", "--bar-3", "--focus"):
            assert contrast(colour[drawn], paper) >= 3, (which, drawn)
    used = set(re.findall(r"(?<![-\w])color: ([^;]+);", style))
    assert used <= {"var(--ink)", "var(--soft)", "var(--good)", "var(--link)"}


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)


def test_nothing_moves(full: str) -> None:
    style = read(full).every("style")[0].text
    assert not re.search("animation|transition|scroll-behavior", style)


def test_a_page_has_the_sections_that_it_has_something_for(tmp_path: Path) -> None:
    page = write(tmp_path)
    assert [node.text for node in page.every("h2")] == ["Results", "What the metrics mean"]
    assert faults(page) == []
    assert [
        node.text
        for node in read(
            write_evaluation(full_page(), tmp_path / "full.html").read_text(encoding="utf-8")
        ).every("h2")
    ] == [
        "Results",
        "Differences",
        "What the metrics mean",
        "What is not shown",
        "Trade-offs",
        "Methods by layer",
        "Classes and groups",
        "Mean maps",
        "Images and maps",
        "How this was made",
    ]


def test_the_same_page_gives_the_same_bytes(full: str, tmp_path: Path) -> None:
    path = write_evaluation(full_page(), tmp_path / "again.html")
    assert path.read_text(encoding="utf-8") == full


# --- Figures


def test_a_figure_has_its_interval_and_what_is_undefined(tmp_path: Path) -> None:
    shown = results(
        tmp_path,
        Score(0.12345, 0.1, 0.15),
        Score(None, undefined=3, total=3),
        Score(math.nan),
        Score(0.5, undefined=1234),
        Score(0.25, math.nan, math.nan, note="on 5 images"),
    )
    assert shown == [
        "12.3% / [10.0, 15.0]",
        "\N{EN DASH} / 3 of 3 undefined",
        "\N{EN DASH}",
        "50.0% best / 1,234 undefined",
        "25.0% / on 5 images",
    ]


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("higher", [0.1, 0.3, 0.2], [1]),
        ("lower", [0.1, 0.3, 0.2], [0]),
        ("higher", [0.3, 0.3, 0.2], [0, 1]),
        ("higher", [0.3, 0.3, 0.3], []),
        ("neither", [0.1, 0.3, 0.2], []),
        ("lower", [math.nan, 0.3, None], []),
        ("lower", [math.nan, 0.3, 0.2], [2]),
    ],
)
def test_the_best_is_marked_in_words(
    tmp_path: Path, better: Any, values: list[float], best: list[int]
) -> None:
    shown = results(tmp_path, *map(Score, values), note=replace(EPG, better=better))
    assert [i for i, text in enumerate(shown) if text.endswith("best")] == best


def test_a_reference_that_is_the_best_is_marked(tmp_path: Path) -> None:
    rows = [
        Result("net", {"epg": Score(0.2)}),
        Result("Gaussian", {"epg": Score(0.4)}, reference=True),
    ]
    table = cells(write(tmp_path, results=rows).every("table")[0])
    assert table[1:] == [["net", "20.0%"], ["Gaussian / for reference", "40.0% best"]]


def test_notes_of_a_row_are_read_with_it(full: str) -> None:
    (item,) = [i for i in read(full).every("li") if "Gaussian" in i.text]
    assert item.text == (
        "unguided.safetensors · ixg · layer4: its EPG does not beat a centred Gaussian, 39.6% against "
        "41.0%."
    )


def test_a_metric_says_what_it_means_its_range_and_its_direction(full: str) -> None:
    lists = read(full).every("dl")[0]
    told = dict(
        zip([n.text for n in lists.every("dt")], [n.text for n in lists.every("dd")], strict=True)
    )
    assert told["Deletion"] == f"{METRICS['deletion'].meaning} (0% to 100%; lower is better)"
    assert told["Shift"] == "Distance between two maps, in pixels. (0 or more)"
    heads = cells(read(full).every("table")[0])[0]
    assert heads[1:] == [
        "EPG / higher is better",
        "IoU / higher is better",
        "Deletion / lower is better",
        "Shift",
    ]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (None, None, "any number; higher is better"),
        (-1.0, 1.0, "\N{MINUS SIGN}1 to 1; higher is better"),
        (None, 0.0, "0 or less; higher is better"),
    ],
)
def test_ranges(low: float | None, high: float | None, text: str) -> None:
    assert range_text(MetricNote("x", "x", low=low, high=high, percent=False)) == text


@pytest.mark.parametrize(
    ("value", "percent", "short", "text"),
    [
        (0.12345, True, False, "12.3%"),
        (-0.2, True, False, "\N{MINUS SIGN}20.0%"),
        (0.25, True, True, "25%"),
        (0.125, True, True, "12.5%"),
        (1234.5678, False, False, "1235"),
        (-3.0, False, True, "\N{MINUS SIGN}3"),
        (None, True, False, "\N{EN DASH}"),
    ],
)
def test_values(value: float | None, percent: bool, short: bool, text: str) -> None:
    assert value_text(value, replace(EPG, percent=percent), short=short) == text


@pytest.mark.parametrize(
    ("low", "high", "percent", "signed", "text"),
    [
        (0.1, 0.25, True, False, "[10.0, 25.0]"),
        (-0.1, 0.25, True, True, "[\N{MINUS SIGN}10.0, +25.0]"),
        (0.06078, 0.1208, False, False, "[0.0608, 0.121]"),
        (-12345.6, 12345.6, False, True, "[\N{MINUS SIGN}12,346, +12,346]"),
        (-1e-7, 1e-7, False, False, "[\N{MINUS SIGN}1e-07, 1e-07]"),
        (None, 0.1, True, False, ""),
        (math.nan, math.nan, True, False, ""),
    ],
)
def test_intervals(low: Any, high: Any, percent: bool, signed: bool, text: str) -> None:
    assert (
        interval_text(Score(0.2, low, high), replace(EPG, percent=percent), signed=signed) == text
    )


@pytest.mark.parametrize(
    ("low", "high", "better", "says"),
    [
        (0.1, 0.2, "higher", "better"),
        (0.1, 0.2, "lower", "worse"),
        (-0.2, -0.1, "higher", "worse"),
        (-0.2, -0.1, "lower", "better"),
        (-0.1, 0.1, "higher", "not clear"),
        (0.0, 0.1, "higher", "not clear"),
        (0.1, 0.2, "neither", "more"),
        (-0.2, -0.1, "neither", "less"),
        (None, None, "higher", ""),
        (math.nan, math.nan, "higher", ""),
    ],
)
def test_what_a_difference_says(low: Any, high: Any, better: Any, says: str) -> None:
    assert verdict(Score(0.0, low, high), replace(EPG, better=better)) == says


def test_differences(full: str) -> None:
    table = read(full).every("table")[1]
    assert cells(table) == [
        ["rows", "images", "EPG", "IoU", "Deletion", "Shift"],
        [
            "guided.safetensors · ixg · layer4 / less unguided.safetensors · ixg · layer4",
            "2,510",
            "+10.5 points / [+9.1, +11.9] / better",
            "+7.5 points / [\N{MINUS SIGN}0.2, +15.2] / not clear",
            "+1.1 points / [+0.4, +1.8] / worse",
            "\N{MINUS SIGN}0.75 / [\N{MINUS SIGN}0.9, \N{MINUS SIGN}0.6] / less",
        ],
    ]


def test_methods_by_layer(full: str) -> None:
    (table,) = [t for t in read(full).every("table") if "by layer" in t.every("caption")[0].text]
    assert cells(table)[0] == ["method", "input", "layer2", "layer4"]
    assert cells(table)[2] == ["GradCAM", "30.0%", "33.0%", "36.0%"]


def test_skipped_images_are_named(full: str) -> None:
    (folded,) = [d for d in read(full).every("details") if "skipped" in d.text]
    assert folded.every("summary")[0].text == "3 images were skipped"
    assert [item.text for item in folded.every("li")] == [
        "2007_000123.jpg: cannot be read (image file is truncated)",
        f"{SHOWN}: {SHOWN}",
        "b.jpg",
    ]


# --- Charts


def test_bars_are_as_long_as_their_values() -> None:
    rows = {
        "a": {"net": Score(0.2)},
        "b": {"net": Score(0.4, 0.3, 0.45)},
        "c": {"net": Score(None)},
    }
    table = read(bar_chart(Bars("By class", "epg", rows), EPG)).every("table")[0]
    assert cells(table)[0] == ["name", "0% to 60%", "EPG"]
    assert [row[0] for row in cells(table)[1:]] == ["a", "b", "c"]
    assert [row[-1] for row in cells(table)[1:]] == ["20.0%", "40.0% / [30.0, 45.0]", "\N{EN DASH}"]
    bars = [node.attributes for node in table.every("rect")]
    assert [(b["x"], b["width"]) for b in bars] == [("0.0%", "33.33%"), ("0.0%", "66.67%")]
    (whisker,) = table.every("line", class_="whisker")
    assert (whisker.attributes["x1"], whisker.attributes["x2"]) == ("50.0%", "75.0%")


def test_negative_bars_end_at_zero() -> None:
    metric = MetricNote("Gain", "x", low=-1, percent=False)
    chart = bar_chart(Bars("x", "gain", {"a": {"n": Score(-0.5)}, "b": {"n": Score(0.5)}}), metric)
    bars = [node.attributes for node in read(chart).every("rect")]
    assert [(b["x"], b["width"]) for b in bars] == [("0.0%", "50.00%"), ("50.0%", "50.00%")]


def test_a_class_with_several_bars_is_one_group() -> None:
    rows = {"a": {"before": Score(0.2), "after": Score(0.3)}}
    table = read(bar_chart(Bars("x", "epg", rows), EPG)).every("table")[0]
    assert [row[:2] for row in cells(table)] == [["name", "of"], ["a", "before"], ["after", ""]]
    (head,) = table.every("th", scope="rowgroup")
    assert head.attributes["rowspan"] == "2"


@pytest.mark.parametrize("low", [-123.4, -1.0, 0.0, 0.031, 5e-9, 70000.0])
@pytest.mark.parametrize("span", [0.0, 3e-10, 0.004, 0.33, 1.0, 77.7, 1e6])
def test_axes_hold_their_values(low: float, span: float) -> None:
    free = MetricNote("x", "x", low=None, high=None)
    start, end = nice_limits([low, low + span], free, from_zero=False)
    room = 1e-9 * (end - start) + 1e-15 * abs(low)
    assert start - room <= low and low + span <= end + room
    assert end - start <= max(2.1 * span, 1.3 * max(abs(low), 1.0))


def test_axes_end_where_the_metric_ends() -> None:
    assert nice_limits([0.02, 0.99], EPG, from_zero=False) == (0.0, 1.0)
    assert nice_limits([], EPG, from_zero=False) == (0.0, 1.0)


def plot(points: dict[str, tuple[float, float]], **options: Any) -> Node:
    return read(pareto_chart(Pareto("iou", "epg", points, **options), METRICS["iou"], EPG, 0))


def test_points_stand_where_their_values_are() -> None:
    drawn = plot({"a": (0.2, 0.4), "b": (0.3, 0.4), "c": (0.25, 0.5)}, front=["b", "c"])
    a, b, c = (
        (float(n.attributes["cx"] or 0), float(n.attributes["cy"] or 0))
        for n in drawn.every("circle")
    )
    assert a[0] < c[0] < b[0] and c[0] == pytest.approx((a[0] + b[0]) / 2, abs=0.1)
    assert a[1] == b[1] > c[1]
    (line,) = drawn.every("polyline")
    assert line.attributes["points"] == f"{c[0]},{c[1]} {b[0]},{b[1]}"
    assert [n.attributes["class"] for n in drawn.every("circle")] == [
        *("off-front", "on-front", "on-front"),
    ]
    assert cells(drawn.every("table")[0]) == [
        ["point", "IoU", "EPG", "front"],
        ["1: a", "20.0%", "40.0%", ""],
        ["2: b", "30.0%", "40.0%", "on it"],
        ["3: c", "25.0%", "50.0%", "on it"],
    ]


def test_an_undefined_point_is_in_the_table_alone() -> None:
    drawn = plot({"a": (0.2, math.nan), "b": (0.3, 0.4)})
    assert [n.text for n in drawn.every("text", class_="name")] == ["2"]
    assert cells(drawn.every("table")[0])[1] == ["1: a", "20.0%", "\N{EN DASH}"]


def test_numbers_of_near_points_do_not_lie_on_each_other() -> None:
    points = {str(i): (0.3 + 0.002 * (i % 3), 0.4 + 0.002 * (i // 3)) for i in range(6)}
    names = plot({**points, "far": (0.9, 0.9), "low": (0.0, 0.0)}).every("text", class_="name")
    places = [(float(n.attributes["x"] or 0), float(n.attributes["y"] or 0)) for n in names]
    assert min(math.dist(p, q) for i, p in enumerate(places) for q in places[:i]) > 5


# --- Pictures


def pixels(image: Node) -> np.ndarray:
    data = base64.b64decode((image.attributes["src"] or "").partition(",")[2])
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")) / 255


def gallery(tmp_path: Path, *examples: Example, **changes: Any) -> Node:
    given: dict[str, Any] = {"kind": "best", "metric": "epg", "examples": examples, **changes}
    return write(tmp_path, galleries=[Gallery(**given)])


@pytest.mark.parametrize("sign", ["positive", "signed"])
def test_an_example_is_its_image_and_the_overlay(tmp_path: Path, sign: Any) -> None:
    shown = ShownMap("net", bump(0.2, 0.8), 0.42)
    page = gallery(tmp_path, example(3, shown, name="x.jpg"), sign=sign)
    image, overlaid = page.every("figure")[0].every("img")
    expected = torch.from_numpy(scene(3)).permute(2, 0, 1) / 255
    assert np.abs(pixels(image) - expected.permute(1, 2, 0).numpy()).mean() < 0.03
    drawn = overlay(expected, torch.from_numpy(bump(0.2, 0.8)), sign=sign, grey=True)
    assert np.abs(pixels(overlaid) - drawn.permute(1, 2, 0).numpy()).mean() < 0.03
    assert image.attributes["alt"] == "x.jpg, boat; 1 box outlined"
    assert (
        overlaid.attributes["alt"]
        == "Map of net on x.jpg, boat: strongest at the lower left, EPG 42.0%"
    )
    rects = page.every("figure")[0].every("rect", class_="light")
    assert [r.attributes[k] for r in rects for k in ("x", "y", "width", "height")] == [
        *("128", "30", "128", "130"),
    ] * 2
    assert page.every("svg", class_="boxes")[0].attributes["viewbox"] == "0 0 320 240"


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array,
        lambda array: array.astype(np.float32) / 255,
        PIL.Image.fromarray,
        lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255,
        lambda array: PIL.Image.fromarray(array).convert("RGBA"),
    ],
)
def test_images_of_any_form_are_the_same(form: Any) -> None:
    array = scene(1)
    expected = torch.from_numpy(array).permute(2, 0, 1) / 255
    assert torch.allclose(as_image("image", form(array)), expected, atol=1e-6)


def test_large_images_are_made_small_and_boxes_keep_their_place(tmp_path: Path) -> None:
    large = Example(
        np.repeat(np.repeat(scene(0), 4, 0), 4, 1),
        "large.png",
        "boat",
        [ShownMap("", bump(0.5, 0.5))],
        torch.tensor([[0.0, 0.0, 1280.0, 960.0]]),
    )
    page = gallery(tmp_path, large)
    assert pixels(page.every("figure")[0].every("img")[0]).shape == (240, 320, 3)
    assert page.every("svg", class_="boxes")[0].attributes["viewbox"] == "0 0 1280 960"


@pytest.mark.parametrize(
    ("across", "down", "words"),
    [
        (0.1, 0.1, "strongest at the upper left"),
        (0.5, 0.5, "strongest at the centre"),
        (0.9, 0.5, "strongest at the right"),
        (0.5, 0.9, "strongest at the lower"),
    ],
)
def test_where_a_map_is_strongest(across: float, down: float, words: str) -> None:
    assert where(torch.from_numpy(bump(across, down)), "positive").startswith(words)


def test_a_map_without_a_positive_part_says_so() -> None:
    assert where(-torch.ones(3, 3), "positive") == "no positive attribution"
    assert where(-torch.eye(3)[:, :1].expand(3, 3), "signed") == "strongest at the upper left"
    assert where(torch.zeros(3, 3), "signed") == "no attribution"


def test_many_examples_are_folded_away(tmp_path: Path) -> None:
    page = gallery(tmp_path, *(example(i) for i in range(10)))
    assert len(page.every("figure")) == 10
    (folded,) = page.every("details")
    assert folded.every("summary")[0].text == "2 more of these: best images"
    assert [f.every("bdi")[0].text for f in folded.every("figure")] == [
        *("2007_000008.jpg", "2007_000009.jpg"),
    ]


def test_before_and_after_stand_side_by_side(full: str) -> None:
    (figure, *_) = [f for f in read(full).every("figure") if "2007_000040.jpg" in f.text]
    assert [p.text for p in figure.every("p")] == [
        "image",
        "unguided: EPG 21.0%",
        "guided: EPG 83.0%",
    ]


def test_a_grid_says_that_a_cell_is_outlined(full: str) -> None:
    (image, *_) = [i for i in read(full).every("img") if "grid 0" in (i.attributes["alt"] or "")]
    assert image.attributes["alt"] == "grid 0, bird; the cell of the class outlined"


def test_mean_maps_have_their_counts(full: str) -> None:
    (bins,) = read(full).every("div", class_="bins")
    assert [p.text for p in bins.every("p")] == [
        "0 to 2%: 50 maps",
        "2 to 5%: 75 maps",
        "5 to 50%: 1,130 maps",
        "50 to 95%: 1,130 maps",
        "95 to 98%: 1 map",
        "98 to 100%: no map",
    ]
    assert len(bins.every("img")) == 5
    assert (
        bins.every("img")[0].attributes["alt"] == "Mean of 50 maps, 0 to 2%: strongest at the left"
    )


# --- What is refused


def refused(**changes: Any) -> Any:
    return lambda: small(**changes)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (
            refused(results=[]),
            ShapeError,
            "EvaluationPage: got 0 results and 1 metrics. Pass at least one of each.",
        ),
        (
            refused(results=[Result("a", {"epgs": Score(0.5)})]),
            OptionError,
            "EvaluationPage: unknown metric 'epgs'. Did you mean 'epg'? 'epg' are allowed.",
        ),
        (
            refused(bars=[Bars("x", "iou", {})]),
            OptionError,
            "EvaluationPage: unknown metric 'iou'. 'epg' are allowed.",
        ),
        (
            refused(trade_offs=[Pareto("epg", "f1", {})]),
            OptionError,
            "EvaluationPage: unknown metric 'f1'. 'epg' are allowed.",
        ),
        (
            refused(results=[Result("a", {}, "ixg"), Result("a", {}, "ixg")]),
            OptionError,
            "EvaluationPage: results has 'a · ixg' twice. Give the models names of their own. Model, "
            "attribution and layer together must name one row.",
        ),
        (
            refused(differences=[Difference("a", "aa", {}, 3)]),
            OptionError,
            "EvaluationPage: differences has an unknown row 'aa'. Did you mean 'a'? The rows are 'a'.",
        ),
        (
            refused(trade_offs=[Pareto("epg", "epg", {"run": (0.1, 0.2)}, front=["runn"])]),
            OptionError,
            "EvaluationPage: a front has 'runn', which is no point. Did you mean 'run'? The points are "
            "'run'.",
        ),
        (
            refused(metrics={"epg": MetricNote("EPG", "x", better="up")}),  # type: ignore[arg-type]
            OptionError,
            "EvaluationPage: unknown direction of metrics['epg'] 'up'. 'higher', 'lower', 'neither' are "
            "allowed.",
        ),
        (
            refused(galleries=[Gallery("bets", "epg", [])]),  # type: ignore[arg-type]
            OptionError,
            "EvaluationPage: unknown kind of gallery 'bets'. Did you mean 'best'? 'grid', 'best', "
            "'worst', 'before_after' are allowed.",
        ),
        (
            refused(confidence=95),
            OptionError,
            "EvaluationPage: confidence is 95. Did you mean 0.95? A number above 0 is allowed.",
        ),
    ],
)
def test_a_page_that_cannot_be_is_refused_when_it_is_built(
    call: Any, exception: type[ExplainGuideError], message: str
) -> None:
    with pytest.raises(exception) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "exception", "message"),
    [
        (
            {"image": scene(0).transpose(2, 0, 1)},
            ShapeError,
            "image has shape (3, 240, 320). Pass image.transpose(1, 2, 0). An array must be (H, W, 3).",
        ),
        (
            {"image": np.zeros((8, 8, 4))},
            ShapeError,
            "image has shape (8, 8, 4). Pass image[..., :3]. An array must be (H, W, 3).",
        ),
        (
            {"image": np.zeros((8, 8))},
            ShapeError,
            "image has shape (8, 8). Pass PIL.Image.fromarray(image). An array must be (H, W, 3).",
        ),
        (
            {"image": np.full((8, 8, 3), 2.5)},
            OptionError,
            "image ranges from 2.5 to 2.5. Undo the normalisation with image * std + mean. It must be in "
            "[0, 1].",
        ),
        (
            {"maps": [ShownMap("", np.full((2, 2), np.nan))]},
            OptionError,
            "maps[0].attribution has 4 of 4 values that are NaN or infinite. Find the layer with "
            "ExplanationGuidance.check. A map must be finite.",
        ),
        (
            {"maps": [ShownMap("", np.zeros((2, 2, 2)))]},
            ShapeError,
            "maps[0].attribution has shape (2, 2, 2). Sum over channels first. It must be (h, w).",
        ),
        (
            {"boxes": np.array([[9.0, 9.0, 2.0, 2.0]])},
            AnnotationError,
            "boxes has the box [9.0, 9.0, 2.0, 2.0]. Convert it if it is x, y, width, height. Boxes must "
            "be finite, x1 <= x2 and y1 <= y2.",
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_named_and_nothing_is_written(
    tmp_path: Path, changes: Any, exception: type[ExplainGuideError], message: str
) -> None:
    bad = replace(example(1), **changes)
    with pytest.raises(exception) as caught:
        gallery(tmp_path, example(0), bad)
    assert str(caught.value) == f"write_evaluation: galleries[0].examples[1].{message}"
    assert list(tmp_path.iterdir()) == []


def test_a_mean_map_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    bad = MeanMaps("a", "epg", [MeanMap("0 to 2%", 3, np.zeros(5))])
    with pytest.raises(
        ShapeError, match=r"^write_evaluation: mean_maps\[0\]\.bins\[0\]\.attribution has"
    ):
        write(tmp_path, mean_maps=[bad])


# --- Where it is written


@pytest.mark.parametrize("ask", [check_page_path, lambda path: write_evaluation(small(), path)])
def test_a_file_of_somebody_elses_is_kept(tmp_path: Path, ask: Any) -> None:
    path = tmp_path / "notes.html"
    path.write_text("mine")
    with pytest.raises(OptionError) as caught:
        ask(path)
    assert re.fullmatch(
        rf"(check_page_path|write_evaluation): path '{re.escape(str(path))}' is there and is no page of "
        rf"explainguide\. Use '.*notes-new\.html', or say overwrite=True\. A new file, or an earlier "
        r"page, is allowed\.",
        str(caught.value),
    )
    assert path.read_text() == "mine"


def test_a_file_of_somebody_elses_is_replaced_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.html"
    path.write_text("mine")
    assert check_page_path(str(path), overwrite=True) == path
    write_evaluation(small(), path, overwrite=True)
    assert "Small" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("first", [write_evaluation, None])
def test_an_earlier_page_is_replaced(tmp_path: Path, first: Any) -> None:
    path = tmp_path / "a" / "report.html"
    if first is None:
        write_report(path, title="Earlier")
    else:
        first(small(title="Earlier"), path)
    assert write_evaluation(small(), path) == path
    assert "Earlier" not in path.read_text(encoding="utf-8")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"^check_page_path: path .* is a folder\. Use .*report\.html"
    ):
        check_page_path(tmp_path, overwrite=True)


def test_a_failure_leaves_the_old_page_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_evaluation(small(title="Old"), tmp_path / "r.html")

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_evaluation(small(title="New"), path)
    assert "Old" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]
