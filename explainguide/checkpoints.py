"""The checkpoints of :mod:`explainguide.training.checkpoints`, under their public name."""

from explainguide.training.checkpoints import (
    describe_weights,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_weights,
    write_whole,
)

__all__ = [
    "describe_weights",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
    "save_weights",
    "write_whole",
]
