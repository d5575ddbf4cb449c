"""Networks without biases, for which integrated gradients cost one backward pass."""

from __future__ import annotations

from explainguide.xdnn.conversion import (
    ChannelScale,
    changes,
    is_homogeneous,
    remove_bias,
    scaling_fault,
)
from explainguide.xdnn.relearning import relearn

__all__ = [
    "ChannelScale",
    "changes",
    "is_homogeneous",
    "relearn",
    "remove_bias",
    "scaling_fault",
]
