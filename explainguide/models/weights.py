"""Weights from a file, and how they are fitted to a model."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from explainguide.errors import DataError, first_line, operation, warn

__all__ = ["fit_weights", "load_weights", "name_some", "read_weights", "short_reason"]

_PREFIXES = ("module.", "_orig_mod.")
_INSIDE = ("state_dict", "model_state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")
_COUNT = "n_averaged"  # of torch's AveragedModel, which is no weight
# What timm's and torchvision's own programs put beside the weights: the options of their command.
_HARMLESS: list[Any] = [argparse.Namespace]


@operation("load_weights")
def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> str:
    """Load a file of weights into a model, in place.

    Args:
        model: The model.
        path: A safetensors file, or one that ``torch.load(weights_only=True)`` reads, also with an
            `argparse.Namespace` in it: a state dict, also under ``"state_dict"``,
            ``"model_state_dict"`` or ``"model"``. The prefixes of DistributedDataParallel and
            torch.compile are left out, and one that the whole model has in the file alone, as
            Lightning's ``"model."``. Averaged weights are taken where there are no others; a
            warning says so where there are.

    Returns:
        What was not as it should be, in one line: a classifier head for another number of classes
        stays as it was initialised. Empty where everything fitted.

    Raises:
        DataError: If the file is missing or damaged, or holds the weights of another model; the
            model is then unchanged.
    """
    return fit_weights(model, read_weights(path), source=os.fspath(path))


@operation("load_weights")
def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state dict from a file, in plain names.

    Raises:
        DataError: If it is missing, damaged, or holds no state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"'{file}' {'is a folder' if file.is_dir() else 'does not exist'}. "
            "Give a .safetensors, .pth or .pt file."
        )
    content: Any
    try:
        if file.suffix == ".safetensors":
            content = safetensors.torch.load_file(str(file))
        else:
            with _harmless():
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise _unreadable(file, error) from error
    except safetensors.SafetensorError as error:
        raise _unreadable(file, error) from error
    except Exception as error:  # pickle.UnpicklingError, and what damaged pickles drive it to
        if "weights_only" not in str(error).lower() and "unsupported" not in str(error).lower():
            raise _unreadable(file, error) from error
        named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        raise DataError(
            f"'{file}' holds Python objects, which are not loaded because they can run "
            f"code{f' ({named[1]})' if named else ''}. Save model.state_dict() where it was made. "
            "Tensors are allowed."
        ) from error
    return _state_dict(content, file)


@contextmanager
def _harmless() -> Iterator[None]:
    """Let torch.load take the classes that cannot do anything."""
    allowed = torch.serialization
    if hasattr(allowed, "safe_globals"):
        with allowed.safe_globals(_HARMLESS):
            yield
        return
    before = list(allowed.get_safe_globals())  # torch 2.4, whose list this is
    allowed.add_safe_globals(_HARMLESS)
    try:
        yield
    finally:
        allowed.clear_safe_globals()
        allowed.add_safe_globals(before)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"'{file}' ({file.stat().st_size} bytes) is damaged or no file of weights "
        f"({short_reason(error)}). Copy it again. A .safetensors file, or a state dict "
        "of torch.save, is allowed."
    )


def short_reason(error: BaseException) -> str:
    """The kind of an error and the first sentence of its text."""
    lines = str(error).strip().splitlines()
    first = lines[0].split(". ")[0].rstrip(".")[:120] if lines else ""
    return f"{type(error).__name__}: {first}" if first else first_line(error)


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            _tell_of_averaged(content, key, file)
            content = content[key]
    for key in _AVERAGED:  # where there was nothing else
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise DataError(
            f"'{file}' holds a {type(content).__name__}. Save model.state_dict(). "
            "A dict of tensors is allowed."
        )
    state = {_plain(str(k)): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise DataError(
            f"'{file}' holds no tensors, only {sorted(map(str, content))[:3]}. "
            "Save model.state_dict(). A dict of tensors is allowed."
        )
    return state


def _tell_of_averaged(content: Mapping[str, Any], taken: str, file: Path) -> None:
    """Two sets of weights in one file, of which the programs that wrote it may mean either."""
    averaged = next((key for key in _AVERAGED if isinstance(content.get(key), Mapping)), None)
    if averaged is not None:
        warn(
            f"'{file}' holds two sets of weights, {taken!r} and the averaged {averaged!r}. "
            f"{taken!r} is taken. Save the other in a file of its own to use it."
        )


def _plain(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> str:
    """Load a state dict; a classifier head for another number of classes is left out.

    Args:
        model: The model.
        state: Its weights, by plain names.
        source: Where they come from, for the error.

    Returns:
        As `load_weights`.

    Raises:
        DataError: If anything else is missing, left over, or has another shape.
    """
    own = model.state_dict()
    state = _unwrapped(state, own, source)
    shapes = {k: tuple(v.shape) for k, v in own.items()}
    head = _head_names(model)
    other_size = [k for k in own if k in state and tuple(state[k].shape) != shapes[k]]
    dropped = [k for k in other_size if k in head and state[k].shape[1:] == own[k].shape[1:]]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    reshaped = [
        f"{k} is {tuple(state[k].shape)} instead of {shapes[k]}"
        for k in other_size
        if k not in dropped
    ]
    problems = name_some(
        {
            "not in the file": missing,
            "not in the model": unexpected,
            "of another shape": reshaped,
        }
    )
    if problems:
        raise DataError(
            f"'{source}' is a checkpoint of another model than this "
            f"{type(model).__name__}. {problems}. Name the model that it was made with. "
            "Only a classifier head of another size may differ."
        )
    kept = {k: v for k, v in state.items() if k not in dropped}
    model.load_state_dict(kept, strict=False)
    if not dropped:
        return ""
    first = dropped[0]
    return (
        f"The head of '{source}' has {state[first].shape[0]} classes and the model "
        f"{shapes[first][0]}: {', '.join(dropped)} stay as they were initialised."
    )


def _unwrapped(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
) -> Mapping[str, Tensor]:
    """The state in the model's own names, where a module that held the model named it.

    Lightning's modules hold it as ``model`` or ``net``, beside losses and metrics of their own.
    """
    if _COUNT not in own:
        state = {name: value for name, value in state.items() if name != _COUNT}
    if not own or any(name in own for name in state):
        return state
    for prefix in dict.fromkeys(f"{name.split('.')[0]}." for name in state):
        inside = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        inside = {_plain(name): value for name, value in inside.items()}
        rest = [name for name in state if not name.startswith(prefix)]
        if rest and not all(name in inside for name in own):
            continue
        if rest:
            warn(
                f"'{source}' holds the model as {prefix[:-1]!r}; what stands beside it is "
                f"{name_some({'left out': rest})}."
            )
        if any(name in own for name in inside):
            return inside
    return state


def name_some(names: Mapping[str, Sequence[str]]) -> str:
    """The first names of each kind, for an error; empty where there are none.

    Example:
        >>> name_some({"missing": ["a", "b", "c", "d"], "left over": [], "wrong": ["e"]})
        'missing: a, b, c and 1 more; wrong: e'
    """
    return "; ".join(
        f"{kind}: {', '.join(listed[:3])}{f' and {len(listed) - 3} more' if len(listed) > 3 else ''}"
        for kind, listed in names.items()
        if listed
    )


def _head_names(model: nn.Module) -> set[str]:
    """The parameters of the classifier: what timm says it is, else the last module with weights."""
    config = getattr(model, "pretrained_cfg", None) or {}
    named = config.get("classifier") if isinstance(config, dict) else None
    heads = [named] if isinstance(named, str) else list(named or [])
    with_weight = [
        n for n, m in model.named_modules() if isinstance(getattr(m, "weight", None), Tensor)
    ]
    heads += with_weight[-1:]
    return {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
