"""Counts of the house, for those who change it: ``make rooms``.

Rooms, floors and arrows are of the imports; the files of a call are those whose functions run.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.test_architecture import FILES, HANDED_ON, PACKAGE, RANK, room_of, rooms_imported

OPTIONS = "guidance/options.py"


def arrows() -> set[tuple[str, str]]:
    """Which room imports which."""
    found = set()
    for path in FILES:
        room = room_of(path)
        if room in RANK:
            found |= {(room, other) for other in rooms_imported(path) if other != room}
    return found


def floors() -> int:
    """Rooms on the longest way down."""
    below: dict[str, set[str]] = {room: set() for room in RANK}
    for room, other in arrows():
        below[room].add(other)

    def height(room: str) -> int:
        return 1 + max((height(other) for other in below[room]), default=0)

    return max(map(height, RANK))


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    """Every function of the package, with its file."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def parameters(function: ast.FunctionDef) -> list[str]:
    """The names of a function's parameters."""
    taken = function.args
    return [one.arg for one in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]


def guide_options() -> list[str]:
    """The names of a guide's options."""
    tree = ast.parse((PACKAGE / OPTIONS).read_text())
    (listed,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "GuideOptions")
    return [name for name, _ in _fields(listed)]


def _fields(listed: ast.ClassDef) -> list[tuple[str, ast.AnnAssign]]:
    return [
        (node.target.id, node)
        for node in listed.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def listings() -> list[str]:
    """Where half of a guide's options or more are listed, as fields or as parameters."""
    options = set(guide_options())
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.ClassDef):
                names = {name for name, _ in _fields(node)}
            elif isinstance(node, ast.FunctionDef):
                names = set(parameters(node))
            if len(names & options) * 2 >= len(options):
                found.append(f"{path.relative_to(PACKAGE)}: {node.name}")  # type: ignore[attr-defined]
    return found


def files_of_loss_loc() -> list[str]:
    """The files whose functions run in one call of `loss_loc`, after the first."""
    import torch
    from torch import nn

    from explainguide import ExplanationGuidance

    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    )
    guide = ExplanationGuidance(model, layer="1")
    boxes = [{"boxes": torch.tensor([[2.0, 2.0, 9.0, 9.0]]), "labels": torch.tensor([1])}]
    images = torch.rand(1, 3, 16, 16)
    model(images)
    guide.loss_loc(boxes)
    model(images)
    seen = set()

    def note(frame, event, argument):  # type: ignore[no-untyped-def]
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            seen.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        guide.loss_loc(boxes)
    finally:
        sys.setprofile(None)
    return sorted(seen)


def main() -> None:
    """Print the counts."""
    everything = list(functions())
    with_caller = [f for _, f in everything if "caller" in parameters(f)]
    longest = max(FILES, key=lambda path: len(path.read_text().splitlines()))
    touched = files_of_loss_loc()
    print(f"rooms: {len(RANK)} (and {len(HANDED_ON)} files that hand on a public name)")
    print(f"floors: {floors()}, arrows: {len(arrows())}")
    print(f"files: {len(FILES)}, the longest {longest.relative_to(PACKAGE)}", end="")
    print(f" with {len(longest.read_text().splitlines())} lines")
    print(f"functions: {len(everything)}, with a parameter `caller`: {len(with_caller)}")
    print(f"places that list a guide's options: {'; '.join(listings())}")
    print(f"files that one loss_loc touches: {len(touched)}: {', '.join(touched)}")


if __name__ == "__main__":
    main()
