"""The README and the pages of docs/: their Python runs, their commands and links exist."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple, get_origin

import pytest

from explainguide.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "api").glob("*.md"))
_FENCE = re.compile(r"^(`{3,}|:{3,})\s*(\S*)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# What fenced blocks may be. Python is executed, whatever it is called; the others are read.
LANGUAGES = {"python", "sh", "text", "diff", "", "{toctree}", "{include}", "{literalinclude}"}
LANGUAGES |= {"{eval-rst}"}


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    line: int  # of its first line of content, from 1
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence and start is None:
            closing, language, start = fence[1], fence[2], number + 1
        elif start is not None and line.strip() == closing:
            yield Block(language, start + 1, "\n".join(lines[start:number]))
            start = None
    assert start is None, f"{page.name}: the block that begins in line {start} has no end"


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if any(b.language == language for b in blocks_of(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_has_a_known_language(page: Path) -> None:
    assert {block.language for block in blocks_of(page)} <= LANGUAGES


def test_the_readme_and_the_guide_have_python() -> None:
    found = {name(page) for page in with_blocks("python")}
    guide = ("quickstart", "how_it_works", "choosing", "annotations", "training_loops", "limits")
    guide += ("recipes", "detection_datasets")
    assert {"README.md", *(f"docs/{page}.md" for page in guide)} <= found


@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks_of(page):
        if block.language != "python":
            continue
        if ">>> " in block.text:
            run_doctest(page, block, namespace)
        else:  # blank lines before it, so that a traceback names the page's own line
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)


def run_doctest(page: Path, block: Block, namespace: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(
        block.text, namespace, name(page), str(page), block.line - 1
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    runner.run(test, out=report.write, clear_globs=False)
    namespace.update(test.globs)
    assert runner.failures == 0, report.getvalue()


def commands_of(page: Path) -> Iterator[list[str]]:
    """The commands in a page's shell blocks, a line each."""
    for block in blocks_of(page):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield shlex.split(line, comments=True)


def help_of(command: str) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        assert main([command, "--help"]) == 0
    return text.getvalue()


@pytest.mark.parametrize("page", with_blocks("sh"), ids=name)
def test_commands_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands_of(page):
        options = [w.split("=")[0] for w in words if w.startswith("--")]
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[0] == "explainguide":
            assert words[1] in COMMANDS, words
            shown = help_of(words[1])
            assert all(re.search(rf"{o}\b", shown) for o in options), words
        elif words[0] == "python":
            folder = "benchmarks" if words[1].startswith("benchmarks/") else "examples"
            source = (ROOT / folder / Path(words[1]).name).read_text(encoding="utf-8")
            assert all(o.removeprefix("--") in source for o in options), words
        else:
            assert words[0] in ("pip", "cd") or "=" in words[0], words


def slug(heading: str) -> str:
    """How a heading is called in a link, by GitHub's rule."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{name(page)} links to {target}"
        if anchor:
            text = place.read_text(encoding="utf-8")
            headings = {slug(h) for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
            labels = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
            assert anchor in headings | labels, f"{name(page)} links to {target}"


PACKAGES = (
    "",
    ".attr",
    ".bcos",
    ".losses",
    ".recipes",
    ".metrics",
    ".datasets",
    ".visualization",
    ".training",
)
PACKAGES += (".xdnn", ".evaluation", ".models", ".checkpoints", ".report", ".errors")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_shows_every_public_name(package: str) -> None:
    shown = set()
    for page in PAGES:
        shown |= set(re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8")))
    module = importlib.import_module(f"explainguide{package}")
    for public in module.__all__:
        found = getattr(module, public)
        # Python 3.10 takes an alias such as Callable[..., Tensor] for a class.
        alias = get_origin(found) is not None
        if not alias and (inspect.isclass(found) or inspect.isfunction(found)):
            assert found.__module__ in shown, public
