"""The settings of :mod:`explainguide.training.config`, under their first name."""

from explainguide.training.config import TrainConfig

__all__ = ["TrainConfig"]
