"""The grid pointing game as a protocol: find confident images, make grids, explain them, score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.datasets.batches import check_data, check_device
from explainguide.errors import (
    DataError,
    OptionError,
    ShapeError,
    check_number,
    check_option,
    operation,
)
from explainguide.evaluation.disconnected import DisconnectedGrid
from explainguide.evaluation.grid_items import GridItems, Looked
from explainguide.evaluation.grids import (
    Probability,
    check_classes,
    choose_grids,
    most_confident,
)
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.layers import unwrap
from explainguide.hooks.reading import Output, check_reading
from explainguide.metrics import GridPointingGame, grid_pointing_game
from explainguide.metrics.checks import Undefined
from explainguide.metrics.grid import CellOrder
from explainguide.processes import add_up, process, together

__all__ = ["Explain", "GridExample", "GridGame", "grid_game"]

Explain = Callable[[Tensor, Tensor], Tensor]


class GridExample(NamedTuple):
    """One grid image, to be looked at.

    Attributes:
        image: ``(C, n * h, n * w)``, as the model sees it.
        maps: For the class of each cell, ``(n * n, n * h, n * w)``.
        labels: The class of each cell, ``(n * n,)``.
        scores: Of each map, ``(n * n,)``; NaN where undefined.
    """

    image: Tensor
    maps: Tensor
    labels: Tensor
    scores: Tensor


@dataclass(frozen=True)
class GridGame:
    """What `grid_game` returns, for G grids; tensors are on the host.

    Attributes:
        numbers: ``"gridpg"``, the mean score; ``"gridpg_undefined"``, how many maps have no positive
            part; ``"grids"``; ``"confident"``, how many images are classified right with confidence,
            and ``"classes"``, of how many classes they are; ``"images"`` that were read; ``"skipped"``.
        scores: Of every cell's map, ``(G, n * n)`` float32; NaN where undefined.
        labels: The class of each cell, ``(G, n * n)``.
        source: Which item of the data each cell shows, ``(G, n * n)``.
        examples: The first grids; in a distributed run those of this process.
        kept: The maps of the cell that was asked for, ``(G, n * h, n * w)``, in a distributed run of
            this process's grids; None where none was.
        kept_scores: Their scores, ``(G,)``.
    """

    numbers: dict[str, float]
    scores: Tensor
    labels: Tensor
    source: Tensor
    examples: tuple[GridExample, ...]
    kept: Tensor | None
    kept_scores: Tensor | None


@operation("grid_game")
def grid_game(
    model: nn.Module,
    explain: Explain,
    data: Any,
    *,
    n: int = 3,
    grids: int | None = 500,
    confidence: float = 0.5,
    by: Probability = "softmax",
    smoothing: int = 0,
    order: CellOrder = "column",
    undefined: Undefined = "exclude",
    cell_size: int | Sequence[int] | None = None,
    resize: Literal["nearest", "bilinear"] = "nearest",
    seed: int = 0,
    output: Output | None = None,
    examples: int = 4,
    keep_cell: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> GridGame:
    """Play the grid pointing game: does the map of a class fall on the one cell that shows it?

    Images that the model classifies right and with confidence are put together in grids of distinct
    classes; each grid is explained for the class of each of its cells, and the share of the positive
    attribution in that cell is the score. The model is in evaluation mode meanwhile. Costs one forward
    pass of the data, and ``n * n`` explanations a grid; memory does not grow with the data.

    In a distributed run every process takes its share, and gets the whole result.

    Args:
        model: A classifier, which runs on whole grids too. Or a `DiFull` or `DiPart` around one, whose
            heads are explained then.
        explain: ``(images (N, C, H, W), target (N,))`` to maps ``(N, h, w)`` or ``(N, 1, h, w)``, of
            this ``model``, signed and of any scale.
        data: Items ``(image, labels, annotation)``, None for one that could not be read; such as a list
            of ``(image, class, None)``. Of multi-hot labels images with one class are taken.
        n: Images in height and in width.
        grids: How many at most; None is as many as can be. Each image is used once at most.
        confidence: What the probability of an image's class must be above.
        by: ``"softmax"``, or ``"sigmoid"`` for models that are trained with a binary cross entropy.
        smoothing: As in `grid_pointing_game`; so are the next two.
        order: How cells are counted.
        undefined: What a map without a positive part counts: nothing, or 0 as in the published program.
        cell_size: Height and width to which images are resized before they are joined; by default they
            stay. For a model that takes one size, that size divided by n.
        resize: How a map of another size than the grid is resized. ``"nearest"``, as published, keeps
            in a cell what belongs to it; ``"bilinear"`` lets it flow over the border.
        seed: Of the draw of grids.
        output: Which of several things that the model returns are the logits.
        examples: How many grids to return with their maps.
        keep_cell: A cell whose maps are returned, of all grids, for `aggregate_maps`. They take
            ``4 * G * n * h * n * w`` bytes on the host.
        batch_size: Images a forward pass, and maps a call of ``explain``.
        workers: Processes that load images.
        device: Where to compute; None is where the model is. The model is not moved back.
        progress: Whether to show bars.

    Returns:
        The numbers, the score of every map, and some grids to look at.

    Raises:
        OptionError: If an option is not as above.
        DataError: If too few classes are recognised, with how many and what would do; if no image can
            be read, or labels and model do not fit.
        ShapeError: If ``explain`` does not return one map an image.

    References:
        Böhle et al., 2021, "Convolutional Dynamic Alignment Networks for Interpretable
        Classifications"; Rao et al., 2022, "Towards Better Understanding Attribution Methods".
    """
    metric = GridPointingGame(n=n, smoothing=smoothing, order=order, undefined=undefined)
    check_option("by", by, ("softmax", "sigmoid"))
    check_option("resize", resize, ("nearest", "bilinear"))
    check_number("confidence", confidence, least=0, most=1)
    check_number("batch_size", batch_size, least=1, whole=True)
    check_number("workers", workers, least=0, whole=True)
    check_number("examples", examples, least=0, whole=True)
    if grids is not None:
        check_number("grids", grids, least=1, whole=True)
    if keep_cell is not None:
        check_number("keep_cell", keep_cell, least=0, whole=True)
        if keep_cell >= n * n:
            raise OptionError(
                f"keep_cell is {keep_cell}, but a grid of {n} x {n} has {n * n} cells. Use 0, the top "
                f"left. 0 to {n * n - 1} are allowed."
            )
    if not callable(explain):
        raise OptionError(
            f"explain is a {type(explain).__name__}. Give a function of images and target, such as "
            "lambda x, k: method.attribute(x, k). A callable is allowed."
        )
    size = check_reading(image_size=cell_size).image_size
    place = None if device is None else check_device(device)
    outer = unwrap(model, compiled_parts=True)
    heads = outer if isinstance(outer, DisconnectedGrid) else None
    if heads is not None:
        _check_heads(heads, n, order)
    check_data(data, name="data")
    if place is not None:
        outer.to(place)
    parameter = next(outer.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    items = GridItems(data, batch_size, workers, device, progress)
    with evaluating(outer), torch.inference_mode(False):
        with together(device):
            reading = check_reading(output=output) if heads is None else heads.reading
            looked = items.look(outer if heads is None else heads.model, reading, by)
        looked = items.share(looked)
        chosen = _choose(looked, n=n, count=grids, confidence=confidence, seed=seed)
        own = range(process()[0], len(chosen.source), process()[1])
        scores = torch.zeros(chosen.source.shape)
        metric.to(device)
        shown: list[GridExample] = []
        kept: list[Tensor] = []
        with together(device):
            for rows, pictures in items.grids(chosen.source, own, size=size, order=order):
                labels = chosen.labels[rows]
                maps = _explained(heads, explain, pictures, labels.to(device), batch_size, resize)
                cells = torch.arange(n * n, device=device).repeat(len(rows))
                metric.update(maps.flatten(0, 1), cells)
                each = grid_pointing_game(
                    maps.flatten(0, 1), cells, n=n, smoothing=smoothing, order=order
                )
                scores[rows] = each.view(-1, n * n).float().cpu()
                for i in range(min(len(rows), examples - len(shown))):
                    example = pictures[i].cpu(), maps[i].cpu(), labels[i], scores[rows[i]]
                    shown.append(GridExample(*example))
                if keep_cell is not None:
                    kept.append(maps[:, keep_cell].float().cpu())
        scores = add_up(scores.flatten().tolist(), device).cpu().view_as(scores)
        with warnings.catch_warnings():
            # In a distributed run a process may have had nothing to add.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            mean = float(metric.compute())
    counts = {"gridpg_undefined": metric.undefined, "grids": len(scores), **chosen.counts}
    return GridGame(
        {"gridpg": mean, **counts},
        scores,
        chosen.labels,
        chosen.source,
        tuple(shown),
        torch.cat(kept) if kept else None,
        scores[list(own), keep_cell] if kept else None,
    )


class _Chosen(NamedTuple):
    """The grids that are played on, their cells' labels and items, and what there was to choose of."""

    labels: Tensor
    source: Tensor
    counts: dict[str, int]


def _choose(looked: Looked, *, n: int, count: int | None, confidence: float, seed: int) -> _Chosen:
    """Put the confident items into grids.

    Raises:
        DataError: If no item was read, or too few classes are recognised.
    """
    read, total = int(looked.read.sum()), len(looked.read)
    if not read:
        raise DataError(
            f"none of the {total} images could be read. See the warnings for their names. At least one "
            "must be readable."
        )
    found = most_confident(looked.label, looked.confidence, confidence)
    check_classes(looked.label, looked.confidence, confidence, n, read)
    source = found.source[choose_grids(found.label, n=n, count=count, seed=seed)]
    counts = {"confident": len(found.source), "classes": int(found.label.unique().numel())}
    return _Chosen(
        looked.label[source], source, {**counts, "images": read, "skipped": total - read}
    )


def _check_heads(heads: DisconnectedGrid, n: int, order: str) -> None:
    """Refuse heads of another grid than the one that is played on."""
    if (heads.n, heads.order) != (n, order):
        raise OptionError(
            f"n is {n} and order {order!r}, but the {type(heads).__name__} has n={heads.n} and order="
            f"{heads.order!r}. Say n={heads.n}, order={heads.order!r}. They must agree."
        )


def _explained(
    heads: DisconnectedGrid | None,
    explain: Explain,
    pictures: Tensor,
    labels: Tensor,
    batch_size: int,
    resize: str,
) -> Tensor:
    """The maps of every cell's class, ``(G, n * n, H, W)``."""
    cells = labels.shape[1]
    cell = torch.arange(cells, device=labels.device).expand_as(labels).flatten()
    target = labels.flatten()
    if heads is not None:
        target = heads.target(target, cell)
    grid = torch.arange(len(labels), device=labels.device).repeat_interleave(cells)
    parts = []
    for start in range(0, len(grid), batch_size):
        rows = slice(start, start + batch_size)
        images = pictures[grid[rows]]
        with torch.enable_grad():
            maps = explain(images, target[rows])
        parts.append(_resized(maps, len(images), (images.shape[-2], images.shape[-1]), resize))
    return torch.cat(parts).unflatten(0, (-1, cells))


def _resized(maps: Any, count: int, size: tuple[int, int], resize: str) -> Tensor:
    """Maps ``(N, h, w)`` at the size of the grid images."""
    if isinstance(maps, Tensor) and maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != count or 0 in maps.shape:
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        fix = "Return one map an image"
        if isinstance(maps, Tensor) and maps.ndim == 4:
            fix = "Sum over the channels: maps.sum(1)"
        raise ShapeError(
            f"explain returned {shape} for {count} images. {fix}. (N, h, w) is allowed."
        )
    maps = maps.detach()
    if maps.shape[-2:] == size:
        return maps
    mode = "nearest-exact" if resize == "nearest" else "bilinear"
    corners = None if resize == "nearest" else False
    return F.interpolate(maps[:, None].float(), size, mode=mode, align_corners=corners)[:, 0]
