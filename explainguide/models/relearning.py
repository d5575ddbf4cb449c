"""What a conversion takes away, learned again from the network that was converted, without labels."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as image_functions
from tqdm import tqdm

from explainguide.errors import (
    DataError,
    GuidanceError,
    LayerError,
    OptionError,
    ShapeError,
    check_number,
    did_you_mean,
    first_line,
)
from explainguide.files import replace_file

__all__ = ["Lesson", "compared_layers", "first_step", "normalised", "relearn_features"]

_FORMAT = "explainguide relearning 1"
_FADING = 0.5  # the part of all steps over which biases fade
_WARMING = 0.1  # and over which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How a network learns again from unlabelled images.

    Attributes:
        layers: Where features are compared; the same names in both networks.
        teach: A batch in [0, 1], ``(N, 3, H, W)``, to what the teacher takes.
        encode: To what the network takes.
        fade: Called before each step with the part of the way that was done and the part that is to
            be done, in [0, 1]: it takes away from the network what it shall do without.
        training: Whether the network is in training mode.
        epochs: Passes over the images.
        lr: Peak of Adam's learning rate (one cycle).
        batch_size: Images a step.
        seed: Of the order and the flips.
        about: Plain values; a checkpoint with others is refused.
    """

    layers: Sequence[str]
    teach: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    fade: Callable[[float, float], object]
    training: bool
    epochs: int
    lr: float
    batch_size: int
    seed: int
    about: dict[str, Any]

    def check(self, network: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        """Refuse what cannot be learned from.

        Raises:
            OptionError, ShapeError: For numbers or images that are not allowed.
        """
        for name in ("epochs", "batch_size"):
            check_number(name, getattr(self, name), least=1, whole=True)
        check_number("lr", self.lr, least=0, above=True)
        check_number("seed", self.seed, least=0, whole=True)
        if network is teacher:
            raise OptionError(
                "the teacher is the network itself. Give the model that it was converted from. Two "
                "networks are needed."
            )
        _check_images(images, self.batch_size)


def _check_images(images: Any, batch_size: int) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(
            f"images are {found}. Stack them, all of one size. A tensor (N, 3, H, W), of bytes or in "
            "[0, 1], is allowed."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ShapeError(
            f"images are {images.dtype}. Use bytes or floats. torch.uint8, or floats in [0, 1], are "
            "allowed."
        )
    if len(images) < batch_size:
        raise OptionError(
            f"there are {len(images)} images for batches of {batch_size}. Give more, or a smaller "
            "batch_size. At least one batch is needed."
        )
    if images.is_floating_point():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise OptionError(
                f"images are in [{low:g}, {high:g}]. Leave out Normalize: mean= and std= say what the "
                "teacher takes. Values in [0, 1] are allowed."
            )


def normalised(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None
) -> Callable[[Tensor], Tensor]:
    """What Normalize does to images in [0, 1]; nothing without a mean and a deviation.

    Raises:
        OptionError: For one without the other, or numbers that are not allowed.
    """
    if mean is None and std is None:
        return lambda images: images
    if mean is None or std is None:
        missing = "mean" if mean is None else "std"
        raise OptionError(
            f"{missing} is missing. Give both, as the Normalize of the teacher's script has them. "
            "Both, or neither, are allowed."
        )
    values = []
    for name, given in (("mean", mean), ("std", std)):
        three = [float(v) for v in (given if isinstance(given, Sequence) else [given] * 3)]
        if len(three) != 3 or not all(v > 0 if name == "std" else v >= 0 for v in three):
            raise OptionError(
                f"{name} is {given!r}. Use that of the teacher's Normalize. One number or three are "
                "allowed; std is positive."
            )
        values.append(three)
    return lambda images: image_functions.normalize(images, *values)


def compared_layers(
    network: nn.Module, teacher: nn.Module, layers: Sequence[str] | None
) -> list[str]:
    """Where two networks are compared: the layers that are named, else after every batch norm.

    Raises:
        LayerError: For a name that one of them has not, or where there is no batch norm.
    """
    known, also = dict(teacher.named_modules()), dict(network.named_modules())
    if layers is None:
        found = [n for n, module in known.items() if isinstance(module, _BatchNorm) and n in also]
        if not found:
            raise LayerError(
                f"{type(teacher).__name__} has no batch norm after which features could be compared. "
                "Name layers=[...]. Layers whose output is (N, C, H, W) or (N, T, C) are allowed."
            )
        return found
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names or [""]:
        for whose, modules in (("the teacher", known), ("the network", also)):
            if not name or name not in modules:
                raise LayerError(
                    f"{whose} has no layer {name!r}.{did_you_mean(name, modules)} Names that both "
                    "networks have are allowed."
                )
    return names


def relearn_features(
    network: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    lesson: Lesson,
    *,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
) -> list[float]:
    r"""Train a network, in place, to go on returning its teacher's features.

    .. math:: L = 1 - \operatorname{mean}_{l, c}\, \operatorname{corr}(f_{l,c}, t_{l,c})
        + \operatorname{mean}_l\, \log^2 (\lVert f_l \rVert / \lVert t_l \rVert)

    with correlations over images and places, which leave a channel's offset free, since a network
    without biases cannot have its teacher's. The second term holds the features' size: otherwise
    they shrink along with the biases, which then matter as much as before.

    Args:
        network: It starts as its teacher.
        teacher: It stays as it is.
        images: ``(N, 3, H, W)``, bytes or in [0, 1].
        lesson: How.
        checkpoint: A file, written after each epoch, from which to go on.
        progress: Whether to show a bar.

    Returns:
        The mean loss of each epoch.

    Raises:
        OptionError: If the checkpoint is of other settings.
        DataError: If it cannot be read or written.
        GuidanceError: If the loss is not finite.
    """
    file = None if checkpoint is None else Path(checkpoint)
    kept = None if file is None or not file.exists() else _read(file, lesson.about)
    if kept is not None and kept["epoch"]:
        lesson.fade(0.0, min(kept["epoch"] / (lesson.epochs * _FADING), 1.0))
        network.load_state_dict(kept["network"])
    # Trained biases would grow while they fade.
    weights = [p for name, p in network.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.Adam(weights, lesson.lr)
    in_epoch = len(images) // lesson.batch_size
    steps = lesson.epochs * in_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lesson.lr, steps, pct_start=_WARMING)
    history: list[float] = []
    with _random_numbers_of_its_own(lesson.seed, network), _modes(network, teacher, lesson):
        if kept is not None:
            history = list(kept["history"])
            optimizer.load_state_dict(kept["optimizer"])
            schedule.load_state_dict(kept["schedule"])
            _set_random_state(kept["random"])
        done = len(history) * in_epoch
        bar = tqdm(initial=done, total=steps, desc="relearn", disable=not progress)
        with bar, _features(network, teacher, lesson.layers) as (found, wanted):
            for epoch in range(len(history) + 1, lesson.epochs + 1):
                order, total = torch.randperm(len(images)), 0.0
                for step in range((epoch - 1) * in_epoch, epoch * in_epoch):
                    picked, order = order[: lesson.batch_size], order[lesson.batch_size :]
                    batch = images[picked]
                    batch = batch.flip(-1) if torch.rand(1) < 0.5 else batch
                    ways = [min(at / (_FADING * steps), 1.0) for at in (step, step + 1)]
                    lesson.fade(ways[0], ways[1])
                    _forward(network, teacher, batch, lesson)
                    loss = _distance(found, wanted, lesson.layers)
                    value = loss.item()
                    if not math.isfinite(value):
                        raise GuidanceError(
                            f"the loss is {value} in epoch {epoch}. Use a lower lr than "
                            f"{lesson.lr:g}. The checkpoint of the epoch before is as it was."
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(weights, 5)
                    optimizer.step()
                    schedule.step()
                    total += value
                    bar.update()
                    bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                history.append(total / in_epoch)
                if file is not None:
                    _write(
                        file,
                        {
                            "about": lesson.about,
                            "epoch": epoch,
                            "history": history,
                            "network": network.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(),
                            "random": _random_state(network),
                        },
                    )
    return history


def first_step(network: nn.Module, teacher: nn.Module, images: Tensor, lesson: Lesson) -> float:
    """How unlike two networks are in evaluation mode, on the first batch, before anything fades."""
    with torch.no_grad(), _modes(network, teacher, lesson):
        network.eval()
        with _features(network, teacher, lesson.layers) as (found, wanted):
            _forward(network, teacher, images[: lesson.batch_size], lesson)
            return float(_distance(found, wanted, lesson.layers))


def _forward(network: nn.Module, teacher: nn.Module, batch: Tensor, lesson: Lesson) -> None:
    plain = image_functions.to_dtype(batch, torch.float32, scale=True)
    with torch.no_grad():
        teacher(lesson.teach(plain).to(next(teacher.parameters()).device))
    network(lesson.encode(plain).to(next(network.parameters()).device))


@contextlib.contextmanager
def _features(
    network: nn.Module, teacher: nn.Module, layers: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What the layers of both return in each forward pass, by name: the network's, the teacher's."""
    found: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}

    def keep(outputs: dict[str, Tensor], name: str) -> Callable[[Any, Any, Tensor], None]:
        # A clone, since an activation that works in place would write over what a layer returned.
        return lambda _, __, output: outputs.update({name: output.clone()})

    with contextlib.ExitStack() as stack:
        for model, outputs in ((teacher, wanted), (network, found)):
            for name in layers:
                hook = model.get_submodule(name).register_forward_hook(keep(outputs, name))
                stack.callback(hook.remove)
        yield found, wanted


def _distance(found: dict[str, Tensor], wanted: dict[str, Tensor], layers: Sequence[str]) -> Tensor:
    return torch.stack([_unlike(found[n], wanted[n].to(found[n].device)) for n in layers]).mean()


def _unlike(found: Tensor, wanted: Tensor) -> Tensor:
    """One less the mean correlation of channels, and how far the sizes are from each other."""
    size, other = (t.square().mean().sqrt().log() for t in (found, wanted))
    if found.ndim == 3:  # tokens, whose channels are last
        found, wanted = found.transpose(1, 2), wanted.transpose(1, 2)
    found, wanted = (_standardised(t) for t in (found, wanted))
    return (found - wanted).square().mean() / 2 + (size - other).square()


def _standardised(feature: Tensor) -> Tensor:
    least = torch.finfo(feature.dtype).tiny  # a feature that is 0 everywhere has a size of 0, too
    eps = max(1e-4 * float(feature.detach().var()), least)
    return F.batch_norm(feature, None, None, training=True, eps=eps)


@contextlib.contextmanager
def _modes(network: nn.Module, teacher: nn.Module, lesson: Lesson) -> Iterator[None]:
    """The network as the lesson says, the teacher in evaluation; afterwards each as it was."""
    before = [(m, m.training) for model in (network, teacher) for m in model.modules()]
    network.train(lesson.training)
    teacher.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def _random_numbers_of_its_own(seed: int, network: nn.Module) -> Iterator[None]:
    """Order, flips and dropout draw from the seed; the caller's numbers go on as if nothing was."""
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _random_state(network: nn.Module) -> list[Tensor]:
    device = next(network.parameters()).device
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        replace_file(file, lambda raw: torch.save({"format": _FORMAT, **content}, raw))
    except (OSError, RuntimeError) as error:  # torch.save has an error of its own for a full disk
        raise DataError(
            f"'{file}' could not be written ({first_line(error)}). Free some space or choose another "
            "file. An earlier one is unchanged."
        ) from error


def _read(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise DataError(
            f"'{file}' is damaged or no checkpoint ({first_line(error)}). Remove it, or name another "
            "file. What relearn wrote is allowed."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(
            f"'{file}' was not written by relearn. Name another file. What relearn wrote is allowed."
        )
    before = content["about"]
    changes = [
        f"{name} was {before.get(name)!r}, now {about.get(name)!r}"
        for name in dict.fromkeys([*before, *about])
        if before.get(name) != about.get(name)
    ]
    if changes:
        raise OptionError(
            f"'{file}' is of other settings: {'; '.join(changes)}. Use the same, or another file. A "
            "checkpoint of the same settings is allowed."
        )
    return dict(content)
