"""What stops a training, in which words, and what is left behind."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from explainguide.checkpoints import load_checkpoint, save_checkpoint
from explainguide.errors import DataError, GuidanceError, LayerError, OptionError
from explainguide.evaluation import evaluate
from explainguide.guidance.options import GuideOptions
from explainguide.recipes import Recipe
from explainguide.training import TrainConfig, run_folder, train

from .small_runs import QUICK, Plain, rows_of, tiny


@pytest.mark.parametrize("broken", ["class loss", "loss_loc"])
def test_a_loss_that_is_not_finite_stops_before_the_weights(
    digits: Any, tmp_path: Path, broken: str
) -> None:
    class Breaking(Plain):
        steps = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += self.training
            features = nn.functional.gelu(self.conv(x))
            if self.steps > 4 and self.training and broken == "loss_loc":
                features = Infinite.apply(features)
            out = self.head(features.mean((2, 3)))
            return out * math.inf if self.steps > 4 and broken == "class loss" else out

    model = Breaking()
    config = replace(QUICK, layer="conv", output_dir=tmp_path)
    with pytest.raises(GuidanceError) as caught:
        train(model, *digits, config, progress=False)
    text = str(caught.value)
    assert text.startswith("train: epoch 2, step 2: ")
    assert "\n" not in text
    if broken == "loss_loc":
        assert "loss_loc is nan (the map of layer 'conv' is not finite)" in text
        assert "class loss" not in text
    else:
        assert "the class loss is nan" in text
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert all(p.isfinite().all() for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_gradient_that_is_not_finite_stops_too(digits: Any, tmp_path: Path) -> None:
    class Breaking(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Infinite.apply(super().forward(x))

    model = Breaking()
    before = [p.clone() for p in model.parameters()]
    config = replace(QUICK, layer="conv", lam=0.0, log_interval=1)
    with pytest.raises(GuidanceError, match=r"epoch 1, step 1: the losses are finite, but their"):
        train(model, *digits, config, progress=False)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


class Infinite(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan


def test_a_frozen_model_and_values_that_no_file_holds(digits: Any, tmp_path: Path) -> None:
    frozen = tiny().requires_grad_(False)
    with pytest.raises(GuidanceError, match="train: every parameter of Sequential is frozen"):
        train(frozen, *digits, QUICK, progress=False)
    with pytest.raises(OptionError, match="train: info cannot be kept in a checkpoint"):
        train(tiny(), *digits, QUICK, progress=False, info={"mean": torch.zeros(3)})


def test_a_full_disk_stops_with_the_last_epoch_intact(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, payload: dict) -> Any:
        if payload["epoch"] == 2:
            raise DataError("save_checkpoint: no space")
        return save_checkpoint(path, payload)

    monkeypatch.setattr(run_folder, "save_checkpoint", save)
    with pytest.raises(DataError, match="no space"):
        train(tiny(), *digits, replace(QUICK, output_dir=tmp_path), progress=False)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert len(rows_of(tmp_path)) == 1


def test_an_unknown_layer_is_told_before_anything_is_written(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, layer="stage9", output_dir=tmp_path / "a")
    with pytest.raises(LayerError, match=r"train: unknown layer 'stage9'"):
        train(tiny(), *digits, config, progress=False)
    config = replace(config, layer=["stage1", "stage2"], layer_weights=[1.0])
    with pytest.raises(OptionError, match="1 layer_weights for 2 layers"):
        train(tiny(), *digits, config, progress=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "enrgy"}, r"TrainConfig: unknown loss 'enrgy'\. Did you mean 'energy'\?"),
        ({"schedule": "cosin"}, r"unknown schedule 'cosin'\. Did you mean 'cosine'\?"),
        ({"epochs": 0}, r"TrainConfig: epochs is 0\. A whole number from 1 on is allowed\."),
        ({"epochs": 2.5}, r"epochs is 2\.5\. A whole number"),
        ({"lr": 0.0}, r"lr is 0\.0\. A number above 0 is allowed"),
        ({"lam": -1}, r"lam is -1\. A number from 0 on is allowed"),
        ({"dilate": -0.25}, r"dilate is -0\.25\. A number from 0 on is allowed"),
        ({"class_weight": -1}, r"class_weight is -1\. A number from 0 on is allowed"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1\. A number from 0 on is allowed"),
        ({"workers": -1}, r"workers is -1\. A whole number from 0 on is allowed"),
        ({"seed": -1}, r"seed is -1\. A whole number from 0 on is allowed"),
        ({"batch_size": 0}, r"batch_size is 0\. A whole number from 1 on is allowed"),
        ({"grad_accumulation": 0}, r"grad_accumulation is 0\. A whole number from 1 on is"),
        ({"log_interval": 0}, r"log_interval is 0\. A whole number from 1 on is"),
        ({"clip_grad_norm": 0.0}, r"clip_grad_norm is 0\.0\. A number above 0 is allowed"),
        ({"negatives": 1.5}, r"negatives is 1\.5\. .*A number from 0 to 1 is"),
        (
            {"threshold": 0.4, "fit_share": 0.1},
            r"threshold is 0\.4 with fit_share=0\.1\. Leave one of them out: the threshold is",
        ),
        ({"threshold": -0.1}, r"threshold is -0\.1\. A number from 0 to 1 is"),
        ({"lam": math.nan}, r"lam is nan"),
        ({"annotated": 10}, r"annotated is 10\. Did you mean 0\.1\? A number from 0 to 1 is"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainConfig(**settings)


def test_an_unknown_setting_of_a_file_is_named() -> None:
    with pytest.raises(OptionError, match=r"unknown setting 'epoch'\. Did you mean 'epochs'\?"):
        TrainConfig.from_dict({"epoch": 3})


@pytest.mark.parametrize("made", [TrainConfig, GuideOptions, Recipe])
def test_an_unknown_setting_is_named(made: type) -> None:
    with pytest.raises(OptionError) as caught:
        made(leyer="stage2")
    names = [field.name for field in fields(made)]
    text = str(caught.value)
    assert text.startswith(f"{made.__name__}: unknown setting 'leyer'. Did you mean 'layer'")
    assert text.endswith(f"? {', '.join(names)} are allowed.")
    assert list(inspect.signature(made).parameters) == names


class Relabelled(torch.utils.data.Dataset):
    """Images of which one has a class that the model has not."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        image, label, annotation = self.data[index]
        return image, 99 if index == 0 else label, annotation


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_label_is_told_in_every_batch_of_a_step(digits: Any, seed: int) -> None:
    config = replace(QUICK, batch_size=2, grad_accumulation=5, lam=0.0, seed=seed)
    with pytest.raises(DataError, match="train: an image has class 99, but the model has 10"):
        train(tiny(), Relabelled(digits[0]), digits[1], config, progress=False)


def test_a_training_without_a_readable_image_saves_nothing(digits: Any, tmp_path: Path) -> None:
    class Unreadable(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> None:
            return None

    with pytest.raises(DataError, match="none of the 4 training images could be read"):
        train(
            tiny(),
            Unreadable(),
            digits[1],
            replace(QUICK, output_dir=tmp_path / "run"),
            progress=False,
        )
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("config", [{"epochs": 1}, 3])
def test_a_config_is_a_train_config(digits: Any, config: Any) -> None:
    with pytest.raises(OptionError, match=r"train: config is a \w+\. Use TrainConfig.* is allowed"):
        train(tiny(), *digits, config, progress=False)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "train: fit_share is 1, which leaves none of 20 images to train on. Use 0.1. A sma"),
        (
            0.1,
            "train: fit_share is 0.1, but none of the 2 images kept aside is annotated, so that ",
        ),
    ],
)
def test_images_kept_aside_that_fit_nothing(digits: Any, share: float, text: str) -> None:
    config = replace(QUICK, epochs=1, annotated=0.05, fit_share=share)
    with pytest.raises(OptionError) as caught:
        train(tiny(), *digits, config, progress=False)
    assert str(caught.value).startswith(text)


def test_images_kept_aside_are_not_trained_on_and_fit_the_threshold(digits: Any) -> None:
    model = tiny()

    class Seen(torch.utils.data.Dataset):
        trained: ClassVar[set[int]] = set()
        measured: ClassVar[set[int]] = set()

        def __len__(self) -> int:
            return len(digits[0])

        def __getitem__(self, index: int) -> Any:
            (self.trained if model.training else self.measured).add(index)
            return digits[0][index]

    config = replace(QUICK, epochs=2, fit_share=0.25)
    history = train(model, Seen(), digits[1], config, progress=False)
    assert (len(Seen.trained), len(Seen.measured)) == (15, 5)
    assert Seen.trained.isdisjoint(Seen.measured)
    aside = torch.utils.data.Subset(digits[0], sorted(Seen.measured))
    again = evaluate(model, aside, layer="stage2", threshold="fit")
    assert again["iou_threshold"] == history.last["iou_threshold"]
