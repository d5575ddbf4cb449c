"""What passes between the host and a device without a wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["host_array", "send"]


def host_array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor that is on the host, to be read without an operation of torch's.

    ``bool(tensor.any())`` is the same operation on the host, where nothing waits, as on a device,
    where every operation that was queued is waited for. Checks of values go through here, so that
    what is counted elsewhere is a wait.

    Args:
        tensor: On the CPU; whoever asks has looked.

    Returns:
        Its own memory; a copy in float32 of what numpy has no type for, as bfloat16.
    """
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in _KNOWN:
        tensor = tensor.float()
    try:
        array: np.ndarray = tensor.numpy()
    except RuntimeError:  # within torch.func.grad, a tensor has no memory of its own
        array = np.array([value.item() for value in tensor.flatten()]).reshape(tensor.shape)
    return array


_KNOWN = (torch.float16, torch.float32, torch.float64)


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; the host goes on while it is copied there.

    That needs pinned memory: out of any other a copy to a GPU may wait for what is queued on it. A
    copy to the host is waited for: what reads it next does not know that it is under way.
    """
    to = torch.device(device)
    if tensor.device.type == "cpu" and to.type == "cuda":
        tensor = tensor if tensor.is_pinned() else tensor.pin_memory()
    return tensor.to(to, non_blocking=to.type != "cpu")
