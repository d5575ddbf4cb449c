"""`explainguide sweep`: options, the table, mistakes in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from explainguide.cli import main
from explainguide.cli.sweep import read_search
from explainguide.cli.usage import UsageError
from explainguide.studies import LogRange

from .test_train import SMALL, write_images


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    images, held_out = write_images(tmp_path / "images"), write_images(tmp_path / "held_out", 2)
    return [
        *("sweep", "--data", "folder", "--root", str(images), "--boxes", f"{images}.csv"),
        *("--val-root", str(held_out), "--val-boxes", f"{held_out}.csv", "--size", "24"),
        *("--model", SMALL, "--layer", "stage2", "--batch-size", "4", "--epochs", "1"),
        *("--device", "cpu", "--quiet", "--out", str(tmp_path / "out")),
    ]


def test_a_sweep_prints_a_row_a_method(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs optuna: pip install explainguide[sweep]")
    assert main([*command, "--search", "lam=0.5,5"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^method +model +lam +accuracy +EPG +IoU", shown)
    assert re.search(r"^unguided +unguided 0, epoch 1 +0", shown, re.MULTILINE)
    assert re.search(r"^guided ", shown, re.MULTILINE)
    assert f"report.html, points.csv and the trainings are in {tmp_path / 'out'}" in shown
    assert (tmp_path / "out" / "guided" / "0001" / "weights.safetensors").is_file()
    capsys.readouterr()
    # What it wrote, evaluate reads.
    assert main(["evaluate", str(tmp_path / "out" / "guided" / "0001" / "last.pt")]) == 0


def test_what_is_searched_is_read_as_the_options_are() -> None:
    words = ["lam=0.1,1,10", "lr=1e-4..1e-2", "layer=layer3,layer3+layer4", "seed=0,1"]
    words += ["batch-size=8", "loss=energy,l1", "annotated=0.1"]
    assert read_search(words) == {
        "lam": [0.1, 1.0, 10.0],
        "lr": LogRange(1e-4, 1e-2),
        "layer": ["layer3", ["layer3", "layer4"]],
        "seed": [0, 1],
        "batch_size": [8],
        "loss": ["energy", "l1"],
        "annotated": [0.1],
    }
    assert read_search(["layer-weights=1+2,3+4"]) == {"layer_weights": [[1.0, 2.0], [3.0, 4.0]]}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("lam", "--search: 'lam' names no values. Write it as lam=0.1,1,10 or lam=0.01..10."),
        ("lamb=1", "--search: 'lamb' is no setting that can be searched. Did you mean 'lam'"),
        ("device=cpu", "--search: 'device' is no setting that can be searched."),
        ("lam=x", "--search: 'x' is no value of lam. Write it as"),
        ("lam=1,,2", "--search: '' is no value of lam."),
        ("lam=1..", "--search: '' is no value of lam."),
        ("lam=2..1", "LogRange: the range is from 2 to 1."),
        (
            "loss-options=eps=1",
            "--search: loss_options has values that cannot be written in a line.",
        ),
    ],
)
def test_searches_that_cannot_be_read(word: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        read_search([word])
    with pytest.raises(UsageError, match="lam is there twice"):
        read_search(["lam=1", "lam=2"])


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (
            ["--search", "lam=1", "--lam", "1"],
            "--lam: it is searched. Leave it out of one of the two",
        ),
        (["--search", "lam=1", "--test-set", "test"], "--test-set: these data have no splits."),
        ([], "the following arguments are required: --search."),
    ],
)
def test_mistakes_in_one_line(
    command: list[str], more: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *more]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1


def test_models_are_never_chosen_on_the_test(capsys: pytest.CaptureFixture[str]) -> None:
    start = ["sweep", "--data", "decoy", "--model", SMALL, "--out", "out", "--search", "lam=1"]
    assert main([*start, "--test-set", "test"]) == 2  # with which decoy is evaluated
    said = capsys.readouterr().err
    assert "--test-set: 'test' is what models are chosen on. Name another split" in said
    assert main([*start, "--val-set", "train", "--test-set", "train"]) == 2
    assert "--test-set: 'train' is what models are chosen on." in capsys.readouterr().err


def test_a_database_that_cannot_be_reached(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs optuna: pip install explainguide[sweep]")
    more = ["--search", "lam=1", "--storage", "sqlite:////no/such/folder/study.db"]
    assert main([*command, *more]) == 2
    said = capsys.readouterr().err
    assert "explainguide: sweep: storage 'sqlite:////no/such/folder/study.db' cannot be" in said
    assert said.count("\n") == 1
