"""`train`, `evaluate` and `explain` where there is nothing to guide with, and with one logit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from explainguide.checkpoints import load_model, save_weights
from explainguide.cli import main
from explainguide.errors import ExplainGuideWarning
from explainguide.models import small_cnn

from .test_train import SMALL, saved, write_images

MODULE = "binary_models_of_a_user"


def one_logit() -> nn.Module:
    """A user's function, which does not ask for the number of classes."""
    return small_cnn(1, widths=(4, 4, 4, 4, 8, 8))


def three_logits() -> nn.Module:
    return small_cnn(3, widths=(4, 4, 4, 4, 8, 8))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra = small_cnn(2, widths=(4, 4, 4, 4, 8, 8)), nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.body(x)
        return self.extra(logits), logits


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training of two folders without the boxes."""
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])
    images, held_out = write_images(tmp_path / "images"), write_images(tmp_path / "held_out", 2)
    return [
        *("train", "--data", "folder", "--root", str(images), "--val-root", str(held_out)),
        *("--size", "24", "--layer", "stage2", "--batch-size", "4", "--epochs", "1"),
        *("--device", "cpu", "--quiet", "--out", str(tmp_path / "run")),
    ]


def boxes(tmp_path: Path) -> list[str]:
    return ["--boxes", f"{tmp_path / 'images'}.csv", "--val-boxes", f"{tmp_path / 'held_out'}.csv"]


def test_without_boxes_it_is_said(command: list[str], tmp_path: Path) -> None:
    expected = "no image of train_data is annotated, so the training goes without guidance"
    with pytest.warns(ExplainGuideWarning, match=expected):
        assert main([*command, "--model", SMALL]) == 0
    assert saved(tmp_path / "run")[0]["lam"] == 0


@pytest.mark.parametrize("form", ["no file", "csv", "json"])
@pytest.mark.parametrize("asked", [["--lam", "1"], ["--recipe", "rrr"]])
def test_guidance_that_was_asked_for_needs_boxes(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    asked: list[str],
) -> None:
    (tmp_path / "no.csv").write_text("image,xmin,ymin,xmax,ymax\n")
    (tmp_path / "no.json").write_text('{"images": [], "annotations": [], "categories": []}')
    options = [] if form == "no file" else ["--boxes", str(tmp_path / f"no.{form}")]
    assert main([*command, "--model", SMALL, *asked, *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("explainguide: train: lam is ")
    assert "Give boxes (--boxes for --data folder), or lam=0." in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_val_boxes_it_is_said(command: list[str], tmp_path: Path) -> None:
    expected = r"no image of val_data is annotated, .* Give boxes \(--val-boxes for --data folder\)"
    with pytest.warns(ExplainGuideWarning, match=expected):
        assert main([*command, "--model", SMALL, *boxes(tmp_path)[:2]]) == 0
    assert saved(tmp_path / "run")[0]["lam"] == 1


def test_a_model_with_one_logit_tells_two_folders_apart(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--model", f"{MODULE}:one_logit"]
    assert main([*command, *boxes(tmp_path), *chosen]) == 0
    last = tmp_path / "run" / "last.pt"
    _, info = load_model(last)
    assert (info["num_classes"], info["classes"]) == (2, ["left", "right"])
    capsys.readouterr()
    assert main(["evaluate", str(last), "--quiet", "--device", "cpu"]) == 0
    header, values = capsys.readouterr().out.splitlines()
    found = dict(zip(header.split(), values.split(), strict=True))
    assert found["accuracy"] == f"{info['metrics']['accuracy']:.4f}"
    assert found["epg"] == f"{info['metrics']['epg']:.4f}"

    image, said = str(tmp_path / "images" / "left" / "1.png"), {}
    for target in ("", "left", "right"):
        which = ["--target", target] if target else []
        out = tmp_path / f"{target or None}.png"
        assert main(["explain", image, "--checkpoint", str(last), *which, "--out", str(out)]) == 0
        said[target] = capsys.readouterr().out.splitlines()[0].split(": ")[1].split("; ")[0]
    predicted, other = ("left", "right") if "left" in said[""] else ("right", "left")
    assert said[predicted] == said[""]
    assert said[other].startswith(f"{other} (")
    shares = [int(said[name].split("(")[1].split("%")[0]) for name in (predicted, other)]
    assert shares[0] >= 50 and abs(sum(shares) - 100) <= 1
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in (predicted, other, None)]
    assert pictures[0] == pictures[2] != pictures[1]


def test_a_checkpoint_of_another_number_of_logits(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *boxes(tmp_path), "--model", f"{MODULE}:three_logits"]) == 2
    assert capsys.readouterr().err == (
        f"explainguide: --model: '{MODULE}:three_logits' has 3 logits and the data 2 classes. Let the "
        "function take num_classes, which is 2. As many logits as classes, or one for two classes, "
        "are allowed.\n"
    )


def test_one_logit_of_a_library_model_through_a_checkpoint(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {
        "info": {"name": SMALL, "num_classes": 1, "image_size": 24},
        "config": {"layer": "stage2"},
        "epoch": 0,
    }
    start = str(tmp_path / "start.safetensors")
    save_weights(start, small_cnn(1).state_dict(), about=about)
    assert main([*command, *boxes(tmp_path), "--checkpoint", start]) == 0
    last = str(tmp_path / "run" / "last.pt")
    assert load_model(last)[0](torch.zeros(1, 3, 24, 24)).shape == (1, 1)
    assert main(["evaluate", last, "--quiet", "--device", "cpu"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_one_folder_is_refused(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for root in ("images", "held_out"):
        for path in (tmp_path / root / "right").iterdir():
            path.unlink()
        (tmp_path / root / "right").rmdir()
    assert main([*command, "--model", SMALL]) == 2
    assert capsys.readouterr().err.startswith(
        "explainguide: train: the images are of one class, 'left', so every answer is right. Add a"
    )


def test_output_says_which_are_the_logits(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--model", f"{MODULE}:Pair", "--layer", "body.stage2"]
    assert main([*command, *boxes(tmp_path), *chosen]) == 2
    assert "more than one of them can be the logits" in capsys.readouterr().err
    assert main([*command, *boxes(tmp_path), *chosen, "--output", "1"]) == 0
    capsys.readouterr()
    for name in ("last.pt", "weights.safetensors"):  # both know it
        file = str(tmp_path / "run" / name)
        held_out = ["--root", str(tmp_path / "held_out"), "--boxes", f"{tmp_path / 'held_out'}.csv"]
        assert main(["evaluate", file, *held_out, "--quiet", "--device", "cpu"]) == 0
        image, out = str(tmp_path / "images" / "left" / "1.png"), str(tmp_path / "out.png")
        assert main(["explain", image, "--checkpoint", file, "--out", out]) == 0
