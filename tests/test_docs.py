"""The README and the pages of docs/: their Python runs, their commands and links exist."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import pkgutil
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, get_origin

import pytest
import torch

import explainguide
from explainguide import RECIPES, metrics
from explainguide.attr import ATTRIBUTIONS
from explainguide.cli import COMMANDS, main
from explainguide.datasets import DATASETS
from explainguide.losses import LOSSES

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
    guide += ("recipes", "detection_datasets", "extending", "architecture")
    assert {"README.md", *(f"docs/{page}.md" for page in guide)} <= found


@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks_of(page):
        if block.language != "python":
            continue
        if "guide.compile()" in block.text and torch.__version__ < "2.5":
            continue  # PyTorch 2.4 compiles no single modules, as the page says
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


@cache
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
        elif words[0] in ("accelerate", "torchrun"):
            if "explainguide" in words:
                command, *rest = words[words.index("explainguide") + 1 :]
                shown = help_of(command)
                assert all(re.search(rf"{o}\b", shown) for o in rest if o.startswith("--")), words
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
PACKAGES += (".studies", ".xdnn", ".evaluation", ".models", ".checkpoints", ".report", ".errors")


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


# --- Names in back-ticks

# Tables that programs write name other packages' models.
NAMED = [page for page in PAGES if not page.name.endswith("_results.md")]
NAMED.remove(ROOT / "CHANGELOG.md")  # it names what has been, too
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_CLASS = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z]+[a-z0-9]*)+|[A-Z]{2,}[a-z]\w+")
# Where a name that is not ours may come from.
OTHERS = (
    "builtins",
    "accelerate",
    "argparse",
    "captum.attr",
    "copy",
    "functools",
    "timm.layers",
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.parallel",
    "torch.utils.data",
    "torchvision.datasets",
    "torchvision.transforms.v2",
    "torchvision.tv_tensors",
    "warnings",
)
# And what is in none of these: a name, and whose it is.
FOREIGN = {
    "ImageSets": "a folder of VOC",
    "single_train": "a list in it, in the comparison",
    "single_test": "the same",
    "image_id": "a key of COCO",
    "vit_relpos": "a family of timm",
    "backward": "a method of tensors",
    "average_precision_score": "scikit-learn",
    "collate_fn": "DataLoader",
    "inplace": "nn.ReLU",
    "once_differentiable": "torch.autograd",
    "recompile_limit": "torch._dynamo.config",
    "trace_autograd_ops": "torch._dynamo.config",
    "custom_op": "torch.library",
    "register_autograd": "torch.library",
    "fullgraph": "torch.compile",
    "static_graph": "DistributedDataParallel",
    "use_reentrant": "torch.utils.checkpoint",
    "fully_shard": "torch.distributed.fsdp",
    "FullyShardedDataParallel": "torch.distributed.fsdp, the first",
    "MixedPrecisionPolicy": "torch.distributed.fsdp",
    "reshard_after_forward": "fully_shard",
    "set_requires_gradient_sync": "a method of what it has cut",
    "set_reshard_after_backward": "likewise",
    "reshard": "likewise",
    "gradient_as_bucket_view": "DistributedDataParallel",
    "find_unused_parameters": "DistributedDataParallel",
    "no_sync": "its method",
    "--num_processes": "accelerate launch",
    "--multi_gpu": "accelerate launch",
    "--rdzv-endpoint": "torchrun",
    "savefig": "Matplotlib",
    "merge_and_unload": "PEFT",
    "target_type": "torchvision's Cityscapes",
    "target_keys": "wrap_dataset_for_transforms_v2",
    "train_one_epoch": "torchvision's reference script",
    "--sync-bn": "an option of that script",
    "training_step": "Lightning",
    "on_before_backward": "Lightning",
    "compute_loss": "Transformers' Trainer",
    "remove_unused_columns": "Transformers' Trainer",
    "grad_kwargs": "Captum",
}


def spans_of(page: Path) -> list[str]:
    """The code in a page's text, outside of its blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks_of(page):
        for number in range(block.line - 2, block.line + len(block.text.splitlines())):
            lines[number] = ""
    return [" ".join(found.split()) for found in _SPAN.findall("\n".join(lines))]


@cache
def modules_of_ours() -> tuple[ModuleType, ...]:
    found = pkgutil.walk_packages(explainguide.__path__, "explainguide.")
    return (
        explainguide,
        *(importlib.import_module(m.name) for m in found if "__main__" not in m.name),
    )


@cache
def names_of_ours() -> frozenset[str]:
    """Public names, their parameters, methods and attributes, and the entries of tables."""
    names = {*ATTRIBUTIONS, *LOSSES, *RECIPES, *COMMANDS, *DATASETS, *metrics.MAP_METRICS}
    for module in modules_of_ours():
        for public in getattr(module, "__all__", ()):
            found = getattr(module, public)
            names.add(public)
            members = [found]
            if inspect.isclass(found):
                own = {n for n in dir(found) if not n.startswith("_")} | set(
                    getattr(found, "__annotations__", ())
                )
                names |= own
                # What a class sets in its constructor is told under Attributes.
                names |= set(re.findall(r"^ +(\w+): ", inspect.getdoc(found) or "", re.MULTILINE))
                members += [getattr(found, n, None) for n in own]
            for member in members:
                if callable(member):
                    with suppress(ValueError, TypeError):
                        names |= set(inspect.signature(member).parameters)
    return frozenset(names)


def is_others(name: str) -> bool:
    return name in FOREIGN or any(hasattr(importlib.import_module(m), name) for m in OTHERS)


def resolves(dotted: str) -> bool:
    """Whether a name such as ``explainguide.attr.GradCam`` leads to something."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[end:])
    return False


def unknown_names(text: str) -> list[str]:
    """Names in a piece of code that neither this package nor another one has.

    Looked at are dotted names of ours, names written like a class, names before a bracket, words with an
    underscore, keyword arguments, and options of the command line; not what stands in quotes.
    """
    text = re.sub(r"\"[^\"]*\"|'[^']*'", "''", text)
    dotted = re.findall(r"\bexplainguide(?:\.\w+)+", text)
    wrong = [name for name in dotted if not resolves(name)]
    for name in dotted:
        text = text.replace(name, "")
    options = re.findall(r"(?<!\S)(--[a-z][\w-]*)", text)
    wrong += [option for option in options if not is_option(option)]
    text = re.sub(r"(?<!\S)--[a-z][\w-]*", "", text)
    if re.search(r"\.(md|py|csv|pt|pth|toml|cfg|json|safetensors)\b|/", text):
        return wrong  # a file, or one of timm's or torch's own programs
    names = [n for n in re.findall(r"\w+", text) if _CLASS.fullmatch(n)]
    names += re.findall(r"\b([A-Za-z_]\w*)\(", text)
    names += re.findall(r"\b([a-z]\w*)=(?!=)", text)
    names += re.findall(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b", text)
    return wrong + [
        n for n in dict.fromkeys(names) if n not in names_of_ours() and not is_others(n)
    ]


def is_option(option: str) -> bool:
    if option in FOREIGN or any(re.search(rf"{option}(?![\w-])", help_of(c)) for c in COMMANDS):
        return True
    programs = [*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    bare = option.removeprefix("--")  # some have a table of their options
    return any(
        f'"{word}"' in program.read_text(encoding="utf-8")
        for program in programs
        for word in (option, bare)
    )


@pytest.mark.parametrize("page", NAMED, ids=name)
def test_names_exist(page: Path) -> None:
    wrong = {span: found for span in spans_of(page) if (found := unknown_names(span))}
    assert not wrong


def test_every_name_that_is_listed_as_foreign_is_met() -> None:
    text = "\n".join(span for page in NAMED for span in spans_of(page))
    assert [n for n in FOREIGN if not re.search(rf"(?<![\w-]){n}(?![\w-])", text)] == []
    assert [n for n in FOREIGN if n in names_of_ours()] == []


@pytest.mark.parametrize(
    "planted",
    [
        "explainguide.losses.masks",
        "explainguide.attr.GradCamPlus",
        "EnergyPointingGames",
        "Annotations.dilute(0.5)",
        "bcosifi(model)",
        "first_lable",
        "TrainConfig(lambd=0.3)",
        "loss_lok",
        "--lambda 0.3",
        "explainguide train --los energy",
    ],
)
def test_a_planted_name_is_found(planted: str) -> None:
    assert unknown_names(planted)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("ATTRIBUTIONS", ATTRIBUTIONS),
        ("LOSSES", LOSSES),
        ("RECIPES", RECIPES),
        ("metrics", metrics.__all__),
    ],
)
def test_every_entry_of_a_table_is_told_at_the_beginning(table: str, names: Iterable[str]) -> None:
    pages = ("README.md", "docs/how_it_works.md", "docs/quickstart.md")
    told = {span.strip('"') for page in pages for span in spans_of(ROOT / page)}
    assert [entry for entry in names if entry not in told] == [], table


def test_every_metric_has_a_row_of_the_page() -> None:
    told = set(spans_of(ROOT / "docs" / "metrics.md"))
    entries = metrics.MAP_METRICS.values()
    own = [entry for entry in entries if entry.kind.__module__.startswith("explainguide.")]
    assert [entry.key for entry in own if not {entry.key, entry.kind.__name__} <= told] == []


def test_headings_of_the_reference_can_be_imported() -> None:
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for heading in re.findall(r"^## (explainguide\S*)$", page.read_text(), re.MULTILINE):
            assert resolves(heading), f"{name(page)}: {heading}"
