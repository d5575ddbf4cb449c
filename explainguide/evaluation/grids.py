"""Grids of images of distinct classes: which images, in which cells, and as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from explainguide.errors import (
    DataError,
    ShapeError,
    check_number,
    check_option,
    operation,
)
from explainguide.evaluation.classification import check_labels
from explainguide.hooks.logits import class_scores, log_probabilities
from explainguide.metrics.grid import CellOrder, check_grid

__all__ = [
    "Confident",
    "Grids",
    "Probability",
    "check_classes",
    "choose_grids",
    "confident_images",
    "cut_cells",
    "join_cells",
    "label_confidence",
    "make_grids",
    "most_confident",
]

Probability = Literal["softmax", "sigmoid"]


class Confident(NamedTuple):
    """Images that are classified right and with confidence, the most confident first.

    Attributes:
        source: Their places in what was given, ``(M,)`` int64.
        label: Their classes, ``(M,)`` int64.
        confidence: Their probabilities of these classes, ``(M,)``, falling.
    """

    source: Tensor
    label: Tensor
    confidence: Tensor


class Grids(NamedTuple):
    """What `make_grids` returns, for G grids.

    Attributes:
        images: ``(G, C, n * h, n * w)``.
        labels: The class of each cell, ``(G, n * n)``.
        source: Which of the given images each cell shows, ``(G, n * n)``.
    """

    images: Tensor
    labels: Tensor
    source: Tensor


def join_cells(cells: Tensor, *, order: CellOrder = "column") -> Tensor:
    """Pictures of one size as one picture, ``(..., n * n, C, h, w)`` to ``(..., C, n * h, n * w)``.

    Args:
        cells: As above.
        order: ``"column"``: cell k is in row k % n and column k // n. ``"row"``: in row k // n and
            column k % n.

    Example:
        >>> join_cells(torch.arange(4.0).view(4, 1, 1, 1))[0]
        tensor([[0., 2.],
                [1., 3.]])
    """
    n = round(cells.shape[-4] ** 0.5)
    form = "(col row)" if order == "column" else "(row col)"
    return rearrange(cells, f"... {form} c h w -> ... c (row h) (col w)", row=n, col=n)


def cut_cells(pictures: Tensor, n: int, *, order: CellOrder = "column") -> Tensor:
    """The cells of pictures, ``(..., C, n * h, n * w)`` to ``(..., n * n, C, h, w)``.

    It undoes `join_cells`.

    Args:
        pictures: As above.
        n: Cells in height and in width.
        order: As in `join_cells`.
    """
    form = "(col row)" if order == "column" else "(row col)"
    return rearrange(pictures, f"... c (row h) (col w) -> ... {form} c h w", row=n, col=n)


def label_confidence(
    logits: Tensor, labels: Tensor, *, by: Probability = "softmax"
) -> tuple[Tensor, Tensor]:
    """The one class of each image, and its probability where the image is classified right.

    Args:
        logits: ``(N, K)``.
        labels: Classes ``(N,)``, or multi-hot ``(N, K)`` floats.
        by: ``"softmax"`` or ``"sigmoid"`` makes a probability of a logit.

    Returns:
        Class ``(N,)`` int64, and probability ``(N,)`` float32: 0 for an image whose highest score is
        another class's, or that shows several classes or none.
    """
    scores = class_scores(logits)
    if labels.ndim == 2 and labels.shape[1] == scores.shape[1] > 1:
        single, label = labels.gt(0.5).sum(1) == 1, labels.argmax(1)
    else:  # one class an image; with one logit as 0 or 1 of any type
        label = labels.reshape(-1).long()
        single = torch.ones_like(label, dtype=torch.bool)
    wide = logits.float()
    every = log_probabilities(wide).exp() if by == "softmax" else class_scores(wide).sigmoid()
    own = every.gather(1, label[:, None])[:, 0]
    return label, torch.where(single & (scores.argmax(1) == label), own, 0.0)


def most_confident(label: Tensor, confidence: Tensor, threshold: float) -> Confident:
    """Those above a threshold, the most confident first, of equal ones the first first."""
    (index,) = torch.where(confidence > threshold)
    index = index[confidence[index].sort(descending=True, stable=True).indices]
    return Confident(index, label[index], confidence[index])


@operation("confident_images")
def confident_images(
    logits: Tensor, labels: Tensor, *, confidence: float = 0.5, by: Probability = "softmax"
) -> Confident:
    """Which images are classified right, with a confidence above a threshold.

    Args:
        logits: ``(N, K)``.
        labels: One class an image, ``(N,)``; or multi-hot ``(N, K)`` floats, of which only images that
            show one class are taken: a cell of a grid must not show another cell's class.
        confidence: The class's probability must be above it, in [0, 1).
        by: ``"softmax"``, or ``"sigmoid"`` for models trained with a binary cross entropy, as B-cos
            networks are.

    Returns:
        The images, the most confident first.

    Raises:
        OptionError: If an option is not as above.
        ShapeError, DataError: If labels and logits do not fit.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.1, 0.0]])
        >>> confident_images(logits, torch.tensor([0, 0, 0, 0]), confidence=0.6).source
        tensor([1, 0])
    """
    check_number("confidence", confidence, least=0, most=1)
    check_option("by", by, ("softmax", "sigmoid"))
    check_labels(labels, logits)
    return most_confident(*label_confidence(logits, labels, by=by), confidence)


def choose_grids(
    labels: Sequence[int] | Tensor, *, n: int = 3, count: int | None = None, seed: int = 0
) -> Tensor:
    """Put images into the cells of grids, each grid of n x n distinct classes.

    Each image is used once at most, and of a class the first ones first. Classes are drawn among
    those with most images left, so that as many grids can be made as there can be; which of equals, and
    the cell of each, are drawn at random.

    Args:
        labels: Classes of the images, the most confident image first.
        n: Images in height and in width.
        count: How many grids at most; None is as many as can be.
        seed: Of the draws.

    Returns:
        Places in ``labels``, ``(G, n * n)`` int64 on the host.

    Raises:
        DataError: If there are fewer than n * n classes.
    """
    queues: dict[int, list[int]] = {}
    for place, label in enumerate(torch.as_tensor(labels).tolist()):
        queues.setdefault(label, []).append(place)
    cells = n * n
    if len(queues) < cells:
        raise DataError(
            f"the images show only {len(queues)} classes, but a grid of {n} x {n} needs {cells}. "
            f"{_remedies(len(queues))}. {cells} classes or more are needed."
        )
    most, total = 0, len(labels) // cells
    while (
        most < total and sum(min(len(q), most + 1) for q in queues.values()) >= (most + 1) * cells
    ):
        most += 1
    generator = torch.Generator().manual_seed(seed)
    grids = []
    left = {label: list(queues[label]) for label in sorted(queues)}
    for remaining in range(most if count is None else min(count, most), 0, -1):
        # More images of a class than grids to come are never used: drop the least confident.
        left = {label: queue[:remaining] for label, queue in left.items()}
        names = list(left)
        drawn = torch.randperm(len(names), generator=generator).tolist()
        by_length = sorted(drawn, key=lambda i: -len(left[names[i]]))[:cells]  # stable
        placed = torch.randperm(cells, generator=generator).tolist()
        grids.append([left[names[by_length[i]]].pop(0) for i in placed])
    return torch.tensor(grids, dtype=torch.int64).reshape(-1, cells)


def check_classes(label: Tensor, confidence: Tensor, threshold: float, n: int, images: int) -> None:
    """Refuse images of which too few classes are recognised for a grid of n x n, with what would do.

    Args:
        label: Of each image, ``(N,)`` on the host.
        confidence: Of each image that is classified right; 0 for the others, ``(N,)``.
        threshold: The confidence that is asked for.
        n: Images in height and in width.
        images: How many images there were.

    Raises:
        DataError: It says how many classes and images there are, and which n or confidence would do.
    """
    enough = confidence > threshold
    known = int(label[enough].unique().numel())
    if known >= n * n:
        return
    best: dict[int, float] = {}
    for name, value in zip(label.tolist(), confidence.tolist(), strict=True):
        if value > 0:
            best[name] = max(best.get(name, 0.0), value)
    falling = sorted(best.values(), reverse=True)
    lower: list[str] = []
    if len(falling) >= n * n:  # rounded down, so that the last one needed is above it
        lower = [f"confidence={math.floor(falling[n * n - 1] * 999) / 1000:g}"]
    raise DataError(
        f"only {known} classes have images that are classified right with a confidence above "
        f"{threshold:g} ({int(enough.sum())} of {images} images), but a grid of {n} x {n} needs "
        f"{n * n}. {_remedies(known, *lower)}. {n * n} classes or more are needed."
    )


def _remedies(classes: int, *others: str) -> str:
    """What to say or to give, where there are so many classes."""
    fits = math.isqrt(classes)
    said = [*([f"n={fits}"] if fits > 1 else []), *others]
    return f"Say {' or '.join(said)}, or give more images" if said else "Give more images"


@operation("make_grids")
def make_grids(
    images: Tensor,
    labels: Sequence[int] | Tensor,
    *,
    n: int = 3,
    count: int | None = None,
    order: CellOrder = "column",
    seed: int = 0,
) -> Grids:
    """Make grids of n x n images of distinct classes.

    For a data set that does not fit into memory, `grid_game` does the same from one that is read in
    batches.

    Args:
        images: ``(M, C, h, w)``, the most confident first, as `confident_images` sorts them.
        labels: Their classes, ``(M,)``.
        n: Images in height and in width.
        count: How many grids at most; None is as many as can be. Each image is used once at most.
        order: ``"column"``, as published: cell k is in row k % n and column k // n; or ``"row"``.
        seed: Of the draw of classes and cells. The same seed makes the same grids.

    Returns:
        The grids, the class of each cell, and which image it shows.

    Raises:
        OptionError, ShapeError: If an argument is not as above.
        DataError: If there are fewer than n * n classes.

    Example:
        >>> images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
        >>> grids = make_grids(images, [3, 5, 7, 8], n=2)
        >>> grids.images.shape, sorted(grids.labels[0].tolist())
        (torch.Size([1, 3, 4, 4]), [3, 5, 7, 8])
    """
    check_grid(n, order)
    if count is not None:
        check_number("count", count, least=1, whole=True)
    names = torch.as_tensor(labels)
    if not isinstance(images, Tensor) or images.ndim != 4 or names.shape != (len(images),):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(
            f"images are {shape} and labels {tuple(names.shape)}. Give one class an image. "
            "(M, C, h, w) and (M,) are allowed."
        )
    source = choose_grids(names, n=n, count=count, seed=seed).to(images.device)
    names = names.to(images.device)
    return Grids(join_cells(images[source], order=order), names[source], source)
