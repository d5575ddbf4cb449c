"""From a name or a file to a network."""

from explainguide.models.build import (
    build_model,
    load_weights,
    needs_num_classes,
    set_image_size,
    small_cnn,
)

__all__ = ["build_model", "load_weights", "needs_num_classes", "set_image_size", "small_cnn"]
