"""DiFull and DiPart: each cell of a grid has a head of its own, which sees no other cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import (
    GuidanceError,
    LayerError,
    OptionError,
    ShapeError,
    constructor,
    first_line,
    method,
)
from explainguide.evaluation.grids import cut_cells, join_cells
from explainguide.hooks.dynamic import evaluating
from explainguide.hooks.layers import INPUT, resolve_layers, split_index, unwrap
from explainguide.hooks.layout import Layout, to_nchw
from explainguide.hooks.logits import check_classifier, check_logits, class_scores
from explainguide.hooks.members import find_member, with_member
from explainguide.hooks.probe import LayerInfo, automatic_layer, input_size, probe_layers
from explainguide.hooks.reading import Output, check_reading
from explainguide.metrics.grid import CellOrder, check_grid

__all__ = ["DiFull", "DiPart", "DisconnectedGrid"]

JOINED = "joined"


class DisconnectedGrid(nn.Module):
    """What `DiFull` and `DiPart` share: n * n heads of one network, each of which sees one cell.

    Called with grid images ``(N, C, n * h, n * w)``, it returns the logits of all heads,
    ``(N, K * n * n)``: that of class k at the head of cell c is number ``k * n * n + c``, which
    `target` tells. So it is a classifier like any other, which any attribution can explain at the
    input; and at the layer ``"joined"``, the features of all cells side by side,
    ``(N, C, n * h', n * w')``.

    The network is used, not copied, and must be in evaluation mode: BatchNorm would mix the cells
    otherwise. With a single logit z there are two classes, with the logits -z and z.
    """

    def __init__(
        self, model: nn.Module, n: int, *, order: CellOrder, output: Output | None
    ) -> None:
        super().__init__()
        check_grid(n, order)
        self.reading = check_reading(output=output)
        self.model = unwrap(model, compiled_parts=True)
        check_classifier(self.model, self.reading)
        self.n, self.order = n, order
        self.cell_size: tuple[int, int] | None = None
        self.training = self.model.training  # and not `train`, which would reach into the model

    def target(self, labels: Tensor, cells: Tensor) -> Tensor:
        """Which logits are those of some classes at the heads of some cells.

        Args:
            labels: Classes, ``(N,)``.
            cells: Cells, ``(N,)``, from 0 to n * n - 1.
        """
        return labels * self.n**2 + cells

    def _check(self, images: Tensor) -> None:
        name = next((n for n, m in self.model.named_modules() if m.training), None)
        if name is not None:
            raise GuidanceError(
                f"{f'module {name!r}' if name else 'the model'} is in training mode, where cells or "
                "images influence each other. Call model.eval() first. Evaluation mode is allowed."
            )
        shape, n = tuple(images.shape), self.n
        if len(shape) != 4 or shape[2] % n or shape[3] % n:
            raise ShapeError(
                f"the images have shape {shape}, which are no grids of {n} x {n} cells. Join them with "
                "`join_cells`. (N, C, n * h, n * w) is allowed."
            )
        size, known = (shape[2] // n, shape[3] // n), self.cell_size
        if known is not None and known != size:
            raise ShapeError(
                f"the cells are {size[0]} x {size[1]}, but the layer was found for {known[0]} x "
                f"{known[1]}. Build it with cell_size={size}. One size is allowed."
            )

    def _logits(self, output: Any, count: int) -> Tensor:
        """What the model returns of all cells to the logits of all heads."""
        cells = self.n**2
        logits = class_scores(check_logits(output, reading=self.reading, images=count * cells))
        return logits.unflatten(0, (count, cells)).mT.flatten(1)

    def extra_repr(self) -> str:
        """The grid, for `repr`."""
        return f"n={self.n}, order={self.order!r}"


class DiFull(DisconnectedGrid):
    """The network applied to each cell of a grid on its own (DiFull).

    What an attribution says of a class at the head of its cell is known to be wrong in any other cell,
    which cannot have influenced it. So a faithful one scores exactly 1 in the grid pointing game, if it
    is read at the map's own resolution or resized with ``"nearest"``.

    Explain it at the image, or, with ``layer``, at that layer of the network, as ``"joined"``: the
    layer's places of all cells lie side by side there, before each cell goes on alone. Tokens without
    a place (a class token) go on with their cell and are no part of it.

    Args:
        model: Any classifier of single images, ``(N, C, h, w)`` to logits; it runs on cells alone, so
            cells may have the one size that it was built for.
        n: Images in height and in width.
        layer: Dotted name of the layer that is to be explained; None is the image.
        cell_size: Height and width of a cell, to read the layer; by default what the model says of
            itself, else 224 x 224. Without ``layer`` any size will do.
        order: How heads and cells are counted, as in `join_cells`.
        output: Which of several things that the model returns are the logits.

    Raises:
        LayerError: If the model has no such layer, or its places cannot be told.
        OptionError: If another option is not as above.
        GuidanceError: In a forward pass, if the model is in training mode.

    Note:
        The published program draws grids whose first and last cell show one class, and looks at those
        two heads. Here every head is looked at; the same class may be in several cells.

    References:
        Rao et al., 2022, "Towards Better Understanding Attribution Methods", Section 3.1.

    Example:
        >>> from explainguide.attr import InputXGradient
        >>> from explainguide.metrics import grid_pointing_game
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        >>> grids = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> heads = DiFull(model, n=2)
        >>> heads(grids).shape  # 4 heads of 5 classes
        torch.Size([2, 20])
        >>> cells = torch.tensor([0, 3])
        >>> maps = InputXGradient(heads).attribute(grids, heads.target(torch.tensor([4, 1]), cells))
        >>> grid_pointing_game(maps, cells, n=2)
        tensor([1., 1.])
    """

    @constructor
    def __init__(
        self,
        model: nn.Module,
        n: int = 3,
        *,
        layer: str | nn.Module | None = None,
        cell_size: int | Sequence[int] | None = None,
        order: CellOrder = "column",
        output: Output | None = None,
    ) -> None:
        super().__init__(model, n, order=order, output=output)
        self.layer: str | None = None
        if layer is not None and layer != INPUT:
            (self.layer,) = resolve_layers(self.model, layer)
            size = _size_of(self.model, cell_size)
            found = probe_layers(self.model, image_size=size, reading=self.reading)
            self._layout = _layout_of(self.layer, found)
            self.joined, self.cell_size = nn.Identity(), size

    @method
    def forward(self, images: Tensor) -> Tensor:
        """Grid images ``(N, C, n * h, n * w)`` to the logits of every head, ``(N, K * n * n)``."""
        self._check(images)
        cells = cut_cells(images, self.n, order=self.order).flatten(0, 1)
        if self.layer is None:
            return self._logits(self.model(cells), len(images))
        with _passing_through(self.model, self.layer, self._join):
            output = self.model(cells)
        return self._logits(output, len(images))

    def _join(self, feature: Tensor) -> Tensor:
        """A layer's output of all cells, put side by side, and apart again."""
        n = self.n
        places = to_nchw(feature, self._layout)
        whole = join_cells(places.unflatten(0, (-1, n * n)), order=self.order)
        apart = cut_cells(self.joined(whole), n, order=self.order).flatten(0, 1)
        return _with_places(feature, apart, self._layout)


class DiPart(DisconnectedGrid):
    """The network applied to a whole grid up to a layer, from there on to each cell alone (DiPart).

    Features may have seen the neighbouring cells, as far as the network looks; which of them a head
    pools it cannot choose. So a faithful attribution scores exactly 1 at that layer, ``"joined"``, and
    at an earlier one, ``"model.<name>"`` or the image, as much less as the network has mixed by then. A
    network that attends to all places mixes all of them.

    Args:
        model: A classifier that runs on images of the size of a whole grid: any CNN; a ViT only if it
            was built for that size, or takes any (``img_size=``, ``dynamic_img_size=True`` in timm).
        n: Images in height and in width.
        layer: Dotted name of the layer from which on each cell goes alone, and by which everything that
            comes later must have passed; None is the last such layer with places.
        cell_size: Height and width of a cell; by default what the model says of itself, else 224 x 224.
        order: How heads and cells are counted, as in `join_cells`.
        output: Which of several things that the model returns are the logits.

    Tokens without a place (a class token) go on with every cell.

    Attributes:
        layer: The name of the layer.

    Raises:
        LayerError: If there is no such layer, if cells cannot be told apart in it, or if the rest of
            the model does not run on a cell of it.
        OptionError: If another option is not as above.
        GuidanceError: In a forward pass, if the model is in training mode.

    References:
        Rao et al., 2022, "Towards Better Understanding Attribution Methods", Section 3.1.

    Example:
        >>> from explainguide.attr import InputXGradient
        >>> from explainguide.metrics import grid_pointing_game
        >>> pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pooled).eval()
        >>> heads = DiPart(model, n=2, cell_size=8)
        >>> heads.layer
        '1'
        >>> grids = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> heads(grids).shape, heads.target(torch.tensor([2]), torch.tensor([1]))
        (torch.Size([1, 20]), tensor([9]))
        >>> maps = InputXGradient(heads, "joined").attribute(grids, target=9)
        >>> grid_pointing_game(maps, torch.tensor([1]), n=2)
        tensor([1.])
    """

    @constructor
    def __init__(
        self,
        model: nn.Module,
        n: int = 3,
        *,
        layer: str | nn.Module | None = None,
        cell_size: int | Sequence[int] | None = None,
        order: CellOrder = "column",
        output: Output | None = None,
    ) -> None:
        super().__init__(model, n, order=order, output=output)
        if layer == INPUT:
            raise OptionError(
                "layer is 'input', from where on each cell would go alone. Use DiFull. A layer of the "
                "network is allowed."
            )
        self.joined, self.cell_size = nn.Identity(), _size_of(self.model, cell_size)
        height, width = (n * side for side in self.cell_size)
        try:
            found = probe_layers(self.model, image_size=(height, width), reading=self.reading)
        except LayerError as error:
            small = tuple(max(side // n, 1) for side in self.cell_size)
            raise LayerError(
                f"the model does not run on a grid of {height} x {width} pixels ({first_line(error)}). "
                f"Say cell_size={small}, or build the model for that size, or use DiFull, which runs "
                "it on cells alone. A model that takes the whole grid is allowed."
            ) from error
        if layer is not None:
            (self.layer,) = resolve_layers(self.model, layer)
            self._layout = _layout_of(self.layer, found)
            self._try_out(height, width)
        else:
            self._find_layer(found, height, width)

    @method
    def forward(self, images: Tensor) -> Tensor:
        """Grid images ``(N, C, n * h, n * w)`` to the logits of every head, ``(N, K * n * n)``."""
        self._check(images)
        with _passing_through(self.model, self.layer, self._cut):
            output = self.model(images)
        return self._logits(output, len(images))

    def _cut(self, feature: Tensor) -> Tensor:
        """A layer's output of whole grids to that of their cells, ``N * n * n`` of them."""
        n, layout = self.n, self._layout
        whole = self.joined(to_nchw(feature, layout))
        cells = cut_cells(whole, n, order=self.order).flatten(0, 1)
        if layout.kind == "NCHW":
            return cells
        if layout.kind == "NHWC":
            return cells.movedim(1, 3)
        rows = cells.flatten(2)
        tokens = rows if layout.kind == "channels" else rows.mT
        dim = 2 if layout.kind == "channels" else 1
        front = feature.narrow(dim, 0, layout.prefix).repeat_interleave(n * n, 0)
        return torch.cat([front, tokens], dim)

    def _find_layer(self, found: list[LayerInfo], height: int, width: int) -> None:
        """The last layer after which cells can go on alone."""
        refused: LayerError | None = None  # by the last layer that could be explained
        while True:
            try:
                self.layer = automatic_layer(self.model, found)
            except LayerError as error:
                raise refused or error from None
            try:
                self._layout = _layout_of(self.layer, found)
                self._try_out(height, width)
                return
            except LayerError as error:  # a branch: what goes around it keeps the whole grid
                refused = refused or error
                found = found[: [info.name for info in found].index(self.layer)]

    def _try_out(self, height: int, width: int) -> None:
        """Refuse a layer that does not split into cells, or after which they do not go on alone."""
        layout, n = self._layout, self.n
        known = ("NCHW", "NHWC", "tokens", "channels")
        if layout.kind not in known or layout.order or layout.others or layout.reroll is not None:
            raise LayerError(
                f"layer {self.layer!r} keeps its places in an order of its own, {layout}. Choose "
                "another, or use DiFull. Rows of places, with other tokens in front, are allowed."
            )
        if layout.grid[0] % n or layout.grid[1] % n:
            raise LayerError(
                f"layer {self.layer!r} has {layout.grid[0]} x {layout.grid[1]} places for a grid of "
                f"{n} x {n} cells. Say another cell_size=, such as a multiple of 32. Multiples of n "
                "are allowed."
            )
        parameter = next(self.model.parameters(), torch.empty(0))
        channels = input_size(self.model)[0]
        images = torch.zeros(2, channels, height, width).to(parameter)
        try:
            with evaluating(self), torch.no_grad():
                self(images)
        except Exception as error:  # whatever a model does with fewer places than it had
            raise LayerError(
                f"after layer {self.layer!r} the model does not go on with cells alone "
                f"({first_line(error)}). Choose the block around it, or leave layer= out. A layer by "
                "which everything later has passed is allowed."
            ) from error


def _size_of(model: nn.Module, given: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width of a cell: as given, or what the model was built for."""
    asked = check_reading(image_size=given).image_size
    if asked is not None:
        return asked
    _, height, width = input_size(model)
    return height, width


def _layout_of(layer: str, found: list[LayerInfo]) -> Layout:
    """How a layer is read.

    Raises:
        LayerError: If it did not run once, or its places do not reach the logits.
    """
    info = next((info for info in found if info.name == layer), None)
    if info is None or info.layout is None or not info.alive or info.calls != 1:
        usable = [info.name for info in found if info.usable]
        raise LayerError(
            f"layer {layer!r} does not run once with places that reach the logits. Use "
            f"{usable[-1] if usable else INPUT!r}. `explainguide layers` shows what each layer returns."
        )
    return info.layout


@contextmanager
def _passing_through(
    model: nn.Module, layer: str, act: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within this context the output of a layer is what a function makes of it."""

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        place, feature = find_member(layer, output)
        return with_member(output, place, act(feature))

    handle = model.get_submodule(split_index(layer)[0]).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _with_places(feature: Tensor, places: Tensor, layout: Layout) -> Tensor:
    """An activation with other values at its places, ``(N, C, h, w)``; other tokens stay."""
    if layout.kind == "NCHW":
        return places
    # Where each value of a view lies: exact in float64, which every layout can read.
    shape = feature.shape[1:]
    lies = torch.arange(shape.numel(), dtype=torch.float64, device=feature.device).view(1, *shape)
    index = to_nchw(lies, layout).flatten().long()
    return feature.flatten(1).index_copy(1, index, places.flatten(1)).view_as(feature)
