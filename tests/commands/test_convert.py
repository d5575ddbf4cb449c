"""`explainguide convert`: what it says, a file that all commands read, and every mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from explainguide.bcos import AddInverse, BcosConv2d, bcosify, conversion
from explainguide.checkpoints import load_checkpoint, load_model, save_checkpoint, save_weights
from explainguide.cli import main
from explainguide.dynamic import is_bcos
from explainguide.models import small_cnn
from explainguide.xdnn import is_homogeneous

MODULE = "models_of_a_user"
TINY = f"{MODULE}:tiny"


def tiny(num_classes: int = 3) -> nn.Module:
    return small_cnn(num_classes, widths=(4, 4, 4, 4, 8, 8))


def relu(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)


def convert(*arguments: str, model: str = TINY, out: str = "out.pt") -> int:
    return main(["convert", model, "--size", "32", *arguments, "--out", out])


def test_bcos_says_what_was_changed_and_what_comes_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert convert("--bcos") == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[0] == f"{TINY} is a B-cos network now, with B = 2:"
    assert "   1 x Conv2d(3) -> BcosConv2d(6)" in lines
    assert "saved out.pt" in lines
    assert lines[-3:] == [
        "Its logits are new, so train it:",
        "  explainguide train --checkpoint out.pt --attribution bcos --layer input --data ... "
        "--out RUN",
        "  explainguide explain IMAGE --checkpoint out.pt --bcos --out picture.png",
    ]
    model, info = load_model("out.pt")
    assert str(conversion(model)) in output.out
    assert info["bcos"]["b"] == 2
    assert info["image_size"] == 32
    assert info["epoch"] == 0
    assert info["config"]["attribution"] == "bcos"
    assert model(AddInverse()(torch.rand(1, 3, 32, 32))).shape == (1, 3)


def test_bcos_at_b_1_keeps_the_logits(capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny().eval()
    save_weights("w.safetensors", plain.state_dict())
    normal = ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.25", "0.5"]
    assert convert("--bcos", "--b", "1", "--weights", "w.safetensors", *normal) == 0
    assert "Its logits are those of the model" in capsys.readouterr().out
    model, _ = load_model("out.pt")
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(model(AddInverse()(images)), plain(normalised), rtol=1e-4, atol=1e-5)


def test_bcos_options_reach_the_network() -> None:
    options = ["--fresh", "--b", "1.5", "--max-out", "2", "--norm", "detached", "--gain", "norm"]
    options += ["--logit-bias", "-3", "--bias", "keep", "--activations", "keep"]
    assert convert("--bcos", *options, "--num-classes", "5") == 0
    found = load_checkpoint("out.pt")["info"]
    assert found["bcos"] == {
        "b": 1.5, "keep_weights": False, "max_out": 2, "norm": "detached", "gain": "norm",
        "logit_bias": -3.0, "bias": True, "activations": "keep", "image_size": [32, 32],
    }  # fmt: skip
    assert found["num_classes"] == 5
    model, _ = load_model("out.pt")
    unit = next(module for module in model.modules() if isinstance(module, BcosConv2d))
    assert (unit.b, unit.max_out, unit.gain) == (1.5, 2, "norm")


def test_random_weights_of_a_library_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--bcos", model="torchvision:squeezenet1_1") == 0
    assert capsys.readouterr().err == (
        "note: torchvision:squeezenet1_1 has random weights; --pretrained downloads trained ones, "
        "--weights reads a file\n"
    )
    assert load_checkpoint("out.pt")["info"]["num_classes"] == 1000


def test_xdnn_says_what_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    normal = ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.25", "0.5"]
    assert convert("--xdnn", *normal, model=f"{MODULE}:relu") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{MODULE}:relu has no biases now:\n   2 x bias removed\n")
    assert "   1 x BatchNorm2d is now ChannelScale" in text
    assert "--checkpoint out.pt --attribution intgrad --layer input" in text
    model, info = load_model("out.pt")
    assert is_homogeneous(model)
    assert not is_bcos(model)
    assert info["mean"] == [0.5, 0.4, 0.3]
    assert info["xdnn"] == {"normalization": "fold", "image_size": [32, 32]}


def test_what_stays_unexplained_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", "vit_tiny_patch16_224", "--bcos", "--b", "1", "--out", "vit.pt"]
    assert main(arguments) == 0
    assert "left: cls_token, pos_embed: added to the tokens" in capsys.readouterr().out


def test_a_head_of_another_size_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    save_weights("w.safetensors", tiny(7).state_dict())
    assert convert("--bcos", "--weights", "w.safetensors", "--num-classes", "3") == 0
    assert "has 7 classes and the model 3" in capsys.readouterr().out


def test_the_checkpoint_of_a_training_says_how_it_took_images() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, depth=1).eval()
    info = {"name": f"{MODULE}:vit", "num_classes": 2, "image_size": 32, "mean": [0.5, 0.4, 0.3]}
    info |= {"std": [0.2, 0.25, 0.5], "classes": ["cat", "dog"], "multilabel": True}
    payload = {"info": info, "model": vit.state_dict(), "config": {}, "epoch": 3, "metrics": {}}
    save_checkpoint("last.pt", payload)
    arguments = ["convert", f"{MODULE}:vit", "--bcos", "--b", "1", "--weights", "last.pt"]
    assert main([*arguments, "--out", "out.pt"]) == 0
    model, found = load_model("out.pt")
    assert (found["classes"], found["multilabel"]) == (["cat", "dog"], True)
    assert (found["image_size"], found["mean"], found["std"]) == (32, [0.0] * 3, [1.0] * 3)
    images = torch.rand(2, 3, 32, 32)
    normalised = functional.normalize(images, info["mean"], info["std"])
    torch.testing.assert_close(model(AddInverse()(images)), vit(normalised), rtol=1e-4, atol=1e-5)


def vit(num_classes: int) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, depth=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--bcos, --xdnn: give one of the two. Either is allowed: "),
        (["--bcos", "--xdnn"], "--bcos, --xdnn: give one of the two. Either is allowed: "),
        (["--xdnn", "--b", "1"], "--b: it goes with --bcos. Leave it out."),
        (["--xdnn", "--max-out", "2"], "--max-out: it goes with --bcos."),
        (["--xdnn", "--fresh"], "--fresh: it goes with --bcos."),
        (["--bcos", "--normalization", "fold"], "--normalization: it goes with --xdnn."),
        (["--bcos", "--norm", "uncentred"], "--norm: unknown norm 'uncentred'. Did you mean 'uncentered'"),
        (["--bcos", "--gain", "one"], "--gain: unknown gain 'one'."),
        (["--bcos", "--bias", "no"], "--bias: unknown bias 'no'."),
        (["--xdnn", "--normalization", "fld"], "--normalization: unknown normalization 'fld'. Did you mean 'fold'"),
        (["--bcos", "--b", "0.5"], "bcosify: b is 0.5."),
        (["--bcos", "--b", "x"], "argument --b: invalid float value: 'x'."),
        (["--bcos", "--max-out", "2"], "bcosify: max_out is 2, but the kept weights"),
        (["--bcos", "--fresh", "--pretrained"], "--fresh: it makes new weights."),
        (["--bcos", "--fresh", "--mean", "0", "0", "0"], "--fresh: it makes new weights."),
        (["--bcos", "--std", "0", "1", "1"], "--std: [0.0, 1.0, 1.0] holds a value that is not"),
        (["--bcos", "--pretrained", "--weights", "w"], "--weights: with --pretrained there are two."),
        (["--bcos", "--weights", "none.pth"], "load_weights: 'none.pth' does not exist."),
        (["--bcos", "--pretrained"], f"build_model: pretrained=True, but '{TINY}' is a function."),
        (["--bcos", "--size", "0"], "--size: 0 is no size."),
        (["--bcos", "--num-classes", "0"], "build_model: num_classes is 0."),
        (["--xdnn"], "remove_bias: Sequential has modules that do not give a * f(x) for a * x"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"explainguide: {message}")
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not Path("out.pt").exists()


def test_a_model_that_has_no_bcos_form_or_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--bcos", model="resnet81") == 2
    assert "unknown model 'resnet81'. Did you mean" in capsys.readouterr().err
    assert main(["convert", "swin_t", "--bcos", "--out", "out.pt"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("explainguide: bcosify: SwinTransformer has layers without a B-cos form")
    assert told.count("\n") == 1
    assert not Path("out.pt").exists()


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.pt").write_text("a training")
    assert convert("--bcos") == 2
    assert capsys.readouterr().err == (
        "explainguide: --out: 'out.pt' exists. Choose another name, or remove it. Nothing is "
        "overwritten.\n"
    )
    assert Path("out.pt").read_text() == "a training"


def test_a_place_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert convert("--bcos", out="file/out.pt") == 2
    told = capsys.readouterr().err
    assert told.startswith("explainguide: ")
    assert told.count("\n") == 1


def test_a_bcos_network_is_not_converted_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--bcos", model=f"{MODULE}:made") == 2
    assert "is a B-cos network already" in capsys.readouterr().err


def made(num_classes: int = 3) -> nn.Module:
    return bcosify(tiny(num_classes), image_size=(32, 32))
