"""What is imported, and when: the command line answers without torch, a script without plots."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "captum", "matplotlib", "sklearn", "accelerate", "numpy")


def imported(code: str) -> list[str]:
    """Which heavy packages a program of its own has imported at its end."""
    program = f"import sys\n{code}\nprint(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return [name for name in found.stdout.splitlines()[-1].split(",") if name]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["tran"],
        ["train", "--lamda", "1"],
        ["train", "--data", "decoy", "--model", "m", "--out", "o", "--epocs", "3"],
        ["train", "--out", "o", "--data", "voc", "--epochs", "three"],
        ["evaluate", "last.pt", "--lyer", "layer4"],
        ["explain", "a.png", "--out", "b.png", "--atribution", "ixg"],
        ["convert", "resnet18", "--out", "b.pt", "--bcoss"],
        ["layers", "resnet18", "--al"],
        ["demo", "--sed", "1"],
    ],
    ids=" ".join,
)
def test_help_version_and_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    assert imported(f"from explainguide.cli import main\nmain({arguments!r})") == []


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    assert imported("import explainguide") == []


def test_a_training_script_imports_no_plots_no_commands_and_no_data_sets() -> None:
    code = "import explainguide\nexplainguide.ExplanationGuidance, explainguide.collate"
    assert not set(imported(code)) & {"sklearn", "accelerate", "timm"}
    rooms = "print([m for m in sys.modules if m.startswith('explainguide.')])"
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, explainguide\nexplainguide.ExplanationGuidance\n{rooms}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for room in ("cli", "visualization", "datasets", "training", "evaluation", "bcos.", "recipes"):
        assert f"'explainguide.{room}" not in found, room


def test_the_settings_are_read_without_torch() -> None:
    code = "from dataclasses import fields\nfrom explainguide.training import TrainConfig\nfields(TrainConfig)"
    assert imported(code) == []
