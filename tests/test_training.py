"""Training: accumulation, resuming, stopping, logs; bitwise equality is meant where it is said."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from explainguide import epochs, run_folder
from explainguide.batches import epoch_order, stream_seed
from explainguide.checkpoints import load_checkpoint, load_model, save_checkpoint
from explainguide.datasets import DecoyDigits
from explainguide.errors import DataError, GuidanceError, LayerError, OptionError
from explainguide.models import small_cnn
from explainguide.run_folder import History
from explainguide.training import TrainConfig, train

WIDTHS = (4, 4, 4, 4, 8, 8)
QUICK = TrainConfig(epochs=3, batch_size=8, lr=3e-3, layer="stage2", device="cpu", lam=0.5)


def tiny() -> nn.Module:
    torch.manual_seed(3)
    return small_cnn(10, widths=WIDTHS)


class Noisy(Dataset):
    """Items that draw random numbers, as augmentation does."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        image, label, annotation = self.data[index]
        return image + 0.05 * torch.randn_like(image), label, annotation


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    data, test = DecoyDigits("train", size=24), DecoyDigits("test", size=24, masks=True)
    return Subset(data, range(20)), Subset(test, range(8))


def fingerprint(folder: Path) -> str:
    return sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Stop(Exception):
    """Stands for a kill."""


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


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    digits: Any, tmp_path: Path
) -> None:
    noisy = Noisy(digits[0]), digits[1]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = replace(QUICK, epochs=2, seed=seed, output_dir=tmp_path / name, negatives=0.3)
        torch.rand(len(name) + seed)  # what happened before must not matter
        train(tiny(), *noisy, config, progress=False)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("moment", ["in the epoch", "before last.pt"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    digits: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    optimizer: str,
    moment: str,
) -> None:
    noisy = Noisy(digits[0]), digits[1]
    config = replace(
        QUICK, schedule=schedule, optimizer=optimizer, lr=1e-2, clip_grad_norm=1.0, negatives=0.3
    )
    train(tiny(), *noisy, replace(config, output_dir=tmp_path / "whole"), progress=False)

    class Stopping(Noisy):
        count = 0

        def __getitem__(self, index: int) -> Any:
            self.count += 1
            if self.count > 30:  # in the middle of the second epoch
                raise Stop
            return super().__getitem__(index)

    broken = replace(config, output_dir=tmp_path / "broken")
    with monkeypatch.context() as patched, pytest.raises(Stop):
        data: Dataset = Stopping(digits[0])
        if moment == "before last.pt":
            data = noisy[0]
            patched.setattr(run_folder, "save_checkpoint", _stop_at_last(2))
        train(tiny(), data, noisy[1], broken, progress=False)
    torch.manual_seed(99)
    other = small_cnn(10, widths=WIDTHS)  # whatever it holds is replaced
    history = train(other, *noisy, broken, resume=True, progress=False)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "whole")
    assert [row["epoch"] for row in rows_of(tmp_path / "broken")] == ["1", "2", "3"]
    assert len(history.rows) == 3
    assert {f for f in os.listdir(tmp_path / "broken")} == set(os.listdir(tmp_path / "whole"))


def _stop_at_last(epoch: int) -> Any:
    """Saves checkpoints, but dies before last.pt of this epoch."""

    def save(path: Path, payload: dict) -> Any:
        if path.name == "last.pt" and payload["epoch"] == epoch:
            raise Stop
        return save_checkpoint(path, payload)

    return save


def test_resuming_a_finished_run_changes_nothing(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, output_dir=tmp_path)
    first = train(tiny(), *digits, config, progress=False)
    before = fingerprint(tmp_path)
    (tmp_path / "weights.safetensors").unlink()  # killed just before it
    again = train(tiny(), *digits, config, resume=True, progress=False)
    assert fingerprint(tmp_path) == before
    assert again.rows == first.rows


def test_resume_begins_where_there_is_nothing(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, output_dir=tmp_path)
    assert len(train(tiny(), *digits, config, resume=True, progress=False).rows) == 1


def test_a_folder_is_not_overwritten_and_settings_must_agree(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, output_dir=tmp_path)
    train(tiny(), *digits, config, progress=False, info={"name": "a"})
    with pytest.raises(OptionError, match=r"holds a training already\. Go on with resume=True"):
        train(tiny(), *digits, config, progress=False)
    changed = replace(config, lam=2.0, loss="l1", workers=1)
    with pytest.raises(
        OptionError,
        match=r'other settings: lam was 0.5, now 2.0; loss was "energy", now "l1"; name was \'a\'',
    ):
        train(tiny(), *digits, changed, resume=True, progress=False, info={"name": "b"})
    fewer = Subset(digits[0], range(10))
    with pytest.raises(OptionError, match="there were 20 training images, now 10"):
        train(tiny(), fewer, digits[1], config, resume=True, progress=False, info={"name": "a"})


KILLED = """
    import sys, time, torch
    from torch.utils.data import Subset
    from explainguide.datasets import DecoyDigits
    from explainguide.models import small_cnn
    from explainguide.training import TrainConfig, train

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Subset(DecoyDigits("train", size=24), range(64))
    config = TrainConfig(epochs=4, batch_size=8, lr=3e-3, layer="input", schedule="one-cycle",
                         negatives=0.3, device="cpu", output_dir=sys.argv[1])
    train(small_cnn(10, widths=(4, 4, 4, 4, 8, 8)), data, Subset(data, range(8)), config,
          resume=True, progress=False)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    folder = tmp_path / "killed"
    kills = 0
    for epochs in (1, 2, 3):
        process = subprocess.Popen([*command, str(folder)])
        while process.poll() is None and not _logged(folder, epochs):
            time.sleep(0.002)
        time.sleep(0.05 * epochs)  # into the next epoch
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([*command, str(folder)], check=True)
    assert kills
    assert fingerprint(folder) == fingerprint(tmp_path / "whole")
    assert [row["epoch"] for row in rows_of(folder)] == ["1", "2", "3", "4"]


def _logged(folder: Path, epochs: int) -> bool:
    return (folder / "log.csv").exists() and len(rows_of(folder)) >= epochs


class Plain(nn.Module):
    """No BatchNorm, so a batch may be cut in pieces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.head = nn.Conv2d(3, 6, 5), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.gelu(self.conv(x)).mean((2, 3)))


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


@pytest.mark.parametrize("layer", ["input", "stage2"])
def test_bf16_runs_and_learns(digits: Any, layer: str) -> None:
    config = replace(QUICK, mixed_precision="bf16", layer=layer)
    history = train(tiny(), *digits, config, progress=False)
    assert all(math.isfinite(row["loss_loc"]) for row in history.rows)
    assert history.last["loss"] < history.rows[0]["loss"]


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


class Infinite(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan


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
    none = train(tiny(), *digits, replace(QUICK, epochs=1, annotated=0.0), progress=False)
    assert math.isnan(none.last["loss_loc"])
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


def test_an_unknown_layer_is_told_before_anything_is_written(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, layer="stage9", output_dir=tmp_path / "a")
    with pytest.raises(LayerError, match=r"train: unknown layer 'stage9'"):
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


def test_epochs_are_shuffled_by_seed_and_epoch_alone() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert epoch_order(20, 0, 1) == epoch_order(20, 0, 1)
    assert len({stream_seed(s, e, p) for s in range(3) for e in range(3) for p in range(3)}) == 27
