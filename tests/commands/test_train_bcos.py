"""`explainguide train --bcos`, training of what `convert` wrote, and their evaluation."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from explainguide.bcos import BcosConv2d
from explainguide.checkpoints import load_checkpoint, load_model, save_checkpoint
from explainguide.cli import main
from explainguide.cli.data import build_transforms, image_encoding
from explainguide.datasets import DATASETS, ImageFolder
from explainguide.dynamic import is_bcos
from explainguide.models import small_cnn
from explainguide.xdnn import is_homogeneous

from .test_train import fingerprint, write_images

MODULE = "models_of_a_user"
NETWORK = f"{MODULE}:tiny"


def tiny(num_classes: int) -> nn.Module:
    return small_cnn(num_classes, widths=(4, 4, 4, 4, 8, 8))


def relu(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )  # fmt: skip


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    images, held_out = write_images(tmp_path / "images"), write_images(tmp_path / "held_out", 2)
    return [
        *("train", "--data", "folder", "--root", str(images), "--boxes", f"{images}.csv"),
        *("--val-root", str(held_out), "--val-boxes", f"{held_out}.csv", "--size", "24"),
        *("--lam", "0.5", "--batch-size", "4", "--layer", "input", "--attribution", "bcos"),
        *("--epochs", "2", "--device", "cpu", "--quiet", "--out", "run"),
    ]


def rows(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table(text: str) -> dict[str, str]:
    header, values = (line.split() for line in text.splitlines())
    return dict(zip(header, values, strict=True))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_bcos_network_is_trained_and_evaluated(
    fresh: bool, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--bcos", "--b", "1.5", *(["--fresh"] if fresh else [])]
    assert main([*command, "--model", NETWORK, *chosen]) == 0
    model, info = load_model("run/last.pt")
    assert info["bcos"]["b"] == 1.5
    assert info["bcos"]["keep_weights"] is not fresh
    assert info["bcos"].get("mean") == (None if fresh else [0.485, 0.456, 0.406])
    assert (info["mean"], info["std"]) == ([0.0] * 3, [1.0] * 3)
    unit = next(module for module in model.modules() if isinstance(module, BcosConv2d))
    assert (unit.b, unit.in_channels) == (1.5, 6)
    capsys.readouterr()
    assert main(["evaluate", "run/last.pt", "--quiet", "--device", "cpu"]) == 0
    found = table(capsys.readouterr().out)
    last = rows("run")[-1]
    assert found["epg"] == f"{float(last['epg']):.4f}"
    assert found["accuracy"] == f"{float(last['accuracy']):.4f}"
    assert main(["explain", "images/left/1.png", "--checkpoint", "run/last.pt", "--bcos",
                 "--out", "out.png"]) == 0  # fmt: skip
    assert capsys.readouterr().out.startswith("images/left/1.png: predicted ")


def test_bcos_training_that_was_killed_goes_on(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from explainguide.training.epochs import TrainingRun

    chosen = ["--model", NETWORK, "--bcos", "--weights", "w.pth"]
    torch.save(tiny(2).state_dict(), "w.pth")
    assert main([*command, *chosen, "--out", "whole"]) == 0
    epoch = TrainingRun.epoch

    def killed(self: TrainingRun, number: int, *rest: Any, **options: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "epoch", killed)
        assert main([*command, *chosen]) == 130
    assert len(rows("run")) == 1
    assert main([*command, *chosen, "--resume"]) == 0
    assert fingerprint(Path("run")) == fingerprint(Path("whole"))


def test_a_converted_network_is_trained(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["convert", NETWORK, "--num-classes", "2", "--size", "24"]
    assert main([*convert, "--bcos", "--b", "1.25", "--out", "bcos.pt"]) == 0
    begin = load_checkpoint("bcos.pt")
    assert main([*command, "--checkpoint", "bcos.pt", "--out", "one"]) == 0
    _, info = load_model("one/last.pt")
    assert info["bcos"] == begin["info"]["bcos"]
    assert info["classes"] == ["left", "right"]
    state = load_checkpoint("one/last.pt")["model"]
    assert any(not torch.equal(value, state[name]) for name, value in begin["model"].items())
    # The checkpoint of the training is enough to go on, and to begin another with.
    Path("bcos.pt").unlink()
    assert main([*command, "--checkpoint", "bcos.pt", "--out", "one", "--resume"]) == 0
    assert main([*command, "--checkpoint", "one/last.pt", "--out", "two"]) == 0
    capsys.readouterr()
    both = ["evaluate", "one/last.pt", "two/last.pt", "--quiet", "--device", "cpu"]
    assert main(both) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("turned", [True, False])
def test_the_classes_of_a_checkpoint_are_those_of_the_data(
    turned: bool, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["convert", NETWORK, "--num-classes", "2", "--size", "24", "--bcos"]
    assert main([*convert, "--out", "bcos.pt"]) == 0
    payload = load_checkpoint("bcos.pt")
    known = ["right", "left"] if turned else ["left", "right"]
    payload["info"]["classes"] = known
    save_checkpoint("bcos.pt", payload)
    capsys.readouterr()
    assert main([*command, "--epochs", "1", "--checkpoint", "bcos.pt"]) == (2 if turned else 0)
    if turned:
        assert capsys.readouterr().err.strip() == (
            "explainguide: train: class 0 of the data is 'left', but of --checkpoint 'bcos.pt' 'right'. Let "
            "the data list their classes as 'right', 'left', or take its weights alone, with --model "
            "and --weights. The same names in the same order are allowed."
        )
        assert not Path("run").exists()


def test_the_first_epoch_begins_with_the_weights_of_the_checkpoint(command: list[str]) -> None:
    convert = ["convert", NETWORK, "--num-classes", "2", "--size", "24", "--bcos"]
    assert main([*convert, "--out", "bcos.pt"]) == 0
    still = ["--lr", "1e-12", "--weight-decay", "0", "--epochs", "1"]
    assert main([*command, *still, "--checkpoint", "bcos.pt"]) == 0
    before, after = (load_checkpoint(path)["model"] for path in ("bcos.pt", "run/last.pt"))
    for name, value in before.items():
        if not name.endswith(("running_var", "running_mean", "num_batches_tracked")):
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)


def test_a_network_without_biases_is_trained(command: list[str]) -> None:
    convert = ["convert", f"{MODULE}:relu", "--num-classes", "2", "--size", "24", "--xdnn"]
    convert += ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    assert main([*convert, "--out", "xdnn.pt"]) == 0
    assert main([*command, "--checkpoint", "xdnn.pt", "--attribution", "intgrad"]) == 0
    model, info = load_model("run/last.pt")
    assert is_homogeneous(model)
    assert info["mean"] == [0.5] * 3
    assert info["xdnn"]["normalization"] == "fold"


def test_a_converted_network_is_evaluated_before_it_is_trained(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["convert", NETWORK, "--num-classes", "2", "--size", "24", "--bcos"]
    assert main([*convert, "--out", "bcos.pt"]) == 0
    capsys.readouterr()
    data = ["--data", "folder", "--root", "held_out", "--boxes", "held_out.csv"]
    quiet = ["--quiet", "--device", "cpu"]
    assert main(["evaluate", "bcos.pt", *data, *quiet]) == 0
    assert table(capsys.readouterr().out)["pairs"] == "4"
    assert main(["evaluate", "bcos.pt", *quiet]) == 2
    assert capsys.readouterr().err == (
        "explainguide: --data: missing, and the network was converted and never trained. Name the "
        f"images to evaluate it on. {', '.join(DATASETS)} are allowed.\n"
    )


def test_images_get_their_inverse_and_boxes_move_with_a_flip(command: list[str]) -> None:
    from explainguide.bcos import bcosify

    network = bcosify(tiny(2), image_size=(24, 24))
    encoding = image_encoding(network, [0.0] * 3, [1.0] * 3)
    data = ImageFolder("images", "images.csv")
    plain, _, annotation = _item(data, build_transforms(24, []))
    data.transforms = build_transforms(24, encoding, flip=False)
    image, _, moved = data[3]
    assert image.shape == (6, 24, 24)
    assert type(image) is torch.Tensor
    torch.testing.assert_close(image[:3], plain)
    torch.testing.assert_close(image[3:], 1 - plain)
    assert torch.equal(moved["boxes"], annotation["boxes"])
    assert torch.equal(moved["labels"], annotation["labels"])
    torch.manual_seed(1)
    data.transforms = build_transforms(24, encoding, flip=True)
    seen = set()
    for _ in range(12):
        image, _, moved = data[3]
        flipped = not torch.equal(image[:3], plain)
        seen.add(flipped)
        expected = annotation["boxes"].clone()
        if flipped:
            torch.testing.assert_close(image[:3], plain.flip(-1))
            expected[:, [0, 2]] = 24 - expected[:, [2, 0]]
        torch.testing.assert_close(torch.as_tensor(moved["boxes"]), torch.as_tensor(expected))
    assert seen == {True, False}


def _item(data: Any, transforms: Any) -> Any:
    data.transforms = transforms
    return data[3]


def test_the_encoding_is_that_of_the_network() -> None:
    from explainguide.bcos import AddInverse, bcosify

    network = bcosify(tiny(2), image_size=(24, 24))
    assert [type(step).__name__ for step in image_encoding(tiny(2), [0.5] * 3, [0.5] * 3)] == [
        "Normalize"
    ]
    (step,) = image_encoding(network, [0.0] * 3, [1.0] * 3)
    assert isinstance(step, AddInverse)
    assert image_encoding(nn.Sequential(AddInverse(), network), [0.0] * 3, [1.0] * 3) == []


def test_decoys_keep_their_size(command: list[str]) -> None:
    arguments = ["train", "--data", "decoy", "--model", NETWORK, "--bcos", "--size", "24"]
    arguments += ["--epochs", "1", "--lam", "0", "--device", "cpu", "--quiet", "--out", "run"]
    assert main([*arguments, "--batch-size", "512"]) == 0
    model, info = load_model("run/last.pt")
    assert is_bcos(model)
    assert info["image_size"] == 24
    assert info["bcos"]["mean"] == [0.0] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "--model, --checkpoint: give one of the two."),
        (["--model", NETWORK, "--checkpoint", "bcos.pt"], "--model, --checkpoint: give one of"),
        (["--checkpoint", "none.pt"], "load_checkpoint: 'none.pt' does not exist."),
        (["--checkpoint", "bcos.pt", "--bcos"], "--bcos: it goes with --model."),
        (["--checkpoint", "bcos.pt", "--pretrained"], "--pretrained: it goes with --model."),
        (["--checkpoint", "bcos.pt", "--weights", "w"], "--weights: it goes with --model."),
        (["--checkpoint", "bcos.pt", "--mean", "1", "1", "1"], "--mean, --std: a B-cos network takes"),
        (["--checkpoint", "three.pt"], "--checkpoint: 'three.pt' has 3 classes and the data 2."),
        (["--model", NETWORK, "--b", "2"], "--b: it goes with --bcos. Add --bcos, or leave it out. It is allowed with --bcos alone."),
        (["--model", NETWORK, "--fresh"], "--fresh: it goes with --bcos."),
        (["--model", NETWORK, "--bcos", "--fresh", "--weights", "w"], "--fresh: it makes new weights."),
        (["--model", NETWORK, "--bcos", "--b", "0"], "bcosify: b is 0.0."),
        (["--model", "swin_t", "--bcos", "--size", "64"], "bcosify: SwinTransformer has layers without"),
        (["--model", NETWORK], "BcosContribution: Sequential has no B-cos module"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(
    changes: list[str], message: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["convert", NETWORK, "--size", "24", "--bcos", "--num-classes"]
    if "bcos.pt" in changes:
        assert main([*convert, "2", "--out", "bcos.pt"]) == 0
    if "three.pt" in changes:
        assert main([*convert, "3", "--out", "three.pt"]) == 0
    capsys.readouterr()
    assert main([*command, *changes]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"explainguide: {message}")
    assert told.count("\n") == 1
    assert not Path("run").exists()


def test_other_settings_of_the_conversion_are_another_training(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--model", NETWORK, "--bcos", "--epochs", "1"]) == 0
    capsys.readouterr()
    again = [*command, "--model", NETWORK, "--epochs", "1", "--resume"]
    assert main([*again, "--bcos", "--b", "1.5"]) == 2
    assert "bcos was {'b': 2.0" in capsys.readouterr().err
