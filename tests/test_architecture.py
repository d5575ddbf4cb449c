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
    ["attention", "errors", "places", "tables"],
    ["reading", "processes", "token_grid"],
    [
        "labels",
        "layers",
        "plain_weights",
        "logits",
        "second_order",
        "metrics",
        "datasets",
        "visualization",
        "report",
        "target_keys",
        "weights",
    ],
    ["checks", "dynamic", "members"],
    ["annotations", "derivatives", "tap", "losses", "models"],
    ["layout", "same_logits"],
    ["probe"],
    ["bcos", "xdnn"],
    ["attr", "regions", "staging", "selfcheck", "checkpoints", "classification"],
    ["options", "objective", "waiting"],
    ["guidance"],
    ["training_config", "batches"],
    ["evaluation", "schedules", "run_folder", "recipes", "lone_images", "epoch_means"],
    ["epochs"],
    ["training", "demo"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
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
    assert rooms == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in rooms_imported(path) & set(RANK):
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
