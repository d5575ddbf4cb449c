"""The report page needs nothing but itself, shows text as given, and is written whole or not."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from explainguide.errors import OptionError
from explainguide.report import write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects the tags with their attributes and the text, and checks that tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def figure(label: str = "") -> Figure:
    drawing = Figure(figsize=(2, 1))
    drawing.add_subplot().plot([0, 1], [0, 1])
    drawing.set_label(label)
    return drawing


def write(path, **changes) -> str:
    content = {
        "title": "Demo",
        "summary": "First.\n\nSecond.",
        "table": [
            {"model": "unguided", "EPG": "12.3%", "epochs": 3, "note": "falls"},
            {"model": "guided", "EPG": "91.0 ± 0.3%", "epochs": None, "note": "3 of 4"},
        ],
        "figures": [("Curves.", figure("loss by epoch")), ("Maps.", figure())],
        "details": {"Command": "explainguide demo"},
    }
    return write_report(path, **{**content, **changes}).read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    html = write(tmp_path / "report.html")
    policy = html.count(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    )
    rest = html.replace("http-equiv", "")
    assert policy == 1
    assert "http" not in re.sub(r"base64,[^\"]*", "", rest)
    assert "url(" not in html
    assert "@import" not in html
    page = Page(html)
    assert not {"link", "script", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [
        value for _, tag in page.tags for key, value in tag.items() if key in ("src", "href")
    ]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    picture = base64.b64decode(sources[0].split(",")[1], validate=True)
    assert picture.startswith(b"\x89PNG")


def test_the_policy_knows_the_style_and_nothing_needs_another(tmp_path):
    html = write(tmp_path / "report.html")
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in html
    assert not any("style" in attributes for _, attributes in Page(html).tags)


def test_images_have_a_text_alternative(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    assert [image["alt"] for image in page.every("img")] == ["loss by epoch", "Maps."]


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script> & \"quoted\""
    html = write(
        tmp_path / "report.html",
        title=evil,
        summary=evil,
        table=[{evil: evil, "b": evil}],
        figures=[(evil, figure(evil)), (evil, figure())],
        details={evil: evil},
    )
    page = Page(html)
    assert page.every("script") == []
    assert [image["alt"] for image in page.every("img")] == [evil, evil]
    assert page.text.count(evil) == 10  # title twice, summary, table 3, captions 2, details 2


def test_numbers_stand_on_the_right_and_rows_are_named_by_the_first_column(tmp_path):
    html = write(tmp_path / "report.html")
    page = Page(html)
    heads = [tag for tag in page.every("th") if tag.get("scope") == "col"]
    assert [tag.get("class") for tag in heads] == [None, "number", "number", None]
    assert sum(tag.get("scope") == "row" for tag in page.every("th")) == 2
    assert [tag.get("class") for tag in page.every("td")] == ["number", "number", None] * 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
        (0.123456, "0.1235"),
        (12345.6, "12,346"),
        (1e-5, "1e-05"),
        (3, "3"),
        ("12.30%", "12.30%"),
    ],
)
def test_cells(tmp_path, value, shown):
    html = write(tmp_path / "report.html", table=[{"model": "a", "x": value}])
    assert f'<td class="number">{shown}</td>' in html


@pytest.mark.parametrize("text", ["65 s", "0.91 ± 0.02", "-0.3", "1,257", "94.1 %"])
def test_numbers_with_units_and_spreads_are_numbers(tmp_path, text):
    assert f'<td class="number">{text}</td>' in write(tmp_path / "r", table=[{"a": "", "x": text}])


@pytest.mark.parametrize("text", ["3 of 4", "layer4", "10% of the images", "."])
def test_text_with_digits_is_text(tmp_path, text):
    assert f"<td>{text}</td>" in write(tmp_path / "r", table=[{"a": "", "x": text}])


def test_a_row_may_lack_columns(tmp_path):
    html = write(tmp_path / "report.html", table=[{"m": "a", "x": 1}, {"m": "b", "y": 2}])
    assert '<tr><th scope="row">b</th><td class="number">\N{EN DASH}</td>' in html


def test_everything_but_the_title_may_be_left_out(tmp_path):
    page = Page(write_report(tmp_path / "report.html", title="Only").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags} == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
    }


def test_summary_has_paragraphs(tmp_path):
    assert len(Page(write(tmp_path / "report.html")).every("p")) == 2


def test_the_page_reads_in_the_dark_and_on_a_phone(tmp_path):
    html = write(tmp_path / "report.html")
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.html") == write(tmp_path / "b.html")


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "report.html"
    assert write_report(str(path), title="x") == path
    assert path.exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch, fails):
    path = tmp_path / "report.html"
    old = write(path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write(path, title="New")
    assert path.read_text(encoding="utf-8") == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_figure_that_cannot_be_drawn_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    old = write(path)
    broken = figure()
    monkeypatch.setattr(broken, "savefig", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(path, figures=[("x", broken)])
    assert path.read_text(encoding="utf-8") == old


def test_a_folder_is_refused_with_the_nearest_fix(tmp_path):
    with pytest.raises(
        OptionError, match=r"^write_report: path .* is a folder\. Use .*report.html"
    ):
        write_report(tmp_path, title="x")
