"""Imports point one way, siblings do not know each other, files are short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import explainguide

PACKAGE = Path(explainguide.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import from the rows above its own, never from its own row or below.
ROWS = [
    ["errors", "files", "host"],
    ["named"],
    ["hooks", "annotations", "metrics", "visualization", "processes"],
    ["losses", "models", "datasets"],
    ["bcos", "xdnn"],
    ["attr"],
    ["guidance"],
    ["evaluation"],
    ["training"],
    ["recipes", "demo"],
    ["studies"],
    ["cli"],
    ["__main__"],
]
# Public names whose home has moved into a room; each file only hands them on.
HANDED_ON = {
    *("checkpoints", "classification", "dynamic", "report", "selfcheck", "tables"),
    *("training_config", "weights"),
}
# The same within a room.
HANDED_ON_INSIDE = {
    *("bcos/base", "bcos/maps", "losses/maps", "losses/norms", "metrics/localization"),
}
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
LONGEST = 400


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """Rooms of this package that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules = [node.module or ""]
            if node.module == "explainguide":
                modules = [f"explainguide.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith("explainguide.")}
    return found


def test_every_room_has_a_rank() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms - HANDED_ON == set(RANK)


@pytest.mark.parametrize("name", sorted(HANDED_ON | HANDED_ON_INSIDE))
def test_a_moved_name_is_only_handed_on(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    document, *sources, exported = tree.body
    assert isinstance(document, ast.Expr)
    assert sources
    assert all(isinstance(source, ast.ImportFrom) for source in sources)
    assert isinstance(exported, ast.Assign)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__" or room in HANDED_ON:
        return
    assert not rooms_imported(path) & HANDED_ON, "import it from where it lives"
    for other in rooms_imported(path):
        assert other == room or RANK[other] < RANK[room], f"{room} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_attributions_losses_and_metrics_do_not_know_each_other() -> None:
    siblings = {"attr", "losses", "metrics"}
    for path in FILES:
        if room_of(path) in siblings:
            assert not rooms_imported(path) & (siblings - {room_of(path)})


def test_importing_the_package_does_not_import_what_only_commands_need() -> None:
    import subprocess
    import sys

    code = "import sys, explainguide; print([m for m in ('sklearn', 'accelerate') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
