"""The versions that `make test-lowest` installs are the lowest that setup.cfg names."""

from __future__ import annotations

import ast
import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_RUN = {"docs", "dev"}  # what builds the pages and checks the style, not what users run
OTHERWISE_NAMED = {"PIL": "pillow", "sklearn": "scikit-learn"}


def test_lowest_versions_are_those_of_setup_cfg() -> None:
    """Line by line, so that a minimum cannot be raised or lowered in one place alone."""
    named = _setup_cfg()
    extras = named["options.extras_require"]
    promised = [
        named["options"]["install_requires"],
        *(lines for extra, lines in extras.items() if extra not in NOT_RUN),
    ]
    expected = [line.replace(">=", "==") for lines in promised for line in lines.split()]
    constraints = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in constraints if "==" in line] == expected


def test_every_package_that_is_imported_has_a_lowest_version() -> None:
    """One that only comes along with another has no version that is promised."""
    named = _setup_cfg()
    extras = named["options.extras_require"]
    lines = [named["options"]["install_requires"], *extras.values()]
    required = {line.partition(">=")[0] for text in lines for line in text.split()}
    imported = set()
    for path in sorted((ROOT / "explainguide").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"explainguide"}
    assert {OTHERWISE_NAMED.get(name, name) for name in foreign} <= required


def _setup_cfg() -> configparser.ConfigParser:
    named = configparser.ConfigParser(interpolation=None)
    named.read(ROOT / "setup.cfg", encoding="utf-8")
    return named
