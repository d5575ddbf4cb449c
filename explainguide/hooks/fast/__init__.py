"""Operations whose second derivative takes less time than PyTorch's, to the same values.

The second derivative of a convolution or of a normalization in PyTorch is composed of general
operations. Here each is written by hand, as an operation of its own (`torch.library.custom_op`), so
that autograd and `torch.compile` differentiate it correctly. `FAST` is the table of them.
"""

from explainguide.hooks.fast import attention, batch_norm, convolution, gelu, layer_norm, softmax
from explainguide.hooks.fast.table import FAST, Fast, Unsuited

__all__ = [
    "FAST",
    "Fast",
    "Unsuited",
    "attention",
    "batch_norm",
    "convolution",
    "gelu",
    "layer_norm",
    "softmax",
]
