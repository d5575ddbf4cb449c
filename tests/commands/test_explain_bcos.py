"""`explainguide explain` of B-cos networks: the papers' panels, neurons, other attributions, mistakes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

from explainguide.bcos import AddInverse, bcosify, contribution_map, logit_bias
from explainguide.checkpoints import load_model, save_checkpoint
from explainguide.cli import bcos_pictures, main
from explainguide.models import small_cnn

MODULE = "models_of_a_user"
OPTIONS = {"image_size": [48, 48]}


def tiny(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(num_classes, widths=(4, 4, 4, 4, 8, 8))


def own_bcos() -> nn.Module:
    return bcosify(tiny(), image_size=(48, 48))


def adds_itself() -> nn.Module:
    return nn.Sequential(AddInverse(), own_bcos())


def write_checkpoint(path: str, **info: Any) -> nn.Module:
    model = own_bcos().eval() if "bcos" in info else tiny().eval()
    info = {
        "name": f"{MODULE}:tiny", "num_classes": 3, "image_size": 48, "mean": [0.0] * 3,
        "std": [1.0] * 3, "classes": ["cat", "dog", "eel"], **info,
    }  # fmt: skip
    payload = {"info": info, "model": model.state_dict(), "config": {}, "epoch": 1, "metrics": {}}
    save_checkpoint(path, payload)
    return model


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images, and a checkpoint."""
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("wide.png")
    Image.fromarray(pixels[:, :, 0]).save("grey.jpg")
    write_checkpoint("bcos.pt", bcos=OPTIONS)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the panel was given."""
    found: dict[str, Any] = {}
    panel = bcos_pictures.bcos_panel

    def spy(images: Any, explanations: Any, contributions: Any, **options: Any) -> Any:
        found.update(images=images, explanations=explanations, contributions=contributions)
        found.update(options)
        return panel(images, explanations, contributions, **options)

    monkeypatch.setattr(bcos_pictures, "bcos_panel", spy)
    return found


def explain(*arguments: str, checkpoint: str = "bcos.pt") -> int:
    return main(["explain", *arguments, "--checkpoint", checkpoint, "--out", "out.png"])


def encoded(path: str) -> torch.Tensor:
    image = functional.pil_to_tensor(Image.open(path).convert("RGB"))
    return AddInverse()(functional.resize(image, [48, 48]).float() / 255)[None]


def test_bcos_shows_what_adds_up_to_the_logit(
    drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("wide.png", "grey.jpg", "--bcos") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": predicted ")[0] for line in lines[:2]] == ["wide.png", "grey.jpg"]
    assert lines[2:] == ["saved out.png"]
    model, _ = load_model("bcos.pt")
    for i, path in enumerate(["wide.png", "grey.jpg"]):
        images = encoded(path)
        torch.testing.assert_close(drawn["images"][i], images[0, :3])
        assert float(drawn["images"][i].max()) > 0.5  # in [0, 1], not normalised
        logits = model(images)[0].detach()
        best = int(logits.argmax())
        assert drawn["titles"][i].startswith(f"predicted {['cat', 'dog', 'eel'][best]} (")
        expected = contribution_map(model, images, best)[0]
        torch.testing.assert_close(drawn["contributions"][i], expected)
        total = float((logits - logit_bias(model).detach())[best])
        assert float(drawn["contributions"][i].sum()) == pytest.approx(total, abs=1e-5)
        assert drawn["captions"][i] == f"sum {float(expected.sum()):.3g}"
        assert drawn["explanations"][i].shape == (4, 48, 48)
    height, width = matplotlib.image.imread("out.png").shape[:2]
    assert height > 0.6 * width  # three columns, two rows


def test_bcos_says_what_biases_keep_from_the_contributions(drawn: dict[str, Any]) -> None:
    arguments = ["convert", f"{MODULE}:tiny", "--bcos", "--b", "1", "--size", "48"]
    torch.manual_seed(1)
    model = tiny()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    torch.save(model.state_dict(), "w.pth")
    assert main([*arguments, "--weights", "w.pth", "--out", "one.pt"]) == 0
    assert explain("wide.png", "--bcos", checkpoint="one.pt") == 0
    total = float(drawn["contributions"][0].sum())
    assert drawn["captions"][0].startswith(f"sum {total:.3g} of ")
    assert drawn["captions"][0].endswith(": biases add the rest")
    explained = float(drawn["captions"][0].split()[3].rstrip(":"))
    loaded, _ = load_model("one.pt")
    logits = loaded(encoded("wide.png"))[0].detach()
    left = logits - logit_bias(loaded).detach()
    assert explained == pytest.approx(float(left[logits.argmax()]), rel=0.01)


def test_bcos_explains_a_class_that_is_named(drawn: dict[str, Any]) -> None:
    assert explain("wide.png", "--bcos", "--target", "eel", "--size", "32") == 0
    model, _ = load_model("bcos.pt")
    image = functional.pil_to_tensor(Image.open("wide.png"))
    images = AddInverse()(functional.resize(image, [32, 32]).float() / 255)[None]
    torch.testing.assert_close(drawn["contributions"][0], contribution_map(model, images, 2)[0])
    assert drawn["titles"][0].startswith("eel (")


@pytest.mark.parametrize(("place", "position"), [("", None), (":3,5", (3, 5))])
def test_bcos_explains_a_neuron(
    place: str, position: Any, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("wide.png", "--bcos", "--neuron", f"stage2:1{place}") == 0
    model, _ = load_model("bcos.pt")
    expected = contribution_map(model, encoded("wide.png"), 1, layer="stage2", position=position)
    torch.testing.assert_close(drawn["contributions"][0], expected[0])
    where = "row 3, column 5" if place else "where it is largest"
    assert capsys.readouterr().out.startswith(f"wide.png: stage2, channel 1, {where}\n")


def test_bcos_boxes_are_scaled_to_the_picture(drawn: dict[str, Any]) -> None:
    assert explain("wide.png", "--bcos", "--boxes", "30,0,60,40") == 0
    torch.testing.assert_close(drawn["boxes"][0], torch.tensor([[24.0, 0, 48, 48]]))


def test_other_attributions_of_a_bcos_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from explainguide import visualization

    maps: dict[str, Any] = {}
    panel = visualization.panel

    def spy(images: Any, found: Any, **options: Any) -> Any:
        maps.update(found)
        return panel(images, found, **options)

    monkeypatch.setattr(visualization, "panel", spy)
    chosen = ["--attribution", "bcos", "ixg", "gradcam", "--layer", "input", "stage3"]
    assert explain("wide.png", *chosen, "--signed") == 0
    assert list(maps) == [
        f"{name} at {layer}" for layer in ("input", "stage3") for name in ("bcos", "ixg", "gradcam")
    ]
    model, _ = load_model("bcos.pt")
    images = encoded("wide.png")
    expected = contribution_map(model, images, int(model(images).argmax()))
    torch.testing.assert_close(maps["bcos at input"][0], expected)
    assert explain("wide.png", "--attribution", "bcos") == 0  # the layer is found


def test_a_bcos_network_of_a_function() -> None:
    arguments = ["explain", "wide.png", "--size", "48", "--out", "out.png"]
    assert main([*arguments, "--model", f"{MODULE}:own_bcos", "--bcos"]) == 0
    assert main([*arguments, "--model", f"{MODULE}:adds_itself", "--attribution", "bcos"]) == 0


def test_a_bcos_network_that_adds_the_inverse_itself(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "wide.png", "--model", f"{MODULE}:adds_itself", "--bcos"]
    assert main([*arguments, "--size", "48", "--out", "out.png"]) == 2
    assert capsys.readouterr().err == (
        "explainguide: --bcos: this Sequential adds the inverse of the image itself, so its weights "
        "hold no colour. Return the network without AddInverse. One that takes 6 channels is "
        "allowed.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neuron", "stage2:1"], "--neuron: it goes with --bcos."),
        (["--bcos", "--attribution", "ixg"], "--attribution: --bcos shows what the image contributes"),
        (["--bcos", "--layer", "stage2"], "--layer: --bcos shows"),
        (["--bcos", "--signed"], "--signed: --bcos shows"),
        (["--bcos", "--neuron", "stage2:1", "--target", "cat"], "--neuron, --target: 'stage2:1' and class 'cat'"),
        (["--bcos", "--target", "cta"], "--target: unknown class 'cta'. Did you mean 'cat'"),
        (["--bcos", "--neuron", "stage2"], "--neuron: 'stage2' is no neuron. Use layer3:7 for channel 7"),
        (["--bcos", "--neuron", "stage2:1:2"], "--neuron: 'stage2:1:2' is no neuron."),
        (["--bcos", "--neuron", "staeg2:1"], "explain: unknown layer 'staeg2'. Did you mean 'stage2'"),
        (["--bcos", "--neuron", "stage2:99"], "explain: target holds channel 99, but the layer has 4."),
        (["--bcos", "--neuron", "stage2:1:99,0"], "explain: position is (99, 0), but the layer has"),
        (["--bcos", "--neuron", "input:1"], "explain: layer is 'input', which has no neurons."),
        (["--bcos", "--neuron", "head:1"], "explain: the output of layer 'head' has shape (1, 3)"),
    ],
)  # fmt: skip
def test_bcos_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("wide.png", *arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"explainguide: {message}")
    assert output.err.count("\n") == 1
    assert not Path("out.png").exists()


def test_bcos_of_an_ordinary_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint("plain.pt")
    assert explain("wide.png", "--bcos", checkpoint="plain.pt") == 2
    assert capsys.readouterr().err == (
        "explainguide: --bcos: this Sequential is no B-cos network. Convert one with `explainguide "
        "convert MODEL --bcos --out FILE`, or leave --bcos out. A checkpoint of `convert --bcos` or "
        "`train --bcos` is allowed.\n"
    )
    assert explain("wide.png", "--attribution", "bcos", checkpoint="plain.pt") == 2
    assert "has no B-cos module" in capsys.readouterr().err
