"""Sphinx configuration. Build with `make docs`."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import explainguide
from explainguide.cli import COMMANDS, main

project = "explainguide"
author = "The explainguide authors"
copyright = author
version = release = explainguide.__version__

# Tables that programs write; pages include them.
FRAGMENTS = (
    "amp_results.md",
    "bcos_compare_results.md",
    "bcos_features_results.md",
    "bcos_speed_results.md",
    "cheaper_results.md",
    "compile_results.md",
    "demo_results.md",
    "families_huggingface_results.md",
    "families_results.md",
    "loss_results.md",
    "metrics_results.md",
    "relevance_results.md",
    "robustvit_results.md",
    "step_results.md",
    "voc_results.md",
)
NOT_YET = "These numbers have not been measured with this version.\n"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", *FRAGMENTS]
html_theme = "furo"
html_title = f"explainguide {version}"

default_role = "code"  # single backticks in docstrings are code, as in Markdown
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the attributes of a class are one list
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True


def write_parts(docs: Path) -> None:
    """Collect what pages include: the help of each command, and tables where there are any.

    The help comes from the commands themselves, so that the page cannot fall behind.
    """
    folder = docs / "_build" / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FRAGMENTS:
        table = docs / name
        (folder / name).write_text(table.read_text() if table.exists() else NOT_YET)
    os.environ["COLUMNS"] = "88"
    for name in COMMANDS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            code = main([name, "--help"])
        if code != 0:
            raise RuntimeError(f"explainguide {name} --help ended with {code}")
        (folder / f"{name}.txt").write_text(text.getvalue())


write_parts(Path(__file__).parent)
