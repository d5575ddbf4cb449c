"""Counts the operations that a piece of code dispatches, and those among them that wait for a device."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from explainguide import host

# What gives the host a value, or a tensor whose size depends on values.
READS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy",
    "argwhere", "masked_select", "bincount", "histc", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "_unique", "_unique2",
}  # fmt: skip
# Python methods that copy to the host, which on the host itself dispatch nothing.
COPIES = ("tolist", "numpy", "__array__", "cpu")
# PyTorch's own, on the host on every device: the count of steps of Adam, the seed of a loader.
ON_THE_HOST = ("torch/optim/", "torch/utils/data/dataloader.py")
# In torch 2.4 a dispatch mode cannot run under methods of Tensor that are replaced.
needs_newer_torch = pytest.mark.skipif(
    torch.__version__.split(".")[:2] in (["2", "4"], ["2", "5"]), reason="counts with torch 2.6 on"
)
BETWEEN = ("hooks/pass_mode.py", "/site-packages/torch/", "explainguide/hooks/second_order.py")


class Counted(TorchDispatchMode):
    """Within this context operations are counted.

    Attributes:
        operations: How many were dispatched.
        reads: The names of those that would wait for a device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.reads: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.operations += 1
        name = func.overloadpacket.__name__
        if name in READS or (name.startswith("index") and _by_a_mask(args)):
            self._note(name)
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Counted:
        for name in COPIES:
            setattr(Tensor, name, self._noting(name))
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        for name in COPIES:
            if name in _OWN:
                setattr(Tensor, name, _OWN[name])
            else:
                delattr(Tensor, name)

    def _noting(self, name: str) -> Any:
        original = _OWN.get(name) or getattr(torch._C.TensorBase, name)

        def noting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return original(tensor, *args, **kwargs)

        return noting

    def _note(self, name: str) -> None:
        caller = _caller(sys._getframe(1))
        if caller != host.__file__ and not _is_in(caller, ON_THE_HOST):
            self.reads.append(f"{name} in {caller}")


_OWN = {name: vars(Tensor)[name] for name in COPIES if name in vars(Tensor)}


def _by_a_mask(args: tuple[Any, ...]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    masks = (torch.bool, torch.uint8)
    return any(isinstance(index, Tensor) and index.dtype in masks for index in indices)


def _is_in(file: str, places: tuple[str, ...]) -> bool:
    return any(place in file for place in places)


def _caller(frame: FrameType | None) -> str:
    """The file that ran the operation, beneath what torch and modes put in between."""
    while frame is not None:
        file = frame.f_code.co_filename
        passes_on = _is_in(file, BETWEEN) and not _is_in(file, ON_THE_HOST)
        if file != __file__ and not passes_on:
            return file
        frame = frame.f_back
    return ""
