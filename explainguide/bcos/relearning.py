"""A B-cos network learns again what its model knew, from unlabelled images."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor, nn

from explainguide.bcos.modules import AddInverse
from explainguide.bcos.schedule import scale_biases, set_b
from explainguide.bcos.transform import BcosUnit, check_unit
from explainguide.errors import OptionError, operation, warn
from explainguide.models.relearning import (
    Lesson,
    compared_layers,
    first_step,
    normalised,
    relearn_features,
)

__all__ = ["relearn"]

# At B = 1 a network returns its teacher's features to rounding, far below this.
_ALIKE = 0.01


@operation("bcos.relearn")
def relearn(
    network: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    *,
    b: float = 2.0,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    layers: Sequence[str] | None = None,
    epochs: int = 4,
    lr: float = 1e-2,
    batch_size: int = 32,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[float]:
    r"""Raise B and let the biases go, while a converted network learns its model's features again.

    Needs no labels: over the first half of all steps biases fade to 0, with all that norms
    subtract, and B rises to `b`; all the while the network is trained to return the teacher's
    features after every batch norm (:func:`explainguide.models.relearning.relearn_features`). At
    once is too much: most channels would never again be above 0. The classifier behind the last
    norm is not trained: fine-tune afterwards, with labels.

    Costs, for each image and epoch, a forward pass of the teacher, and a forward and a backward
    pass of the network; memory as a training of the network, and the teacher's compared features.
    One value a step is read from the device.

    Args:
        network: What ``bcosify(teacher, b=1, mean=mean, std=std)`` returned; it is changed in
            place. One at another B, or without biases, begins there.
        teacher: The model that was converted; it stays as it is.
        images: ``(N, 3, H, W)``, bytes or in [0, 1], not normalised, of any content. Each batch is
            flipped half of the time. What does not fill a batch is left out of an epoch.
        b: The exponent at the end, 1 or more.
        mean: What the teacher's script subtracts from its images, as `bcosify` was told; one number
            or three. None with `std`: the teacher takes images in [0, 1].
        std: What it divides by.
        layers: Where features are compared, by names that both networks have, whose output is
            ``(N, C, H, W)``, or ``(N, T, C)`` of tokens; None: after every batch norm.
        epochs: Passes over the images.
        lr: Peak of Adam's learning rate, a tenth of all steps after the start.
        batch_size: Images a step.
        seed: Of the order and the flips.
        checkpoint: A file, written after each epoch, whole or not at all. If it is there already,
            the training goes on from it, on a CPU to the same weights bit by bit; a file of a
            training that is over gives its weights at once.
        progress: Whether to show a bar.

    Returns:
        The mean loss of each epoch, not negative; 0 where all features agree.

    Raises:
        OptionError: For a network that is no B-cos network, values that are not allowed, or a
            checkpoint of other settings.
        ShapeError: For images of another form.
        LayerError: For an unknown layer, or a teacher without batch norm where none is named.
        DataError: If the checkpoint cannot be read or written.
        GuidanceError: If the loss is not finite.

    References:
        Arya et al., 2024, fine-tune with labels while B rises; here the model teaches.

    Example:
        >>> import torch
        >>> from explainguide.bcos import bcosify
        >>> from explainguide.models import small_cnn
        >>> teacher = small_cnn(10)
        >>> network = bcosify(teacher, b=1, image_size=(16, 16))
        >>> losses = relearn(network, teacher, torch.rand(64, 3, 16, 16), epochs=2, progress=False)
        >>> len(losses)
        2
    """
    check_unit(b, 1, "unit")
    units = [module for module in network.modules() if isinstance(module, BcosUnit)]
    if not units:
        raise OptionError(
            f"{type(network).__name__} has no B-cos unit. Convert the teacher with bcosify(teacher, "
            "b=1). A B-cos network is allowed."
        )
    start = units[0].b

    def fade(before: float, share: float) -> None:
        set_b(network, start + (b - start) * share)
        scale_biases(network, (1 - share) / (1 - before) if before < 1 else 0)

    compared = compared_layers(network, teacher, layers)
    lesson = Lesson(
        layers=compared,
        teach=normalised(mean, std),
        encode=AddInverse(),
        fade=fade,
        training=True,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        about={
            **{"kind": "bcos", "from_b": start, "b": float(b), "epochs": epochs, "lr": lr},
            **{
                "batch_size": batch_size,
                "seed": seed,
                "images": list(getattr(images, "shape", [])),
            },
            **{"mean": mean, "std": std, "layers": compared},
        },
    )
    lesson.check(network, teacher, images)
    if start == 1 and (loss := first_step(network, teacher, images, lesson)) > _ALIKE:
        warn(
            f"at B = 1 the network's features are not its teacher's, even before it learns (loss "
            f"{loss:.2g}). Are mean and std those that bcosify was told, and is it this teacher that "
            "was converted?"
        )
    return relearn_features(
        network, teacher, images, lesson, checkpoint=checkpoint, progress=progress
    )
