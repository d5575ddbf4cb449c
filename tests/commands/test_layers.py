"""`explainguide layers`: the stages of every family, the choice, dead layers, sizes."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from explainguide.cli import main
from explainguide.cli.layers import list_stages
from explainguide.hooks.probe import automatic_layer, probe_layers
from explainguide.models import build_model


class _Blind(nn.Module):
    """Its second layer is computed and not used."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())
        self.unseen = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU())
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        feature = self.seen(images)
        self.unseen(feature)
        return self.head(feature.mean((2, 3)))


def blind() -> nn.Module:
    return _Blind()


def counted(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """This file as a module that a user could name."""
    monkeypatch.setitem(sys.modules, "models_of_a_user", sys.modules[__name__])
    return "models_of_a_user"


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("explainguide.models:small_cnn", ["stage1", "stage2", "stage3"]),
        (
            "deit_tiny_patch16_224",
            [
                "patch_embed",
                *(f"blocks.{i}" for i in range(11)),
                "blocks.11.norm1",
                "blocks.11",
                "norm",
            ],
        ),
        ("torchvision:swin_t", [*(f"features.{i}" for i in range(8)), "norm"]),
        ("convnext_atto", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "stages"]),
    ],
)
def test_stages_are_the_layers_among_which_one_chooses(name: str, stages: list[str]) -> None:
    model = build_model(name, num_classes=10)
    layers = probe_layers(model)
    chosen = automatic_layer(model, layers)
    found = [layer.name for layer in list_stages(model, layers, chosen)]
    assert found == stages


def test_the_choice_is_marked_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "resnet18", "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("*  ")]
    assert " ".join(row.split()) == (
        "* layer4 512 x 2 x 2 NCHW 2 x 2 the choice where no layer is named"
    )
    assert (
        "* layer4 is the last layer whose places reach the logits: after it there is one vector "
        "for the whole image." in lines
    )
    assert lines[3].split() == ["input", "-", "-", "the", "image"]


def test_a_dead_layer_is_marked(here: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", f"{here}:blind", "--size", "16x12"]) == 0
    output = capsys.readouterr().out
    (row,) = [line for line in output.splitlines() if line.split()[:1] == ["unseen"]]
    assert row.endswith("dead: the logits do not depend on its places")
    assert "4 x 12 x 8" in row


def test_a_vision_transformer_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "deit_tiny_patch16_224", "--size", "64"]) == 0
    output = capsys.readouterr().out
    assert (
        "* blocks.11.norm1 is the last layer whose places reach the logits: after it only the "
        "class token does." in output
    )
    assert "1 + 4 x 4 tokens  dead: the logits do not depend on its places" in output


def test_all_shows_every_module_and_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "resnet18", "--size", "64", "--all"]) == 0
    output = capsys.readouterr().out
    assert "layer1.0.conv1" in output
    assert "BasicBlock" in output
    assert "no grid of places" in output  # the head


def test_a_function_that_needs_the_number_of_classes(
    here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layers", f"{here}:counted", "--size", "16"]) == 0
    assert "10 x 14 x 14" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["layers", "resnet18", "--size", "big"],
            "--size: 'big' is no size. Use 224, or 240x320 for height and width. "
            "Whole numbers of pixels are allowed.",
        ),
        (["layers", "resnet18", "--size", "0"], "--size: '0' is no size."),
        (["layers", "resnet5"], "Did you mean 'resnet50'"),
        (["layers", "vgg11", "--size", "2"], "layers: no layer could be found, because the model"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_random_numbers_of_the_caller_do_not_matter() -> None:
    model = build_model("resnet18")
    first = probe_layers(model, image_size=(64, 64))
    torch.manual_seed(1)
    assert probe_layers(model, image_size=(64, 64)) == first
