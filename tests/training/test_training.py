"""Training: what a run leaves, what the settings change, and that the model comes back whole."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from explainguide.checkpoints import load_checkpoint, load_model
from explainguide.errors import OptionError
from explainguide.models import small_cnn
from explainguide.training import TrainConfig, epochs, train
from explainguide.training.run_folder import History

from .small_runs import QUICK, Noisy, Plain, rows_of, tiny


def test_a_training_leaves_its_files_and_numbers(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, output_dir=tmp_path)
    info = {"name": "explainguide.models:small_cnn", "num_classes": 10}
    history = train(tiny(), *digits, config, progress=False, info=info)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    for name in ("loss", "loss_loc", "accuracy", "epg", "iou", "on_object_epg", "lr"):
        assert all(math.isfinite(row[name]) for row in history.rows), name
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert history.skipped == 0
    front = {f"epoch_{epoch:03d}.pt" for epoch in history.front}
    expected = {"last.pt", "log.csv", "config.json", "weights.safetensors"} | front
    assert set(os.listdir(tmp_path)) == expected
    logged = [float(row["epg"]) for row in rows_of(tmp_path)]
    assert logged == [row["epg"] for row in history.rows]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert TrainConfig.from_dict(saved["config"]) == config
    payload = load_checkpoint(tmp_path / "last.pt")
    assert payload["info"] == info
    assert payload["metrics"] == history.last


def test_a_small_checkpoint_loads_as_a_model(digits: Any, tmp_path: Path) -> None:
    info = {"name": "explainguide.models:small_cnn", "num_classes": 10}
    torch.manual_seed(0)
    model = small_cnn(10)
    train(model, *digits, replace(QUICK, epochs=1, output_dir=tmp_path), progress=False, info=info)
    loaded, found = load_model(tmp_path / "epoch_001.pt")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert found["config"]["layer"] == "stage2"


def test_nothing_is_written_without_a_folder(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(), *digits, replace(QUICK, epochs=1), progress=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_gradients_equal_a_large_batch(digits: Any, reduction: str) -> None:
    # 20 images in pieces of 3 leave uneven pieces, and half of them have no annotation.
    weights = {}
    for pieces in (1, 4):
        model = Plain().double()
        config = replace(
            QUICK,
            epochs=1,
            batch_size=12 // pieces,
            grad_accumulation=pieces,
            layer="conv",
            optimizer="sgd",
            lr=0.1,
            target="all",
            annotated=0.5,
            reduction=reduction,
        )
        data = Subset(Double(digits[0]), range(20))
        train(model, data, Double(digits[1]), config, progress=False)
        weights[pieces] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(weights[1], weights[4], rtol=0, atol=1e-12)


def test_weights_and_loss_options_reach_the_step(digits: Any) -> None:
    """Twice the weights of both losses are twice the step of plain gradient descent."""
    moved = {}
    for factor in (1.0, 2.0):
        model = Plain()
        start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        config = replace(
            QUICK, epochs=1, batch_size=20, layer="conv", optimizer="sgd", lr=1e-3, target="all"
        )
        options = {"loss": "rrr", "loss_options": {"normalize": False}, "weight_decay": 0.0}
        config = replace(config, lam=factor, class_weight=factor, **options)
        train(model, *digits, config, progress=False)
        moved[factor] = torch.cat([p.detach().flatten() for p in model.parameters()]) - start
    assert torch.allclose(moved[2.0], 2 * moved[1.0], rtol=1e-3, atol=1e-6)


def test_confidence_boosting_needs_no_labels(digits: Any) -> None:
    class Mislabelled(Noisy):
        def __getitem__(self, index: int) -> Any:
            image, label, annotation = self.data[index]
            return image, (label + 1) % 10, annotation

    config = replace(QUICK, epochs=2, lam=0.0, class_loss="confidence-boosting", temperature=0.65)
    weights = []
    for data in (digits[0], Mislabelled(digits[0])):
        model = tiny()
        history = train(model, data, digits[1], config, progress=False)
        assert history.last["loss"] < history.rows[0]["loss"]
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


class Double(Noisy):
    def __getitem__(self, index: int) -> Any:
        image, label, annotation = self.data[index]
        return image.double(), label, annotation


def test_no_guidance_at_all_with_lam_zero(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a guide was built")

    monkeypatch.setattr(epochs, "ExplanationGuidance", refuse)
    history = train(tiny(), *digits, replace(QUICK, epochs=1, lam=0.0), progress=False)
    assert math.isnan(history.last["loss_loc"])


def test_the_model_has_no_hooks_and_its_own_forward_afterwards(digits: Any) -> None:
    model = tiny()
    train(model, *digits, replace(QUICK, epochs=1, mixed_precision="bf16"), progress=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "forward" not in vars(model)


@pytest.mark.parametrize("frozen", [False, True])
def test_each_module_is_in_its_own_mode_afterwards(digits: Any, frozen: bool) -> None:
    model = tiny().train(frozen)
    if frozen:
        model[0].eval()
    before = [module.training for module in model.modules()]
    train(model, *digits, replace(QUICK, epochs=1), progress=False)
    assert [module.training for module in model.modules()] == before


def test_a_model_with_auxiliary_outputs_trains_by_its_main_logits(digits: Any) -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = tiny()

        def forward(self, images: torch.Tensor) -> Any:
            logits = self.main(images)
            return {"logits": logits, "aux": 0 * logits} if self.training else logits

    config = replace(QUICK, epochs=1, layer="input")
    rows = [train(model, *digits, config, progress=False).last for model in (Auxiliary(), tiny())]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["loss_loc"] == rows[1]["loss_loc"]


@pytest.mark.parametrize("layer", ["input", "stage2"])
def test_bf16_runs_and_learns(digits: Any, layer: str) -> None:
    config = replace(QUICK, mixed_precision="bf16", layer=layer)
    history = train(tiny(), *digits, config, progress=False)
    assert all(math.isfinite(row["loss_loc"]) for row in history.rows)
    assert history.last["loss"] < history.rows[0]["loss"]


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_counted_and_told_once(
    digits: Any, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    class Damaged(Noisy):
        def __getitem__(self, index: int) -> Any:
            return None if index in (1, 2, 7) else self.data[index]

    config = replace(QUICK, epochs=2, batch_size=1, workers=workers)
    model = Plain()
    history = train(model, Damaged(digits[0]), digits[1], replace(config, layer="conv"))
    assert history.skipped == 3
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith("3 images could not be read")


def test_only_some_images_keep_their_annotation(digits: Any) -> None:
    none = replace(QUICK, epochs=1, annotated=0.0)
    with pytest.raises(OptionError, match=r"train: lam is 0\.5, but no image .* \(annotated=0\)"):
        train(tiny(), *digits, none, progress=False)
    unguided = train(tiny(), *digits, replace(none, lam=0.0), progress=False)
    assert math.isnan(unguided.last["loss_loc"])
    some = train(tiny(), *digits, replace(QUICK, epochs=1, annotated=0.2), progress=False)
    assert math.isfinite(some.last["loss_loc"])


def test_dilated_boxes_make_the_loss_smaller(digits: Any) -> None:
    losses = [
        train(tiny(), *digits, replace(QUICK, epochs=1, lr=1e-12, dilate=d), progress=False).last
        for d in (0.0, 0.3)
    ]
    assert losses[1]["loss_loc"] < losses[0]["loss_loc"]


def test_multi_hot_labels_are_scored_by_f1(digits: Any, tmp_path: Path) -> None:
    class Hot(Noisy):
        def __getitem__(self, index: int) -> Any:
            image, label, annotation = self.data[index]
            return image, nn.functional.one_hot(torch.tensor(label), 10).float(), annotation

    config = replace(QUICK, epochs=1, layer=["stage1", "stage2"], layer_weights=[1.0, 2.0])
    history = train(tiny(), Hot(digits[0]), Hot(digits[1]), config, progress=False)
    assert {"f1", "map", "epg stage1", "epg stage2"} <= set(history.last)


def test_tensorboard_is_written_or_the_extra_is_named(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    config = replace(QUICK, epochs=1, tensorboard=True)
    train(tiny(), *digits, replace(config, output_dir=tmp_path / "a"), progress=False)
    assert list((tmp_path / "a" / "tensorboard").glob("events.*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"`pip install explainguide\[tensorboard\]`"):
        train(tiny(), *digits, replace(config, output_dir=tmp_path / "b"), progress=False)


def test_the_front_ignores_what_no_epoch_has() -> None:
    rows = [{"accuracy": a, "epg": math.nan, "iou": math.nan} for a in (0.2, 0.5, 0.4)]
    assert History(rows).front == [2]
    rows = [{"f1": 0.5, "epg": 0.1, "iou": 0.2}, {"f1": 0.4, "epg": 0.3, "iou": 0.2}]
    rows.append({"f1": 0.3, "epg": 0.2, "iou": 0.1})
    assert History(rows).front == [1, 2]
    assert History().front == []


def test_the_bar_shows_the_losses_and_the_epg(
    digits: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(), *digits, replace(QUICK, epochs=2))
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    for name in ("loss=", "loss_loc=", "EPG="):
        assert name in shown


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_runs_on_a_gpu(digits: Any, precision: str) -> None:
    config = replace(QUICK, device="auto", mixed_precision=precision)
    history = train(tiny(), *digits, config, progress=False)
    assert all(math.isfinite(row["loss_loc"]) for row in history.rows)
    assert history.last["loss"] < history.rows[0]["loss"]
