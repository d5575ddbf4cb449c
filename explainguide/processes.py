"""What the processes of a distributed run tell one another: sums, gradients, and errors.

Every process takes part in every exchange, whatever it could read: what it has not counts as zero. So
no process waits for one that had nothing to do, or that failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from explainguide.errors import GuidanceError

__all__ = [
    "Hosts",
    "add_up",
    "add_up_gradients",
    "anywhere",
    "join_hosts",
    "process",
    "send_buffers",
    "together",
]


def process() -> tuple[int, int]:
    """This process and their number, ``(0, 1)`` where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def add_up(values: Sequence[float], device: torch.device, *, most: bool = False) -> Tensor:
    """The sums of some numbers over all processes, ``(len(values),)`` on the device; not read there.

    Args:
        values: This process's numbers.
        device: Where the processes exchange tensors.
        most: The largest in place of the sum.
    """
    total = torch.tensor(values, dtype=torch.float32, device=device)
    if process()[1] > 1:
        kind = torch.distributed.ReduceOp.MAX if most else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(total, kind)
    return total


def send_buffers(model: nn.Module, *, parameters: bool = False) -> None:
    """Give every process the first one's buffers, as DistributedDataParallel does."""
    if process()[1] == 1:
        return
    tensors = [*model.buffers(), *(model.parameters() if parameters else ())]
    with torch.no_grad():
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), 0)


def anywhere(flag: Tensor) -> Tensor:
    """Whether a flag is set in any process, a bool like it on its device; not read there."""
    if process()[1] == 1:
        return flag
    highest = flag.float()
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return highest > 0


def add_up_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place.

    A process without a gradient takes part with zeros, and has one afterwards.

    Args:
        parameters: The same ones in every process.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        own = [p.grad for p in parameters if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in own])
        torch.distributed.all_reduce(flat)
        for gradient, total in zip(own, flat.split([g.numel() for g in own]), strict=True):
            gradient.copy_(total.view_as(gradient))


class Hosts(NamedTuple):
    """A way by which the hosts of all processes tell one another what they know; `join_hosts` finds it.

    Nothing that is queued on a device is waited for, as long as `device` is the CPU.

    Attributes:
        group: Of the processes; None is the default one.
        device: Where it exchanges tensors.
    """

    group: Any = None
    device: torch.device = torch.device("cpu")

    def agree(self, error: Exception | None, values: Sequence[float] = ()) -> list[float]:
        """The sums of some numbers over all processes, unless one of them failed.

        Args:
            error: What stopped this process, if anything did.
            values: This process's numbers, as many as every other one has.

        Raises:
            GuidanceError: If another process failed; the one that did raises its own error.
        """
        if process()[1] == 1:
            if error is not None:
                raise error
            return list(values)
        # The first tensor lies in the array's memory, so that reading the sums is no operation.
        told = np.array([error is not None, *values], dtype=np.float64)
        here = torch.from_numpy(told)
        sent = here if self.device.type == "cpu" else here.to(self.device, torch.float32)
        torch.distributed.all_reduce(sent, group=self.group)
        if sent is not here:
            here.copy_(sent)
        failed, *totals = told.tolist()
        if error is not None:
            raise error
        if failed:
            raise _failed_elsewhere(failed)
        return totals

    def leave(self) -> None:
        """Give up a group that was made for this."""
        if self.group is not None:
            torch.distributed.destroy_process_group(self.group)


def join_hosts(device: torch.device) -> Hosts:
    """A way between the hosts: the default group where it takes tensors of the CPU, else one of gloo.

    Every process must ask for it.

    Args:
        device: Where the default group exchanges tensors. Taken where there is no gloo, and then each
            exchange waits for it.
    """
    if process()[1] == 1 or "cpu:" in torch.distributed.get_backend_config():
        return Hosts()
    if not torch.distributed.is_gloo_available():
        return Hosts(device=device)
    return Hosts(torch.distributed.new_group(backend="gloo"))


def _failed_elsewhere(count: float) -> GuidanceError:
    """What a process says that stops because another one failed."""
    return GuidanceError(
        f"{count:.0f} of the {process()[1]} processes stopped with an error of "
        f"{'its' if round(count) == 1 else 'their'} own, so this one stops too. Look for the first "
        "error among the messages. Checkpoints of earlier "
        "epochs are unchanged."
    )


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """A piece of work that no process goes on from alone: an error in one stops them all.

    Raises:
        GuidanceError: If another process failed; the one that did raises its own error.
    """
    if process()[1] == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # whatever it is, the others must not wait for this process
        error = caught
    Hosts(device=device).agree(error)
