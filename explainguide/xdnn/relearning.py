"""A network without biases learns again what its model knew, from unlabelled images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from explainguide.errors import OptionError, operation
from explainguide.models.plain_weights import copied
from explainguide.models.relearning import Lesson, compared_layers, normalised, relearn_features
from explainguide.xdnn.conversion import remove_bias

__all__ = ["relearn"]


@operation("xdnn.relearn")
def relearn(
    network: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    layers: Sequence[str] | None = None,
    epochs: int = 4,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[float]:
    r"""Give a network without biases its model's features again, as far as it can have them.

    Needs no labels. A copy of the teacher loses its biases, and the means of its norms, over the
    first half of all steps, and is trained all the while to return the teacher's features after
    every batch norm (:func:`explainguide.models.relearning.relearn_features`); then the network
    takes its weights. At once is too much: most channels would never again be above 0. The norms
    keep their deviations, which `remove_bias` folds, and the classifier behind the last norm is not
    trained: fine-tune afterwards, with labels.

    Costs, for each image and epoch, two forward passes and a backward pass of the teacher, and a
    copy of it. One value a step is read from the device.

    Args:
        network: What ``remove_bias(teacher)`` returned; its weights are replaced, in place.
        teacher: The model that was converted, which takes the same images; it stays as it is.
        images: ``(N, 3, H, W)``, bytes or in [0, 1], not normalised, of any content. Each batch is
            flipped half of the time. What does not fill a batch is left out of an epoch.
        mean: What the teacher's script subtracts from its images, one number or three. None with
            `std`: the teacher takes images in [0, 1].
        std: What it divides by.
        layers: As `explainguide.bcos.relearn`.
        epochs: Passes over the images.
        lr: Peak of Adam's learning rate, a tenth of all steps after the start.
        batch_size: Images a step.
        seed: Of the order and the flips.
        checkpoint: As `explainguide.bcos.relearn`.
        progress: Whether to show a bar.

    Returns:
        The mean loss of each epoch, not negative; 0 where all features agree.

    Raises:
        OptionError: If the network is not the teacher without biases, for values that are not
            allowed, or a checkpoint of other settings.
        ShapeError, LayerError, DataError, GuidanceError: As `explainguide.bcos.relearn`.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> teacher = resnet18(num_classes=5)
        >>> network = remove_bias(teacher, image_size=(32, 32))
        >>> images = torch.rand(8, 3, 32, 32)
        >>> len(relearn(network, teacher, images, epochs=2, batch_size=4, progress=False))
        2
    """
    size = None
    if isinstance(images, Tensor) and images.ndim == 4:
        size = (int(images.shape[2]), int(images.shape[3]))
    learner = copied(teacher).requires_grad_()
    compared = compared_layers(learner, teacher, layers)
    before = normalised(mean, std)
    lesson = Lesson(
        layers=compared,
        teach=before,
        encode=before,
        fade=lambda done, share: _fade(learner, done, share),
        training=False,  # what is folded in the end must not move
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        about={
            **{"kind": "xdnn", "epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed},
            **{"images": list(getattr(images, "shape", [])), "mean": mean, "std": std},
            "layers": compared,
        },
    )
    lesson.check(network, teacher, images)
    _check_same(network, remove_bias(teacher, image_size=size))  # before the long part
    history = relearn_features(
        learner, teacher, images, lesson, checkpoint=checkpoint, progress=progress
    )
    network.load_state_dict(remove_bias(learner, image_size=size).state_dict())
    return history


@torch.no_grad()
def _fade(model: nn.Module, done: float, share: float) -> None:
    """Multiply biases, and what norms subtract, by what is left of them."""
    factor = (1 - share) / (1 - done) if done < 1 else 0
    for module in model.modules():
        for name in ("bias", "running_mean"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                value.mul_(factor)


def _check_same(network: nn.Module, expected: nn.Module) -> None:
    have, want = ({n: t.shape for n, t in m.state_dict().items()} for m in (network, expected))
    if have != want:
        names = sorted({n for n in {*have, *want} if have.get(n) != want.get(n)})
        raise OptionError(
            f"the network is not the teacher without biases: they differ in {names[0]!r}"
            f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}. Give "
            "remove_bias(teacher). What it returns, with normalization='fold', is allowed."
        )
