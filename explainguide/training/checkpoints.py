"""Files written whole or not at all, and checkpoints that know how to build their model."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from explainguide.bcos.saved import rebuild
from explainguide.datasets.batches import check_device
from explainguide.errors import DataError, operation
from explainguide.files import replace_file
from explainguide.models.build import build_model
from explainguide.models.weights import fit_weights, short_reason
from explainguide.xdnn import remove_bias

__all__ = [
    "check_entries",
    "describe_weights",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
    "save_weights",
    "write_whole",
]

_FORMAT = "explainguide checkpoint 1"
# One entry, since a header with two has them in either order, and equal runs make equal files.
_HEADER = "explainguide"


@operation("write_whole", default=True)
def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Write a file beside its place, then rename: it is there whole, or as it was before.

    Args:
        path: The file; missing folders are made.
        write: Writes the content to an open binary file.

    Raises:
        DataError: If it cannot be written (a full disk, no permission); an earlier file of this
            name is still there, and nothing else is left.
    """
    target = Path(path)
    recorder: _Recorder | None = None

    def recorded(file: io.FileIO) -> None:
        nonlocal recorder
        recorder = _Recorder(file)
        write(recorder)  # type: ignore[arg-type]

    try:
        replace_file(target, recorded)
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as a RuntimeError of its own.
        cause = error if isinstance(error, OSError) else recorder.error if recorder else None
        if cause is None:
            raise
        raise DataError(
            f"'{target}' could not be written ({cause.strerror or cause}). Free some "
            f"space or choose another folder. {_what_remains(target)}"
        ) from error
    return target


class _Recorder(io.RawIOBase):
    """A file that remembers why a write failed, and never writes half of what it is given."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self.error = error
            raise
        return done


def _what_remains(target: Path) -> str:
    return "The earlier file is unchanged." if target.exists() else "Nothing was left behind."


@operation("save_checkpoint")
def save_checkpoint(path: str | os.PathLike[str], payload: dict[str, Any]) -> Path:
    """Save plain values and tensors, whole or not at all.

    Args:
        path: The file.
        payload: Tensors, numbers, strings, and dicts and lists of them.

    Raises:
        DataError: As `write_whole`.
    """
    content = {"format": _FORMAT, **payload}
    return write_whole(path, lambda file: torch.save(content, file))


@operation("load_checkpoint")
def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_checkpoint`, or `save_weights` with `about`, wrote, without running code.

    Args:
        path: A ``.pt`` file, or the ``weights.safetensors`` of a training, which holds less:
            ``"model"``, ``"info"``, ``"config"``, ``"epoch"``, and no ``"metrics"``; but
            ``"guided_layer"``, also where the config leaves it to be found.

    Returns:
        What was saved, on the CPU.

    Raises:
        DataError: If the file is missing, damaged, or no checkpoint of this package.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"'{file}' {'is a folder' if file.is_dir() else 'does not exist'}. "
            "Give a file that a training wrote, such as last.pt."
        )
    try:
        if file.suffix == ".safetensors":
            payload = _from_safetensors(file)
        else:
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise DataError(
            f"'{file}' ({file.stat().st_size} bytes) is damaged or no checkpoint "
            f"({short_reason(error)}). Use another epoch's. A file that a training "
            "wrote is allowed."
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise DataError(
            f"'{file}' was not written by explainguide's training. Plain weights "
            "go with a model's name: build_model(name, weights=FILE)."
        )
    return payload


def _from_safetensors(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(str(file), framework="pt") as opened:
        header = (opened.metadata() or {}).get(_HEADER)
        if header is None:
            return {}
        model = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return {"metrics": {}, **json.loads(header), "model": model}


def describe_weights(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What a file of weights says of how they were trained: the ``"info"`` of a training.

    Empty for plain weights, and for what cannot be read, which `load_weights` tells.
    """
    try:
        info = {} if path is None else load_checkpoint(path).get("info")
    except DataError:
        return {}
    return dict(info) if isinstance(info, Mapping) else {}


def check_entries(path: str | os.PathLike[str], payload: Mapping[str, Any], *names: str) -> None:
    """Refuse a checkpoint that lacks what a training writes, as one that was saved by hand may.

    Args:
        path: Its file.
        payload: What `load_checkpoint` gave.
        *names: What is needed; ``"info"``, ``"config"`` and ``"model"`` are dicts.

    Raises:
        DataError: With what is missing.
    """
    dicts = ("info", "config", "model")
    for name in names:
        value = payload.get(name)
        if value is None or (name in dicts and not isinstance(value, Mapping)):
            wrong = "has no" if value is None else f"has a {type(value).__name__} for"
            raise DataError(
                f"'{os.fspath(path)}' {wrong} {name!r}. Save it with that too, or read it with "
                f"load_checkpoint. Files that hold {', '.join(map(repr, names))} are allowed."
            )


@operation("save_weights")
def save_weights(
    path: str | os.PathLike[str],
    state: dict[str, Tensor],
    *,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Save a state dict as safetensors: equal weights make equal files, byte by byte.

    Args:
        path: The file.
        state: The weights.
        about: What `load_model` needs beside them, as `save_checkpoint` takes it, in values that
            JSON can hold: ``"info"``, ``"config"`` and ``"epoch"``. It goes into the file's header.

    Raises:
        DataError: As `write_whole`.
    """
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    header = None
    if about is not None:
        header = {_HEADER: json.dumps({"format": _FORMAT, **about}, sort_keys=True)}
    return write_whole(
        path,
        lambda file: file.write(safetensors.torch.save(plain, metadata=header)),
    )


@operation("load_model")
def load_model(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, from the file alone.

    A model that was built by a user's function is built by that function again, so its module
    must be importable. A network that was converted is converted again, by the options in
    ``info["bcos"]`` (of `explainguide.bcos.bcosify`) or ``info["xdnn"]`` (of
    `explainguide.xdnn.remove_bias`).

    Args:
        path: A checkpoint of `explainguide.training.train`, its ``weights.safetensors``, or what
            `explainguide convert` wrote.
        device: Where the model goes.

    Returns:
        The model, and what the checkpoint says of it: ``"name"``, ``"num_classes"``,
        ``"image_size"`` and whatever else the training was given as `info`, ``"config"`` (the
        `TrainConfig` as a dict), ``"epoch"`` and ``"metrics"``. Of ``weights.safetensors`` the
        config holds what an evaluation needs, and the metrics are empty.

    Raises:
        DataError: If the file cannot be read, or does not say how its model was built.
        OptionError: If there is no such device.
    """
    place = check_device(device)
    payload = load_checkpoint(path)
    check_entries(path, payload, "info", "model", "config", "epoch", "metrics")
    info = dict(payload["info"])
    if "name" not in info:
        raise DataError(
            f"'{os.fspath(path)}' does not say how its model was built. Build it and "
            "use load_checkpoint(path)['model'], or train with info={'name': ...}."
        )
    model = build_model(
        info["name"], num_classes=info.get("num_classes"), image_size=info.get("image_size")
    )
    if info.get("bcos") is not None:
        model = rebuild(model, info["bcos"], payload["model"])
    elif info.get("xdnn") is not None:
        model = remove_bias(model, **info["xdnn"])
    fit_weights(model, payload["model"], source=os.fspath(path))
    info |= {key: payload[key] for key in ("config", "epoch", "metrics")}
    return model.to(place).eval(), info
