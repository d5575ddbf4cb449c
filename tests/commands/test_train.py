"""`explainguide train` and `evaluate` on small folders of images: files, tables, mistakes."""

from __future__ import annotations

import csv
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explainguide import ExplanationGuidance
from explainguide.checkpoints import load_checkpoint, load_model, save_weights
from explainguide.cli import main

SMALL = "explainguide.models:small_cnn"


def write_images(root: Path, count: int = 4) -> Path:
    """Two classes: a white square on the left or on the right; boxes beside them."""
    lines = ["image,xmin,ymin,xmax,ymax"]
    for index in range(count):
        for name, left in (("left", 2), ("right", 20)):
            pixels = np.full((32, 40, 3), 10 * index, dtype=np.uint8)
            pixels[8:24, left : left + 14] = 255
            path = root / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            lines.append(f"{name}/{index}.png,{left},8,{left + 14},24")
    (root.parent / f"{root.name}.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    images, held_out = write_images(tmp_path / "images"), write_images(tmp_path / "held_out", 2)
    return [
        *("train", "--data", "folder", "--root", str(images), "--boxes", f"{images}.csv"),
        *("--val-root", str(held_out), "--val-boxes", f"{held_out}.csv", "--size", "24"),
        *("--model", SMALL, "--layer", "stage2", "--lam", "0.5", "--batch-size", "4"),
        *("--epochs", "2", "--device", "cpu", "--quiet", "--out", str(tmp_path / "run")),
    ]


def test_train_writes_checkpoints_that_evaluate_reads(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:2] == ["epoch", "loss"]
    assert "accuracy" in shown[0]
    assert shown[-1].endswith(str(tmp_path / "run"))
    model, info = load_model(tmp_path / "run" / "last.pt")
    assert info["classes"] == ["left", "right"]
    assert model(torch.zeros(1, 3, 24, 24)).shape == (1, 2)

    last = str(tmp_path / "run" / "last.pt")
    assert main(["evaluate", last, "--quiet", "--device", "cpu"]) == 0
    header, values = (line.split() for line in capsys.readouterr().out.splitlines())
    found = dict(zip(header, values, strict=True))
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))[-1]
    assert found["epg"] == f"{float(logged['epg']):.4f}"
    assert found["pairs"] == "4"


def test_another_set_layer_and_threshold_can_be_evaluated(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--epochs", "1"])
    capsys.readouterr()
    images = str(tmp_path / "images")
    options = ["--root", images, "--boxes", f"{images}.csv", "--layer", "input", "--markdown"]
    options += ["--threshold", "fit", "--attribution", "gradient", "--quiet", "--device", "cpu"]
    last = str(tmp_path / "run" / "last.pt")
    assert main(["evaluate", last, last, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("| checkpoint")
    assert "iou\\_threshold" in lines[0]
    assert lines[2].split("|")[-2].strip() == "8"


def test_a_threshold_is_fitted_on_a_folder_or_on_images_kept_aside(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--epochs", "1", "--fit-share", "0.25"]) == 0
    capsys.readouterr()
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        (logged,) = csv.DictReader(file)
    assert 0 <= float(logged["iou_threshold"]) < 1
    last, images = str(tmp_path / "run" / "last.pt"), str(tmp_path / "images")
    options = ["evaluate", last, "--fit-on", images, "--fit-boxes", f"{images}.csv", "--quiet"]
    assert main([*options, "--device", "cpu"]) == 0
    header, values = (line.split() for line in capsys.readouterr().out.splitlines())
    found = dict(zip(header, values, strict=True))
    same = ["evaluate", last, "--root", images, "--boxes", f"{images}.csv", "--threshold", "fit"]
    assert main([*same, "--quiet", "--device", "cpu"]) == 0
    header, values = (line.split() for line in capsys.readouterr().out.splitlines())
    assert found["iou_threshold"] == dict(zip(header, values, strict=True))["iou_threshold"]


def test_fit_on_tells_its_mistakes(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--epochs", "1"]) == 0
    last, root = str(tmp_path / "run" / "last.pt"), str(tmp_path / "images")
    capsys.readouterr()
    mistakes = [
        ("--fit-boxes b.csv", "--fit-boxes: they are of --fit-on, which is missing. Name both, or"),
        ("--fit-on x --threshold 0.4", "--threshold: '0.4' beside --fit-on, which fits it. Le"),
        (f"--root {root} --fit-on {root}", "is what is evaluated, on which a fitted threshold is"),
        ("--fit-on nowhere", "root 'nowhere' does not exist"),
    ]
    for options, text in mistakes:
        assert main(["evaluate", last, *options.split(), "--quiet", "--device", "cpu"]) == 2
        assert text in capsys.readouterr().err


def test_resume_goes_on_to_the_same_weights(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume"]) == 0
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_weights_from_a_file_with_another_head_are_told(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from explainguide.models import small_cnn

    torch.save(small_cnn(1000).state_dict(), tmp_path / "w.pth")
    assert main([*command, "--weights", str(tmp_path / "w.pth"), "--epochs", "1"]) == 0
    assert "has 1000 classes and the model 2" in capsys.readouterr().out


def test_a_damaged_image_is_skipped_and_counted(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "left" / "0.png").write_bytes(b"no image")
    command.remove("--quiet")
    with pytest.warns(UserWarning, match=r"0.png' cannot be read as an image"):
        assert main([*command, "--epochs", "1"]) == 0
    assert "1 images could not be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data", "dcoy"], "--data: unknown data 'dcoy'. Did you mean 'decoy' or 'coco'?"),
        (["--model", "resnet81"], "build_model: unknown model 'resnet81'. Did you mean 'resnet18'"),
        (["--layer", "stage9"], "train: unknown layer 'stage9'. Did you mean 'stage3'"),
        (["--loss", "enrgy"], "TrainConfig: unknown loss 'enrgy'. Did you mean 'energy'?"),
        (["--annotated", "10"], "TrainConfig: annotated is 10.0. Did you mean 0.1?"),
        (["--weights", "none.pth"], "load_weights: 'none.pth' does not exist."),
        (["--weights", "a", "--pretrained"], "--weights: with --pretrained there are two."),
        (["--std", "0", "1", "1"], "--std: [0.0, 1.0, 1.0] holds a value that is not positive."),
        (["--size", "0"], "--size: 0 is no size."),
        (["--root", "nowhere"], "ImageFolder: root 'nowhere' does not exist."),
        (["--recipe", "robstvit"], "recipe: unknown recipe 'robstvit'. Did you mean 'robustvit'"),
        (["--loss-options", "eps"], "--loss-options: 'eps' is no option. Write it as normalize="),
        (["--loss-options", "normalize=True"], "TrainConfig: the loss 'energy' has no option"),
        (["--loss-options", "floor=abs"], "TrainConfig: the loss 'energy' refuses its options"),
        (["--temperature", "0.65"], "TrainConfig: temperature is 0.65 with class_loss='task'."),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    assert main([*command, *changes]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"explainguide: {message}")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


TINY_VIT = """
import timm

def build(num_classes):
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, img_size=32, depth=2,
                             embed_dim=24, num_heads=2)
"""


def by_recipe(command: list[str], name: str) -> list[str]:
    """The command with a recipe's layer and lambda instead of its own."""
    own = command.index("--layer")
    assert command[own + 2] == "--lam"
    return [*command[:own], *command[own + 4 :], "--recipe", name]


def saved(folder: Path) -> tuple[dict, dict]:
    found = json.loads((folder / "config.json").read_text())
    return found["config"], found["info"]


def fingerprint(folder: Path) -> str:
    return sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def test_a_recipe_gives_the_defaults_and_is_recorded(command: list[str], tmp_path: Path) -> None:
    whole = by_recipe(command, "model-guidance/final")
    assert main(whole) == 0
    config, info = saved(tmp_path / "run")
    assert info["recipe"] == "model-guidance/final"
    expected = {"lam": 1e-3, "reduction": "sum", "optimizer": "adam", "lr": 1e-4, "loss": "energy"}
    expected |= {"schedule": "constant", "weight_decay": 0.0, "layer": None, "region": "boxes"}
    expected |= {"epochs": 2, "batch_size": 4}  # as given
    assert {key: config[key] for key in expected} == expected

    spelled = [*command, "--layer", "stage3", "--lam", "0.001", "--reduction", "sum"]
    spelled += ["--optimizer", "adam", "--lr", "1e-4", "--schedule", "constant"]
    spelled += ["--weight-decay", "0", "--out", str(tmp_path / "spelled")]
    assert main(spelled) == 0
    assert saved(tmp_path / "spelled")[1]["recipe"] is None
    one, other = (load_checkpoint(tmp_path / n / "weights.safetensors") for n in ("run", "spelled"))
    assert all(tensor.equal(other["model"][name]) for name, tensor in one["model"].items())
    assert one["guided_layer"] == other["guided_layer"] == "stage3"
    assert (one["config"].pop("layer"), other["config"].pop("layer")) == (None, "stage3")  # as set
    assert {**one, "model": 0} == {**other, "model": 0}


def test_options_come_before_the_recipe(command: list[str], tmp_path: Path) -> None:
    assert main([*by_recipe(command, "rrr"), "--lam", "2", "--epochs", "1"]) == 0
    config, _ = saved(tmp_path / "run")
    assert (config["lam"], config["loss"], config["score"]) == (2.0, "rrr", "sum_log_probs")
    assert config["loss_options"] == {"normalize": False}
    other = [*by_recipe(command, "rrr"), "--loss", "l1", "--loss-options", "normalize=paper"]
    assert main([*other, "--epochs", "1", "--out", str(tmp_path / "other")]) == 0
    config, _ = saved(tmp_path / "other")
    assert (config["loss"], config["loss_options"]) == ("l1", {"normalize": "paper"})


def test_robustvit_on_a_small_vit(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny_vit.py").write_text(TINY_VIT)
    monkeypatch.syspath_prepend(tmp_path)
    whole = [*by_recipe(command, "robustvit"), "--model", "tiny_vit:build", "--size", "32"]
    assert main([*whole, "--epochs", "1"]) == 0
    config, info = saved(tmp_path / "run")
    assert info["recipe"] == "robustvit"
    assert (config["attribution"], config["loss"]) == ("relevance", "relevance")
    assert (config["class_loss"], config["class_weight"]) == ("confidence-boosting", 0.2)
    assert (config["lam"], config["lr"], config["region"]) == (0.8, 3e-6, "masks")
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 < float(row["loss_loc"]) < 2
    # The layer was found for the attribution; another attribution has a layer of its own.
    files = [str(tmp_path / "run" / name) for name in ("last.pt", "weights.safetensors")]
    for options in (
        [],
        ["--attribution", "ixg"],
        ["--layer", "input", "--attribution", "gradient"],
    ):
        capsys.readouterr()
        held_out = ["--root", str(tmp_path / "held_out"), "--boxes", f"{tmp_path}/held_out.csv"]
        assert main(["evaluate", *files, *held_out, *options, "--quiet", "--device", "cpu"]) == 0
        _, first, second = capsys.readouterr().out.splitlines()
        assert first.split()[1:] == second.split()[1:]
    weights = load_checkpoint(files[1])
    assert weights["config"]["layer"] is None
    assert weights["guided_layer"] != ExplanationGuidance(load_model(files[0])[0]).layers[0]


def test_weights_that_name_the_layer_that_was_found_are_still_evaluated(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they were written once."""
    run_small(command)
    payload = load_checkpoint(tmp_path / "run" / "weights.safetensors")
    about = {key: payload[key] for key in ("info", "config", "epoch")}
    about["config"] |= {"layer": "stage1"}
    old = save_weights(tmp_path / "old.safetensors", payload["model"], about=about)
    capsys.readouterr()
    last, held_out = str(tmp_path / "run" / "last.pt"), str(tmp_path / "held_out")
    options = ["--root", held_out, "--boxes", f"{held_out}.csv", "--quiet", "--device", "cpu"]
    assert main(["evaluate", str(old), *options]) == 0
    found = capsys.readouterr().out.splitlines()[1].split()[1:]
    assert main(["evaluate", last, "--layer", "stage1", *options]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == found


@pytest.mark.parametrize("file", ["last.pt", "weights.safetensors"])
def test_evaluate_compares_the_names_of_the_classes(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    run_small(command)
    path = str(tmp_path / "run" / file)
    other = tmp_path / "other"
    (tmp_path / "held_out").rename(other)
    (other / "left").rename(other / "z")
    capsys.readouterr()
    evaluating = ["evaluate", path, "--root", str(other), "--quiet", "--device", "cpu"]
    assert main(evaluating) == 2
    assert capsys.readouterr().err == (
        f"explainguide: evaluate: class 0 of the data is 'right', but of '{path}' 'left'. Name the "
        "data of the training, or let yours list the classes as 'left', 'right'. The same names in "
        "the same order are allowed.\n"
    )
    (other / "y").mkdir()
    (other / "z" / "0.png").rename(other / "y" / "0.png")
    assert main(evaluating) == 2
    assert f"the data have 3 classes and '{path}' 2. Name" in capsys.readouterr().err


def test_train_compares_the_names_of_the_classes(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held_out" / "left").rename(tmp_path / "held_out" / "z")
    (tmp_path / "held_out.csv").write_text("image,xmin,ymin,xmax,ymax\nright/0.png,20,8,34,24\n")
    assert main(command) == 2
    assert "class 0 of the training images is 'left', but of those of evaluation 'right'. Name" in (
        capsys.readouterr().err
    )


def test_resume_knows_the_recipe(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = by_recipe(command, "gradmask")
    assert main([*whole, "--epochs", "1"]) == 0
    before = fingerprint(tmp_path / "run")
    assert main([*whole, "--epochs", "1", "--resume"]) == 0
    assert fingerprint(tmp_path / "run") == before
    capsys.readouterr()
    assert main([*by_recipe(command, "rrr"), "--epochs", "1", "--resume"]) == 2
    told = capsys.readouterr().err
    assert "recipe was 'gradmask', now 'rrr'" in told
    assert 'loss was "gradmask", now "rrr"' in told


def test_reff_on_another_network_says_what_to_do(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(by_recipe(command, "reff")) == 2
    told = capsys.readouterr().err
    assert told.startswith("explainguide: train: recipe 'reff' guides 'layer1', 'layer2'")
    assert "(--layer)" in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()
    stages = ["--layer", "stage1", "stage2", "stage3", "--epochs", "1"]
    assert main([*by_recipe(command, "reff"), *stages]) == 2
    assert "4 layer_weights for 3 layers" in capsys.readouterr().err
    weights = ["--layer-weights", "15", "60", "250"]
    assert main([*by_recipe(command, "reff"), *stages, *weights]) == 0


def test_evaluate_tells_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none.pt")]) == 2
    assert "none.pt' does not exist" in capsys.readouterr().err
    torch.save({"a": 1}, tmp_path / "a.pt")
    assert main(["evaluate", str(tmp_path / "a.pt")]) == 2
    assert "was not written by explainguide's training" in capsys.readouterr().err


def run_small(command: list[str], *options: str) -> None:
    """A training at 24 pixels with a normalisation of its own."""
    pixels = ["--mean", "0.3", "0.2", "0.1", "--std", "0.9", "0.8", "0.7"]
    assert main([*command, *pixels, "--epochs", "1", *options]) == 0


def test_silent_weights_safetensors_is_a_checkpoint_too(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(command)
    weights, last = (str(tmp_path / "run" / n) for n in ("weights.safetensors", "last.pt"))
    capsys.readouterr()
    held_out = ["--root", str(tmp_path / "held_out"), "--boxes", str(tmp_path / "held_out.csv")]
    assert main(["evaluate", last, weights, *held_out, "--quiet", "--device", "cpu"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1:] == second.split()[1:]  # all but the file's name

    image = str(tmp_path / "images" / "left" / "1.png")
    drawn = {}
    for name, which in (
        ("a", ["--checkpoint", last]),
        ("b", ["--checkpoint", weights]),
        ("c", ["--model", SMALL, "--weights", weights]),
        ("d", ["--model", SMALL, "--weights", last]),
    ):
        out = tmp_path / f"{name}.png"
        assert main(["explain", image, *which, "--layer", "input", "--out", str(out)]) == 0
        said = capsys.readouterr().out.splitlines()[0]
        assert "predicted left" in said or "predicted right" in said
        drawn[name] = (said, out.read_bytes())
    assert len(set(drawn.values())) == 1


def test_silent_training_goes_on_with_what_the_weights_say(
    command: list[str], tmp_path: Path
) -> None:
    run_small(command)
    source = str(tmp_path / "run" / "weights.safetensors")
    position = command.index("--size")
    bare = [*command[:position], *command[position + 2 :], "--epochs", "1"]
    assert main([*bare, "--weights", source, "--out", str(tmp_path / "again")]) == 0
    _, info = saved(tmp_path / "again")
    assert (info["image_size"], info["mean"], info["std"]) == (24, [0.3, 0.2, 0.1], [0.9, 0.8, 0.7])
    at = command.index("--model")
    bare = [*command[:at], *command[at + 2 :], "--epochs", "1"]
    assert main([*bare, "--checkpoint", source, "--out", str(tmp_path / "third")]) == 0
    _, info = saved(tmp_path / "third")
    assert (info["image_size"], info["mean"]) == (24, [0.3, 0.2, 0.1])


def test_silent_convert_reads_the_header(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(command)
    weights, out = str(tmp_path / "run" / "weights.safetensors"), str(tmp_path / "bcos.pt")
    assert main(["convert", SMALL, "--weights", weights, "--bcos", "--out", out]) == 0
    model, info = load_model(out)
    assert (info["num_classes"], info["classes"]) == (2, ["left", "right"])
    assert (info["image_size"], info["bcos"]["mean"]) == (24, [0.3, 0.2, 0.1])
    assert model(torch.rand(1, 6, 24, 24)).shape == (1, 2)

    converted = [*command, "--epochs", "1", "--out", str(tmp_path / "converted")]
    at = converted.index("--model")
    assert main([*converted[:at], *converted[at + 2 :], "--checkpoint", out]) == 0
    _, info = load_model(tmp_path / "converted" / "weights.safetensors")
    assert info["bcos"]["mean"] == [0.3, 0.2, 0.1]
    capsys.readouterr()
    again = str(tmp_path / "converted" / "weights.safetensors")
    assert main([*command, "--weights", again, "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err == (
        f"explainguide: --weights: '{again}' is of a B-cos network made of '{SMALL}'. Give it with "
        "--checkpoint, which converts the model again. Weights of a plain model are allowed.\n"
    )


def test_equal_runs_in_other_places_make_equal_files(command: list[str], tmp_path: Path) -> None:
    elsewhere = write_images(tmp_path / "elsewhere")
    run_small(command)
    at = command.index("--root") + 1
    moved = [*command[:at], str(elsewhere), "--boxes", f"{elsewhere}.csv", *command[at + 3 :]]
    run_small(moved, "--out", str(tmp_path / "moved"))
    assert fingerprint(tmp_path / "moved") == fingerprint(tmp_path / "run")
    assert str(tmp_path).encode() not in (tmp_path / "run" / "weights.safetensors").read_bytes()
