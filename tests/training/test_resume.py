"""A training that is stopped or killed goes on to bitwise the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, Subset

from explainguide.checkpoints import save_checkpoint
from explainguide.datasets.batches import epoch_order, stream_seed
from explainguide.errors import DataError, OptionError
from explainguide.models import small_cnn
from explainguide.training import run_folder, train

from .small_runs import QUICK, WIDTHS, Noisy, fingerprint, rows_of, tiny


class StopError(Exception):
    """Stands for a kill."""


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
                raise StopError
            return super().__getitem__(index)

    broken = replace(config, output_dir=tmp_path / "broken")
    data: Dataset = Stopping(digits[0])
    with monkeypatch.context() as patched:
        if moment == "before last.pt":
            data = noisy[0]
            patched.setattr(run_folder, "save_checkpoint", _stop_at_last(2))
        with pytest.raises(StopError):
            train(tiny(), data, noisy[1], broken, progress=False)
    torch.manual_seed(99)
    other = small_cnn(10, widths=WIDTHS)  # whatever it holds is replaced
    history = train(other, *noisy, broken, resume=True, progress=False)
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "whole")
    assert [row["epoch"] for row in rows_of(tmp_path / "broken")] == ["1", "2", "3"]
    assert len(history.rows) == 3
    assert set(os.listdir(tmp_path / "broken")) == set(os.listdir(tmp_path / "whole"))


def _stop_at_last(epoch: int) -> Any:
    """Saves checkpoints, but dies before last.pt of this epoch."""

    def save(path: Path, payload: dict) -> Any:
        if path.name == "last.pt" and payload["epoch"] == epoch:
            raise StopError
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


def test_a_checkpoint_that_no_training_wrote_is_named(digits: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"model": tiny().state_dict(), "info": {}})
    with pytest.raises(DataError, match=r"^train: '.*last\.pt' has no 'config'\."):
        train(tiny(), *digits, replace(QUICK, output_dir=tmp_path), resume=True, progress=False)


def test_resume_begins_where_there_is_nothing(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, output_dir=tmp_path)
    assert len(train(tiny(), *digits, config, resume=True, progress=False).rows) == 1


def test_a_folder_is_not_overwritten_and_settings_must_agree(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, output_dir=tmp_path)
    train(tiny(), *digits, config, progress=False, info={"name": "a"})
    with pytest.raises(OptionError, match=r"holds a training already\. Go on with resume=True"):
        train(tiny(), *digits, config, progress=False)
    changed = replace(config, lam=2.0, loss="l1")
    with pytest.raises(
        OptionError,
        match=r'other settings: loss was "energy", now "l1"; lam was 0.5, now 2.0; name was \'a\'',
    ):
        train(tiny(), *digits, changed, resume=True, progress=False, info={"name": "b"})
    fewer = Subset(digits[0], range(10))
    with pytest.raises(OptionError, match="there were 20 training images, now 10"):
        train(tiny(), fewer, digits[1], config, resume=True, progress=False, info={"name": "a"})


def test_settings_that_an_older_version_did_not_have_are_its_defaults() -> None:
    before = {k: v for k, v in QUICK.to_dict().items() if k not in ("class_loss", "loss_options")}
    assert QUICK.differences(before) == []
    found = replace(QUICK, class_loss="confidence-boosting").differences(before)
    assert found == ['class_loss was "task", now "confidence-boosting"']


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
    for count in (1, 3):
        process = subprocess.Popen([*command, str(folder)])
        while process.poll() is None and not _logged(folder, count):
            time.sleep(0.002)
        time.sleep(0.05 * count)  # into the next epoch
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


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    digits: Any, tmp_path: Path
) -> None:
    noisy = Noisy(digits[0]), digits[1]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = replace(QUICK, epochs=2, seed=seed, output_dir=tmp_path / name, negatives=0.3)
        torch.rand(len(name) + seed)  # what happened before must not matter
        train(tiny(), *noisy, config, progress=False)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


def test_epochs_are_shuffled_by_seed_and_epoch_alone() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert epoch_order(20, 0, 1) == epoch_order(20, 0, 1)
    assert len({stream_seed(s, e, p) for s in range(3) for e in range(3) for p in range(3)}) == 27
