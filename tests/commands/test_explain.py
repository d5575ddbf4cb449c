"""`explainguide explain`: the picture, the class that is explained, and every kind of bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from explainguide import visualization
from explainguide.checkpoints import save_checkpoint
from explainguide.cli import main
from explainguide.models import small_cnn

MODULE = "models_of_a_user"


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(3)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two images, and a module with a model."""
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("wide.png")
    Image.fromarray(pixels[:, :, 0]).save("grey.jpg")


def explain(*arguments: str) -> int:
    return main(["explain", *arguments, "--model", f"{MODULE}:tiny", "--size", "48"])


def test_one_row_an_image_and_one_column_a_layer_and_attribution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = ["--layer", "stage2", "stage3", "--attribution", "ixg", "gradcam"]
    assert explain("wide.png", "grey.jpg", *chosen, "--out", "made/out.png") == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == ["wide.png", "grey.jpg"]
    assert all("predicted class " in line and line.endswith("%)") for line in lines[:2])
    assert lines[2:] == ["saved made/out.png"]
    assert output.err == ""
    height, width = matplotlib.image.imread("made/out.png").shape[:2]
    assert width > 1.5 * height  # five columns, two rows


def test_relevance_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    panel = visualization.panel

    def spy(images: Any, maps: dict[str, Any], **options: Any) -> Any:
        titles.extend(maps)
        return panel(images, maps, **options)

    monkeypatch.setattr(visualization, "panel", spy)
    arguments = [
        "explain",
        "wide.png",
        "--model",
        f"{MODULE}:vit",
        "--size",
        "48",
        "--out",
        "p.png",
    ]
    assert main([*arguments, "--attribution", "relevance", "ixg"]) == 0
    assert titles == ["relevance at blocks.0.attn", "ixg at blocks.1.norm1"]
    titles.clear()
    assert main([*arguments, "--attribution", "relevance", "--layer", "blocks.1.attn"]) == 0
    assert titles == ["relevance at blocks.1.attn"]


def test_a_target_is_named_beside_the_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("wide.png", "--out", "p.png") == 0
    predicted = int(capsys.readouterr().out.split("class ")[1].split()[0])
    other = (predicted + 1) % 3
    assert explain("wide.png", "--target", str(other), "--out", "t.png") == 0
    text = capsys.readouterr().out.splitlines()[0]
    assert text.startswith(f"wide.png: class {other} (")
    assert f"; predicted class {predicted} (" in text
    assert explain("wide.png", "--target", f"Class {predicted}", "--out", "s.png") == 0
    assert Path("s.png").read_bytes() == Path("p.png").read_bytes()
    assert Path("t.png").read_bytes() != Path("p.png").read_bytes()


def test_boxes_are_in_pixels_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("wide.png", "--out", "plain.png") == 0
    assert explain("wide.png", "--boxes", "30,0,60,40", "--out", "boxed.png") == 0
    plain, boxed = (matplotlib.image.imread(f"{n}.png") for n in ("plain", "boxed"))
    columns = np.nonzero((plain != boxed).any((0, 2)))[0]
    assert columns.min() > plain.shape[1] / 8  # not in the left half of the first column


def test_a_checkpoint_knows_its_size_and_its_classes(capsys: pytest.CaptureFixture[str]) -> None:
    info = {
        "name": "explainguide.models:small_cnn", "num_classes": 3, "image_size": 32,
        "classes": ["cat", "dog", "eel"], "mean": [0.5] * 3, "std": [0.5] * 3, "multilabel": True,
    }  # fmt: skip
    payload = {"info": info, "model": tiny().state_dict(), "config": {}, "epoch": 1, "metrics": {}}
    save_checkpoint("last.pt", payload)
    arguments = ["--checkpoint", "last.pt", "--layer", "input", "--signed", "--out", "out.svg"]
    assert main(["explain", "wide.png", *arguments, "--target", "eel"]) == 0
    assert "eel (" in capsys.readouterr().out
    assert Path("out.svg").read_text().startswith("<?xml")


def test_random_weights_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "resnet18", "--size", "32", "--layer", "layer2", "--out", "out.png"]
    assert main(["explain", "wide.png", *arguments]) == 0
    assert capsys.readouterr().err == (
        "note: resnet18 has random weights, so its maps mean nothing; --pretrained downloads "
        "trained ones, --weights reads a file\n"
    )


def test_a_dead_layer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "vit_tiny_patch16_224", "--layer", "blocks.11", "--out", "out.png"]
    assert main(["explain", "wide.png", *arguments]) == 2
    assert capsys.readouterr().err == (
        "explainguide: InputXGradient.attribute: of layer 'blocks.11' only the tokens in front reach the "
        "logits, not the patches: every map is zero. Choose a layer before the last attention, or none: "
        "layer=None finds one. `explainguide layers` marks those that are dead.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["wide.png", "--attribution", "gradcm"],
            "--attribution: unknown attribution 'gradcm'. Did you mean 'gradcam'",
        ),
        (
            ["wide.png", "--layer", "staeg3"],
            "explain: unknown layer 'staeg3'. Did you mean 'stage3'",
        ),
        (["absent.png"], "No such file or directory: 'absent.png'."),
        (["."], "Is a directory: '"),
        (
            ["text.png"],
            "explain: 'text.png' cannot be read (not an image, or of an unknown kind). Save it "
            "again as PNG or JPEG. Files that Pillow can read are allowed.",
        ),
        (["cut.png"], "explain: 'cut.png' cannot be read ("),
        (
            ["wide.png", "--target", "3"],
            "--target: unknown class '3'. A number from 0 to 2, or a name such as 'class 0', is "
            "allowed.",
        ),
        (
            ["wide.png", "--boxes", "1,2,3"],
            "--boxes: '1,2,3' is no box in an image 60 wide and 40 high. Use x1,y1,x2,y2 in pixels "
            "of the file, such as 15,10,45,30. x1 < x2 and y1 < y2, inside the image, are allowed.",
        ),
        (["wide.png", "--boxes", "30,0,20,10"], "--boxes: '30,0,20,10' is no box in an image"),
        (["wide.png", "--boxes", "0,0,61,10"], "--boxes: '0,0,61,10' is no box in an image"),
        (
            ["wide.png", "grey.jpg", "--boxes", "1,2,3,4"],
            "--boxes: given 1 times for 2 images. Give it once an image, in their order, with ';' "
            "between several boxes, '' for none.",
        ),
        (
            ["wide.png", "--checkpoint", "last.pt"],
            "--checkpoint, --model: give one of the two. A file of `explainguide train`, or a name "
            "such as resnet50, is allowed.",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_no_picture(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.png").write_text("this is text")
    Path("cut.png").write_bytes(Path("wide.png").read_bytes()[:900])
    assert explain(*arguments, "--out", "out.png") == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"explainguide: {message}")
    assert output.err.count("\n") == 1
    assert not Path("out.png").exists()


def test_a_picture_of_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("wide.png", "--out", "out.xyz") == 2
    assert capsys.readouterr().err == (
        "explainguide: --out: 'out.xyz' is no picture. Use 'out.png'. Names that end in .png, "
        ".pdf, .svg are allowed.\n"
    )


def test_a_checkpoint_takes_no_other_weights(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", "a.pt", "--pretrained", "--out", "out.png"]
    assert main(["explain", "wide.png", *arguments]) == 2
    assert capsys.readouterr().err.startswith(
        "explainguide: --checkpoint: it holds its own model and weights. Leave out --pretrained"
    )


def test_weights_of_another_head_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    from sklearn.datasets import load_sample_image

    from explainguide.checkpoints import save_weights

    Image.fromarray(load_sample_image("flower.jpg")).save(tmp_path / "a.png")
    weights = timm.create_model("resnet10t", num_classes=3).state_dict()
    save_weights(tmp_path / "w.safetensors", weights)
    arguments = ["explain", str(tmp_path / "a.png"), "--model", "resnet10t"]
    arguments += ["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "o.png")]
    assert main(arguments) == 2
    assert "--num-classes" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()
