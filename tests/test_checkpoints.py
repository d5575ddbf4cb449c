"""Files are written whole or not at all; a checkpoint builds its own model."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from explainguide.checkpoints import (
    describe_weights,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_weights,
    write_whole,
)
from explainguide.errors import DataError, OptionError
from explainguide.models import small_cnn
from explainguide.training import checkpoints


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "new" / "a.pt", {"x": torch.arange(3), "rows": [{"f1": 0.5}]})
    found = load_checkpoint(path)
    assert torch.equal(found["x"], torch.arange(3))
    assert found["rows"] == [{"f1": 0.5}]
    assert os.listdir(path.parent) == ["a.pt"]


class _FullDisk:
    """A file that takes a few bytes and then no more, as a full disk does."""

    def __init__(self, file: object) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    path = tmp_path / "last.pt"
    if earlier:
        save_checkpoint(path, {"epoch": 1})

    class Recorder(checkpoints._Recorder):
        def __init__(self, file: object) -> None:
            super().__init__(_FullDisk(file))  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints, "_Recorder", Recorder)
    with pytest.raises(DataError) as caught:
        save_checkpoint(path, {"epoch": 2, "x": torch.zeros(1000)})
    assert str(caught.value).startswith(
        f"save_checkpoint: '{path}' could not be written (No space left on device)."
    )
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == (["last.pt"] if earlier else [])
    assert ("The earlier file is unchanged." in str(caught.value)) == earlier
    if earlier:
        assert load_checkpoint(path)["epoch"] == 1


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", fail)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "before"


@pytest.mark.parametrize("kept", [0, 3, 300, -10])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, kept: int) -> None:
    path = save_checkpoint(tmp_path / "a.pt", {"x": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a.pt' \(\d+ bytes\) is damaged or no checkpoint"):
        load_checkpoint(path)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="was not written by explainguide's training"):
        load_checkpoint(tmp_path / "w.pth")


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    state = small_cnn(3).state_dict()
    first = save_weights(tmp_path / "a.safetensors", state)
    backwards = dict(reversed(list(state.items())))
    second = save_weights(tmp_path / "b.safetensors", backwards)
    assert first.read_bytes() == second.read_bytes()


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    shared = torch.rand(3)
    path = save_weights(tmp_path / "a.safetensors", {"one": shared, "two": shared})
    found = safetensors.torch.load_file(path)
    assert torch.equal(found["one"], shared)
    assert torch.equal(found["two"], shared)


def _save(path: Path, info: dict) -> Path:
    model = small_cnn(3).eval()
    payload = {"model": model.state_dict(), "info": info, "config": {}, "epoch": 2, "metrics": {}}
    return save_checkpoint(path, payload)


def test_a_model_is_built_from_the_file_alone(tmp_path: Path) -> None:
    path = _save(
        tmp_path / "a.pt",
        {"name": "explainguide.models:small_cnn", "num_classes": 3, "image_size": 32},
    )
    model, info = load_model(path)
    assert not model.training
    assert info["epoch"] == 2
    assert info["image_size"] == 32
    state = load_checkpoint(path)["model"]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_checkpoint_of_another_model_or_of_no_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.pt' is a checkpoint of another model than this ResNet"):
        load_model(_save(tmp_path / "a.pt", {"name": "resnet18", "num_classes": 3}))
    with pytest.raises(DataError, match="does not say how its model was built"):
        load_model(_save(tmp_path / "b.pt", {}))


@pytest.mark.parametrize("missing", ["info", "model", "config", "epoch", "metrics"])
def test_a_checkpoint_without_what_a_training_writes_is_named(tmp_path: Path, missing: str) -> None:
    info = {"name": "explainguide.models:small_cnn", "num_classes": 3}
    whole = load_checkpoint(_save(tmp_path / "a.pt", info))
    del whole[missing]
    path = save_checkpoint(tmp_path / "b.pt", whole)
    with pytest.raises(DataError, match=rf"^load_model: '.*b\.pt' has no '{missing}'\. Save it"):
        load_model(path)
    assert describe_weights(path) == ({} if missing == "info" else info)


def test_a_checkpoint_whose_info_is_no_dict_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", {"info": ["resnet18"], "model": {}})
    with pytest.raises(DataError, match=r"a\.pt' has a list for 'info'\."):
        load_model(path)
    assert describe_weights(path) == {}


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.pt", {"name": "explainguide.models:small_cnn", "num_classes": 3})
    with pytest.raises(OptionError, match=r"^load_model: device is 'gpu', .*Use 'cpu'\."):
        load_model(path, device="gpu")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((DataError, OSError)) as wrong:
        save_weights(tmp_path / "file" / "a.safetensors", {"one": torch.zeros(1)})
    assert ".part" not in str(wrong.value)


def test_silent_weights_say_what_they_are_and_plain_ones_do_not(tmp_path: Path) -> None:
    model = small_cnn(3).eval()
    about = {
        "info": {"name": "explainguide.models:small_cnn", "num_classes": 3, "classes": ["ä", "b"]},
        "config": {"layer": "input"},
        "epoch": 4,
    }
    path = save_weights(tmp_path / "w.safetensors", model.state_dict(), about=about)
    loaded, info = load_model(path)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(image), model(image))
    expected = {**about["info"], "config": {"layer": "input"}, "epoch": 4, "metrics": {}}
    assert info == expected
    assert describe_weights(path) == about["info"]
    again = save_weights(tmp_path / "v.safetensors", model.state_dict(), about=dict(about))
    assert again.read_bytes() == path.read_bytes()

    plain = save_weights(tmp_path / "plain.safetensors", model.state_dict())
    assert describe_weights(plain) == describe_weights(None) == {}
    with pytest.raises(DataError, match="was not written by explainguide's training"):
        load_model(plain)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"damaged.safetensors' \(\d+ bytes\) is damaged"):
        load_model(damaged)
