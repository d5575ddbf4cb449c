"""Batches of one image, in which a BatchNorm behind the pooling has nothing to compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from explainguide.datasets.batches import Batch, batches
from explainguide.errors import DataError, OptionError, warn
from explainguide.hooks.dynamic import evaluating, in_mode
from explainguide.processes import process

__all__ = ["LoneImages", "norm_without_values"]


class LoneImages:
    """Leaves out batches of one image, where the model cannot be trained on them; says so once.

    Args:
        model: As it is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._norm: str | None = None  # a BatchNorm that refuses one image, once it is known
        self._told = False

    def usable(self, batch: Batch) -> bool:
        """Whether there is an image in the batch, and two where a BatchNorm needs them."""
        if len(batch.images) != 1:
            return batch.readable
        if self._norm is None:
            self._norm = norm_without_values(self._model, batch.images)
        if self._norm is None:
            return True
        self._tell()
        return False

    def _tell(self) -> None:
        if not self._told:
            warn(
                f"a batch of one image is left out, and so are others like it, since "
                f"BatchNorm {self._norm!r} sees one value a channel of a single image. Another batch "
                "size may leave none over."
            )
        self._told = True

    def count_batches(self, data: Any, size: int, device: torch.device) -> int:
        """Batches of an epoch, the same number in every process.

        A last one that has one image at most in every process is not counted where it is not usable.

        Args:
            data: The data set.
            size: Images a batch.
            device: Where the model is.

        Raises:
            OptionError, DataError: If no batch has two images, and a BatchNorm needs them.
        """
        _, world = process()
        images = -(-len(data) // world)  # of the first process, which has most
        count = -(-images // size)
        if images % size != 1 and size > 1:
            return count
        source = batches(data, range(len(data)), batch_size=1, device=device)
        batch = next((candidate for candidate in source if candidate.readable), None)
        if batch is not None:
            with in_mode(self._model, training=True):
                self._norm = norm_without_values(self._model, batch.images)
        if self._norm is None:
            return count
        why = f"BatchNorm {self._norm!r} sees one value a channel of a single image"
        if size == 1:
            raise OptionError(
                f"batch_size is 1, but {why}, which has no variance. Use batch_size=2 or "
                "more, or another norm, such as GroupNorm. grad_accumulation makes no batch larger."
            )
        if count == 1:
            raise DataError(
                f"train_data has one image a process, but {why}, which has no variance. "
                "Use more images, or another norm. Two images a process are allowed."
            )
        self._tell()
        return count - 1


def norm_without_values(model: nn.Module, image: Tensor) -> str | None:
    """The first BatchNorm that sees one value a channel of one image, which PyTorch refuses.

    Costs one forward pass in evaluation mode where the model has a BatchNorm that is in training.

    Args:
        model: In training mode.
        image: ``(1, 3, H, W)``.
    """
    norms: dict[nn.Module, str]
    norms = {m: n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}
    names: list[str] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].numel() == inputs[0].shape[1]:
            names.append(norms[module])

    hooks = [module.register_forward_pre_hook(look) for module in norms]
    try:
        if norms:
            with evaluating(model), torch.no_grad():
                model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return names[0] if names else None
