"""The pages in a real browser: no error, no request, every width, the keyboard, contrast as it is drawn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from explainguide.report import write_evaluation, write_report

from .browser import Browser, find_browser
from .evaluation_samples import full_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium on this machine"),
]

# The worst contrast of a text with what is behind it, and the text.
CONTRAST = """(() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  let worst = [99, ''];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || !e.checkVisibility() || ['title', 'desc'].includes(e.tagName)) continue;
    const style = getComputedStyle(e), drawn = e instanceof SVGElement;
    const a = light(numbers(drawn ? style.fill : style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, text]; }
  return worst; })()"""

# What has the focus: its place among all that can have it, its words, and whether that is seen.
FOCUS = """(() => {
  const e = document.activeElement, all = [...document.querySelectorAll(
    'a[href], summary, [tabindex="0"]')].filter(n => n.checkVisibility());
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  return { place: all.indexOf(e), of: all.length, words: e.innerText.slice(0, 40), id: e.id,
    seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2
      && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight }; })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    assert program is not None
    window = Browser(program, tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(full_page(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write_report` writes, with a wide figure."""
    figure = Figure(figsize=(12, 2))
    figure.add_subplot().plot([0, 1])
    path = tmp_path_factory.mktemp("plain") / "report.html"
    rows = [{"model": "guided", **{f"metric {i}": f"{i}.0%" for i in range(9)}}]
    return write_report(
        path,
        title="Plain",
        table=rows,
        figures=[("A line.", figure)],
        details={"Command": "x" * 300},
    )


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("name", ["page", "plain"])
def test_no_error_no_request_and_no_sideways_scrolling(
    browser: Browser, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    browser.open(path, width=width)
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.scripts.length") == 0
    loaded = browser.run("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert loaded and all(loaded)
    assert browser.log == []
    elsewhere = [url for url in browser.requests if not url.startswith("data:image/")]
    assert elsewhere == [path.as_uri()]


def test_what_is_wrong_is_noticed(browser: Browser, tmp_path: Path, page: Path) -> None:
    """A page that does all that the other tests look for."""
    text = page.read_text(encoding="utf-8").replace("default-src", "x-src")
    bad = '<script>console.error("x")</script><img src="a.png"><p style="width: 900px; color: #aaa">x</p>'
    (tmp_path / "bad.html").write_text(text.replace("</main>", f"{bad}</main>"), encoding="utf-8")
    browser.open(tmp_path / "bad.html", width=390)
    assert browser.log
    assert any(url.endswith("a.png") for url in browser.requests)
    browser.run("document.querySelector('main > p').style.width = '900px'")
    assert browser.run("document.documentElement.scrollWidth") > 390
    browser.run("document.querySelector('main > p').style.color = '#aaa'")
    assert browser.run(CONTRAST)[0] < 4.5


def test_the_policy_stops_what_would_slip_in(browser: Browser, tmp_path: Path, page: Path) -> None:
    bad = '<script>document.title = "run"</script><img src="a.png" alt="x"><p style="width: 900px">x</p>'
    text = page.read_text(encoding="utf-8").replace("</main>", f"{bad}</main>")
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "bad.html", width=390)
    assert browser.run("document.title") != "run"
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert len(browser.log) >= 3 and all(
        "Content Security Policy" in entry for entry in browser.log
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["page", "plain"])
def test_text_can_be_read_in_light_and_in_dark(
    browser: Browser, name: str, dark: bool, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(name), dark=dark)
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 25, 29)" if dark else "rgb(253, 253, 252)")
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    ratio, text = browser.run(CONTRAST)
    assert 4.5 <= ratio <= 21, text


def test_wide_tables_scroll_in_their_own_region_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    region = "document.querySelector('[role=region]')"
    assert browser.run(f"{region}.scrollWidth > {region}.clientWidth")
    for _ in range(40):
        browser.press("Tab")
        if browser.run(f"document.activeElement === {region}"):
            break
    browser.press("ArrowRight")
    end = time.monotonic() + 20
    while not browser.run(f"{region}.scrollLeft") and time.monotonic() < end:
        time.sleep(0.05)
    assert browser.run(f"{region}.scrollLeft") > 0
    assert browser.run("scrollX") == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_the_keyboard_reaches_everything_in_order_and_the_focus_is_seen(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width=width)
    met = []
    for _ in range(200):
        browser.press("Tab")
        focus = browser.run(FOCUS)
        if focus["place"] < 0:
            break
        met.append(focus)
    assert met[0]["words"] == "Skip to the results"
    assert [focus["place"] for focus in met] == list(range(met[0]["of"]))
    assert [focus["words"] for focus in met if not focus["seen"]] == []


def test_the_first_link_skips_to_the_results(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("Tab")
    browser.press("Enter")
    assert browser.run(FOCUS)["id"] == "results"


def test_what_is_folded_away_opens_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('details').open")


def test_a_screen_reader_is_told_of_every_picture_and_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    nodes = [n for n in browser.accessibility() if not n.get("ignored")]
    told: dict[str, list[str]] = {}
    for node in nodes:
        told.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert told["image"] and all(told["image"])
    assert told["table"] and all(told["table"])
    assert told["region"] and all(told["region"])
    assert any(name.startswith("EPG against IoU") for name in told["image"])
    assert told["heading"][0] == "VOC 2007, guided and unguided"


def test_it_prints(browser: Browser, page: Path) -> None:
    """In the colours of paper, with what is folded away."""
    browser.open(page, dark=True)
    assert browser.pdf().startswith(b"%PDF-")
    browser.print_media()
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert browser.run("document.querySelector('details figure').checkVisibility()")
    assert browser.run(CONTRAST)[0] >= 4.5
