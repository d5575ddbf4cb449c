"""Models by name and weights from files: what is built, and what a mistake is told."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from explainguide.errors import DataError, ExplainGuideWarning, OptionError
from explainguide.models import build_model, load_weights, set_image_size, small_cnn


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "torchvision:resnet18"])
def test_a_name_builds_a_model_with_so_many_classes(name: str) -> None:
    model = build_model(name, num_classes=3).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert hasattr(model, "layer4")


def test_a_users_function_that_must_know_the_number_of_classes() -> None:
    with pytest.raises(OptionError, match="needs to know the number of classes"):
        build_model("explainguide.models:small_cnn")


def test_a_users_function_is_called_with_the_number_of_classes() -> None:
    model = build_model("explainguide.models:small_cnn", num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_small_network_has_six_convolutions_in_stages_that_can_be_named() -> None:
    model = small_cnn(10)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6
    sizes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, o, name=name: sizes.update({name: o.shape[1:]}))
    model(torch.zeros(2, 3, 48, 48))
    assert [tuple(sizes[f"stage{i}"]) for i in (1, 2, 3)] == [
        (16, 48, 48),
        (32, 24, 24),
        (64, 12, 12),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"build_model: unknown model 'resnet81'\. Did you mean 'resnet18'.*allowed\."),
        ("torchvision:resnet19", r"unknown model 'torchvision:resnet19'\. Did you mean 'resnet1"),
        ("no_such_package:f", r"'no_such_package:f' cannot be imported .*PYTHONPATH\?"),
        ("explainguide.models:smal_cnn", r"has no function 'smal_cnn'\. Did you mean 'small_cnn'"),
        ("collections:OrderedDict", r"returned a OrderedDict\. Return the model itself\."),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_model(name)


def test_pretrained_and_a_file_exclude_one_another(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="exclude one another"):
        build_model("resnet18", pretrained=True, weights=tmp_path / "w.pth")


def test_a_failed_download_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host. Tried 5 times\nand gave up")

    monkeypatch.setattr(timm, "create_model", fail)
    expected = (
        "build_model: no pretrained weights for 'resnet18' (ConnectionError: no route to host). "
        "Check the network, or give a file with weights=."
    )
    with pytest.raises(DataError, match=re.escape(expected)) as caught:
        build_model("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "prefixes", "safetensors"])
def test_weights_load_from_every_usual_form(tmp_path: Path, form: str) -> None:
    source, target = small_cnn(4), small_cnn(4)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in _state(source)}
    content: dict = dict(state)
    if form == "prefixes":
        content = {f"module._orig_mod.{k}": v for k, v in state.items()}
    elif form in ("state_dict", "model"):
        content = {form: content, "epoch": 3}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, str(path))
    else:
        torch.save(content, path)
    assert load_weights(target, path) == ""
    assert all(torch.equal(v, state[k]) for k, v in _state(target))


def _state(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(model.state_dict().items())


def test_a_head_of_another_size_is_dropped_and_said(tmp_path: Path) -> None:
    torch.save(small_cnn(1000).state_dict(), tmp_path / "w.pth")
    model = small_cnn(4)
    head = model.head.weight.clone()
    note = load_weights(model, tmp_path / "w.pth")
    assert re.search(r"has 1000 classes and the model 4: head.weight, head.bias stay", note)
    assert torch.equal(model.head.weight, head)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    torch.save(OrderedDict(conv=torch.zeros(3), stage1=torch.zeros(2)), tmp_path / "w.pth")
    model = small_cnn(4)
    before = {k: v.clone() for k, v in _state(model)}
    with pytest.raises(
        DataError,
        match=r"w.pth' is a checkpoint of another model than this Sequential\. not in the file: "
        r"stage1.0.weight, .* and \d+ more; not in the model: conv, stage1\. Name the model",
    ):
        load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(v, before[k]) for k, v in _state(model))


def test_other_widths_are_another_model(tmp_path: Path) -> None:
    torch.save(small_cnn(4, widths=(8, 8, 8, 8, 8, 8)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"of another shape: stage1.0.weight is \(8, 3, 3, 3\)"):
        load_weights(small_cnn(4), tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 2000, -50])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    whole = tmp_path / f"whole{suffix}"
    state = small_cnn(4).state_dict()
    if suffix == ".pth":
        torch.save(state, whole)
    else:
        safetensors.torch.save_file(state, str(whole))
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"damaged{suffix}' \(\d+ bytes\) is damaged or no file"):
        load_weights(small_cnn(4), damaged)


def test_a_pickled_model_is_not_run(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.pth")
    with pytest.raises(DataError, match="holds Python objects, which are not loaded"):
        load_weights(small_cnn(4), tmp_path / "w.pth")


def test_a_missing_file_and_a_file_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_weights(small_cnn(4), tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"holds no tensors, only \['epoch'\]"):
        load_weights(small_cnn(4), tmp_path / "w.pth")


def test_a_vision_transformer_takes_another_image_size() -> None:
    model = build_model("vit_tiny_patch16_224", num_classes=2, image_size=32).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    with pytest.raises(OptionError, match="cannot take images of 5 x 5"):
        set_image_size(model, 5)


def test_the_class_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "net": nn.Linear(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"can run code \(torch\.nn\.modules\.linear\.Linear\)\."):
        load_weights(small_cnn(4), tmp_path / "w.pth")


def _drawn() -> dict[str, torch.Tensor]:
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in _state(small_cnn(4))}


def _loaded_as(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, state[k]) for k, v in _state(model))


@pytest.mark.parametrize("program", ["timm", "torchvision", "mae"])
def test_silent_checkpoints_of_training_programs_hold_their_options(
    tmp_path: Path, program: str
) -> None:
    """As timm's `CheckpointSaver` and torchvision's `utils.save_on_master` lay them out."""
    state = _drawn()
    args = argparse.Namespace(lr=0.1, model="resnet18", layers=[1, 2], resume="", amp=None)
    content = {
        "timm": {"epoch": 3, "arch": "small", "state_dict": state, "args": args, "version": 2},
        "torchvision": {"model": state, "lr_scheduler": {"T_max": 3}, "epoch": 3, "args": args},
        "mae": {"model": {f"module.{k}": v for k, v in state.items()}, "args": args},
    }
    torch.save(content[program], tmp_path / "last.pth.tar")
    model = small_cnn(4)
    assert load_weights(model, tmp_path / "last.pth.tar") == ""
    assert _loaded_as(model, state)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # for this file only


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "module.model.", "_orig_mod.", "model._orig_mod.", "model.module.", "0."],
)
def test_silent_prefixes_of_whatever_held_the_model(tmp_path: Path, prefix: str) -> None:
    state = _drawn()
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "a.ckpt")
    model = small_cnn(4)
    assert load_weights(model, tmp_path / "a.ckpt") == ""
    assert _loaded_as(model, state)


def test_silent_what_stood_beside_the_model_is_said(tmp_path: Path) -> None:
    state = _drawn()
    content = {f"net.{k}": v for k, v in state.items()} | {"loss.pos_weight": torch.ones(4)}
    torch.save({"state_dict": content}, tmp_path / "lightning.ckpt")
    model = small_cnn(4)
    expected = "lightning.ckpt' holds the model as 'net'; what stands beside it is left out: loss.pos_weight."
    with pytest.warns(ExplainGuideWarning, match=re.escape(expected)):
        assert load_weights(model, tmp_path / "lightning.ckpt") == ""
    assert _loaded_as(model, state)


def test_silent_a_part_of_another_model_is_still_refused(tmp_path: Path) -> None:
    content = {f"net.{k}": v for k, v in _drawn().items() if "stage3" not in k}
    torch.save(content | {"loss.weight": torch.ones(4)}, tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"a.pth' is a checkpoint of another model"):
        load_weights(small_cnn(4), tmp_path / "a.pth")


def test_a_model_with_a_part_called_model_keeps_its_names(tmp_path: Path) -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_cnn(4)

    task, state = Task(), _drawn()
    torch.save({f"model.{k}": v for k, v in state.items()}, tmp_path / "a.pth")
    assert load_weights(task, tmp_path / "a.pth") == ""
    assert _loaded_as(task.model, state)


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")]
)
def test_silent_averaged_weights_beside_the_others(
    tmp_path: Path, plain: str, averaged: str
) -> None:
    one, two = _drawn(), _drawn()
    content = {plain: one, averaged: {f"module.{k}": v for k, v in two.items()}}
    content[averaged]["n_averaged"] = torch.tensor(5)  # of torchvision's ExponentialMovingAverage
    torch.save(content, tmp_path / "both.pth")
    model = small_cnn(4)
    expected = f"both.pth' holds two sets of weights, '{plain}' and the averaged '{averaged}'."
    with pytest.warns(ExplainGuideWarning, match=re.escape(expected)) as caught:
        load_weights(model, tmp_path / "both.pth")
    assert caught[0].filename == __file__
    assert _loaded_as(model, one)
    torch.save({averaged: content[averaged]}, tmp_path / "alone.pth")
    assert load_weights(model, tmp_path / "alone.pth") == ""
    assert _loaded_as(model, two)


def test_safetensors_of_a_hub_load(tmp_path: Path) -> None:
    state = _drawn()
    safetensors.torch.save_file(state, str(tmp_path / "model.safetensors"), {"format": "pt"})
    model = small_cnn(4)
    assert load_weights(model, tmp_path / "model.safetensors") == ""
    assert _loaded_as(model, state)


def test_a_function_of_the_user_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(num_classes: int = 3) -> nn.Module:
        raise KeyError("width")

    monkeypatch.setattr(torch.nn.functional, "build", build, raising=False)
    with pytest.raises(
        OptionError, match=r"\(num_classes=4\), raises KeyError: 'width'. The error is in"
    ):
        build_model("torch.nn.functional:build", num_classes=4)
    with pytest.raises(OptionError, match=r"\(\), raises KeyError: 'width'. The error is in"):
        build_model("torch.nn.functional:build")
