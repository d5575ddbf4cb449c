"""Accuracy by group of images, and of the worst group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainguide.errors import (
    DataError,
    OptionError,
    ShapeError,
    check_number,
    constructor,
    method,
    named,
    warn,
)
from explainguide.metrics.score import Score
from explainguide.metrics.table import map_metric

__all__ = ["GroupAccuracy", "WorstGroupAccuracy", "group_accuracy"]


class GroupAccuracy(NamedTuple):
    """What `group_accuracy` returns, of each group.

    Attributes:
        accuracy: Share of its images that are classified right, ``(G,)``; NaN for a group without.
        images: How many it has, ``(G,)``.
    """

    accuracy: Tensor
    images: Tensor


@named("group_accuracy")
def group_accuracy(
    logits: Tensor, labels: Tensor, groups: Tensor, *, num_groups: int
) -> GroupAccuracy:
    """Accuracy of each group of images, as of each pair of bird and background.

    Args:
        logits: ``(N, K)``. With one logit, ``(N, 1)``, it is class 1 from 0 on.
        labels: The class of each image, ``(N,)`` integers; with one logit 0 or 1, of any type,
            ``(N,)`` or ``(N, 1)``.
        groups: The group of each image, ``(N,)`` integers from 0 to ``num_groups`` - 1.
        num_groups: How many groups there are.

    Returns:
        Accuracy in [0, 1] and images of each group. An image with a NaN among its logits counts as
        wrong. All accuracies are NaN where a label or a group does not exist: no value is read here.

    Raises:
        ShapeError: If a shape or dtype differs from the above; for multi-hot labels.
        OptionError: If ``num_groups`` is no number from 1 on.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
        >>> labels, groups = torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2])
        >>> group_accuracy(logits, labels, groups, num_groups=3)
        GroupAccuracy(accuracy=tensor([1., nan, 0.]), images=tensor([2, 0, 1]))
    """
    check_number("num_groups", num_groups, least=1, whole=True)
    right, images, astray, _ = _counts(logits, labels, groups, num_groups)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    accuracy = right.to(dtype) / images  # 0 / 0 is NaN
    return GroupAccuracy(torch.where(astray.any(), torch.nan, accuracy), images)


@map_metric(
    "worst_group_accuracy",
    title="Worst-group accuracy",
    needs=("logits", "labels", "groups"),
    options=("groups",),
)
class WorstGroupAccuracy(Score):
    """Accuracy of the group in which it is lowest.

    A classifier that goes by the background is right where bird and background agree, as most do, and
    wrong where they do not: the mean hides it, the worst group does not.

    - ``update(logits, labels, groups)``: ``(N, K)``, and ``(N,)`` integers each. With one logit it is
      class 1 from 0 on, and labels may be of any type. An image with a NaN among its logits counts as
      wrong, and `compute` warns of how many there are.
    - ``compute()``: a scalar in [0, 1], higher is better: the lowest accuracy of the groups that have
      images; NaN where none has. Groups without images are named in a warning.
    - ``accuracies``, ``images``: after ``compute()``, of each group, by its name; NaN for a group
      without images. ``worst_group``: the name of the worst, the first of equal ones. ``table``: a
      row a group, as `explainguide.tables.format_table` prints them.

    Memory does not grow with the images, and nothing is read from the device before ``compute()``.

    Args:
        groups: Their names, in the order of their numbers; or how many there are.
        kwargs: Handed on to `torchmetrics.Metric`.

    Raises:
        ShapeError: In ``update``, if a shape or dtype differs from the above; for multi-hot labels.
        DataError: In ``compute``, if a label or a group was given that does not exist.
        OptionError: If ``groups`` are no names or number.

    References:
        Sagawa et al., 2020, "Distributionally Robust Neural Networks for Group Shifts".

    Example:
        >>> metric = WorstGroupAccuracy(groups=["landbird on land", "landbird on water"])
        >>> logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
        >>> metric.update(logits, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1]))
        >>> metric.compute(), metric.worst_group
        (tensor(0.5000), 'landbird on water')
        >>> metric.accuracies
        {'landbird on land': 1.0, 'landbird on water': 0.5}
    """

    @constructor
    def __init__(self, *, groups: int | Sequence[str], **kwargs: Any) -> None:
        self.groups = _check_groups(groups)
        super().__init__(options=f"groups={list(self.groups)}", **kwargs)
        sizes = {"right": len(self.groups), "images": len(self.groups), "astray": 2, "NaN": 1}
        self._states = [
            self._state(name, torch.zeros(size, dtype=torch.int64)) for name, size in sizes.items()
        ]

    @method
    def update(self, logits: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Add the logits, labels and groups of a batch."""
        found = _counts(logits, labels, groups, len(self.groups))
        for name, counts in zip(self._states, found, strict=True):
            setattr(self, name, getattr(self, name) + counts)
        self._noted = None

    @method
    def compute(self) -> Tensor:
        """The lowest accuracy over all images so far, in all processes."""
        right, images, astray, nan = (getattr(self, name).tolist() for name in self._states)
        if any(astray):
            raise DataError(
                f"{astray[0]} labels and {astray[1]} groups of images are none that there are. Give "
                f"labels from 0 to K - 1 for logits (N, K), or call reset(). Groups from 0 to "
                f"{len(self.groups) - 1} are allowed."
            )
        self._noted = right, images
        if not self._in_forward:
            self._warn(images, nan[0])
        lowest = min((self._accuracy(i) for i, n in enumerate(images) if n), default=torch.nan)
        return torch.tensor(lowest, device=self.device)

    def _warn(self, images: list[int], nan: int) -> None:
        missing = [name for name, count in zip(self.groups, images, strict=True) if not count]
        if missing and any(images):
            warn(
                f"there are no images of {', '.join(map(repr, missing))}. Their accuracy is NaN, and "
                "the worst is that of the other groups."
            )
        if nan:
            warn(f"{nan} of {sum(images)} images have NaN among their logits. They count as wrong.")

    @property
    @method
    def accuracies(self) -> dict[str, float]:
        """Accuracy of each group, at `compute`; NaN for one without images."""
        self._of_compute("accuracies")
        return {name: self._accuracy(i) for i, name in enumerate(self.groups)}

    @property
    @method
    def images(self) -> dict[str, int]:
        """Number of images of each group, at `compute`."""
        return dict(zip(self.groups, self._of_compute("images")[1], strict=True))

    @property
    @method
    def worst_group(self) -> str | None:
        """The name of the worst group, at `compute`, the first of equal ones; None without images."""
        images = self._of_compute("worst_group")[1]
        shown = [i for i, count in enumerate(images) if count]
        return self.groups[min(shown, key=self._accuracy)] if shown else None

    @property
    @method
    def table(self) -> list[dict[str, Any]]:
        """A row a group, at `compute`: its name, its accuracy, its images."""
        images = self._of_compute("table")[1]
        return [
            {"group": name, "accuracy": self._accuracy(i), "images": images[i]}
            for i, name in enumerate(self.groups)
        ]

    def _accuracy(self, index: int) -> float:
        right, images = self._of_compute("accuracies")
        return right[index] / images[index] if images[index] else torch.nan


def _check_groups(groups: int | Sequence[str]) -> tuple[str, ...]:
    """The names of the groups; of a number, ``"0"``, ``"1"`` and so on."""
    if isinstance(groups, int):
        check_number("groups", groups, least=1, whole=True)
        return tuple(map(str, range(groups)))
    names = [] if isinstance(groups, str) else list(groups)
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(
            f"groups is {groups!r}. Use groups=4, or their names, ['landbird on land', ...]. A number "
            "from 1 on, or a list of names, is allowed."
        )
    double = [name for i, name in enumerate(names) if name in names[:i]]
    if double:
        raise OptionError(
            f"two groups are called {double[0]!r}. Give each a name of its own. Different names are "
            "allowed."
        )
    return tuple(names)


def _counts(
    logits: Tensor, labels: Tensor, groups: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images right and images, of each group; labels and groups astray, ``(2,)``; images with NaN."""
    labels = _check(logits, labels, groups)
    classes = logits.shape[1]
    broken = logits.isnan().any(1)
    if classes == 1:
        said, most = (logits[:, 0] >= 0).long(), 2
    else:
        said, most = logits.argmax(1), classes
    groups = groups.long()
    unknown = torch.stack([(labels < 0) | (labels >= most), (groups < 0) | (groups >= num_groups)])
    place = torch.where(unknown[1], num_groups, groups)  # after the last
    right = (said == labels) & ~broken
    zeros = torch.zeros(num_groups + 1, dtype=torch.int64, device=logits.device)
    sums = [
        zeros.scatter_add(0, place, each.long())[:-1] for each in (right, torch.ones_like(right))
    ]
    return sums[0], sums[1], unknown.sum(1), broken.sum()[None]


def _check(logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """The labels as ``(N,)`` integers, where shapes and dtypes fit."""
    for name, tensor in (("logits", logits), ("labels", labels), ("groups", groups)):
        if not isinstance(tensor, Tensor):
            raise ShapeError(
                f"{name} is a {type(tensor).__name__}. Convert with torch.as_tensor(...). Tensors are "
                "allowed."
            )
    if logits.ndim != 2 or not logits.is_floating_point() or not logits.shape[1]:
        fix = "Give one logit as logits[:, None]." if logits.ndim == 1 else "Give one row an image."
        raise ShapeError(
            f"logits have shape {tuple(logits.shape)} and dtype {logits.dtype}. {fix} Floating point "
            "(N, K) is allowed."
        )
    count, classes = logits.shape
    if classes == 1 and tuple(labels.shape) in ((count,), (count, 1)):
        flat = labels.reshape(-1)
        # Of floats, what is neither 0 nor 1 is astray.
        labels = torch.where((flat == 0) | (flat == 1), flat, -1).long()
    if tuple(labels.shape) == (count, classes) and classes > 1:
        raise ShapeError(
            f"labels of shape {tuple(labels.shape)} are multi-hot. Judge one class at a time: "
            "logits[:, k:k+1] and labels[:, k]. One class index an image, (N,), is allowed."
        )
    if tuple(labels.shape) != (count,) or labels.is_floating_point():
        raise ShapeError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {count} images. Use "
            "class indices, labels.long(). Integers (N,) are allowed."
        )
    if tuple(groups.shape) != (count,) or groups.is_floating_point():
        raise ShapeError(
            f"groups of shape {tuple(groups.shape)} and dtype {groups.dtype} for {count} images. Give "
            "each image the number of its group. Integers (N,) are allowed."
        )
    return labels.long()
