"""``explainguide layers``: which layers of a model can be guided, and which one is chosen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from explainguide.hooks.probe import LayerInfo

__all__ = ["EXAMPLE", "HELP", "add_arguments", "list_stages", "run"]

HELP = "list the layers of a model that can be guided"
EXAMPLE = "explainguide layers resnet50"

_ANY_CLASSES = 10
_PASSED_OVER = ("dropout", "droppath", "identity", "pool", "permute")
_DEAD = "dead: the logits do not depend on its places"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of timm's (resnet50) or torchvision's (swin_t), or package.module:function",
    )
    parser.add_argument("--all", action="store_true", help="every module, not only the stages")
    parser.add_argument(
        "--size",
        metavar="N",
        help="side of the image in pixels, or HEIGHTxWIDTH (default: what the model was made for)",
    )


def run(args: argparse.Namespace) -> int:
    """Build the model with random weights, run one random image through it, print a table."""
    from explainguide.cli.data import allow_local_modules
    from explainguide.cli.pictures import parse_size
    from explainguide.hooks.layers import split_index
    from explainguide.hooks.probe import automatic_layer, probe_layers
    from explainguide.models.build import build_model, needs_num_classes, set_image_size
    from explainguide.visualization.tables import format_table

    size = parse_size(args.size) if args.size else None
    allow_local_modules()
    any_classes = _ANY_CLASSES if needs_num_classes(args.model) else None
    model = build_model(args.model, num_classes=any_classes)
    if size is not None and size[0] == size[1]:
        set_image_size(model, size[0])
    layers = probe_layers(model, image_size=size)
    chosen = automatic_layer(model, layers)
    modules = dict(model.named_modules(remove_duplicate=False))
    shown = layers if args.all else list_stages(model, layers, chosen)
    rows: list[dict[str, object]] = [{"": "", "layer": "input", "module": "", "note": "the image"}]
    for layer in shown:
        kind = type(modules[split_index(layer.name)[0]]).__name__
        rows.append({**_row(layer, layer.name == chosen), "module": kind})
    columns = ["", "layer", *(["module"] if args.all else []), "output", "grid", "note"]
    count = len(layers)
    print(
        f"{args.model}: {'every module' if args.all else 'stages and blocks'}, in running order\n"
    )
    print(format_table(rows, columns=columns))
    print(f"\n* {_reason(layers, chosen)}")
    print("  A map has one value for each place of a layer's grid.")
    if not args.all:
        print(f"  Other modules can be guided too: --all lists all {count} that ran.")
    return 0


def list_stages(model: nn.Module, layers: list[LayerInfo], chosen: str) -> list[LayerInfo]:
    """The layers among which one usually chooses: stages, or blocks where there is one stage.

    The tree of modules is opened where one module holds most of the network, such as the
    ``blocks`` of a vision transformer, and left closed elsewhere. Of layers in a row that have no
    parts and one grid, the last stands for all.

    Args:
        model: The model.
        layers: What `probe_layers` found.
        chosen: A layer that is in the result whatever it is.

    Returns:
        In the order in which they finish.
    """
    spatial = {layer.name: layer for layer in layers if layer.layout is not None}
    names: set[str] = {chosen}
    _collect(model, "", spatial, names)
    return [layer for layer in layers if layer.name in names]


def _collect(
    module: nn.Module, prefix: str, spatial: dict[str, LayerInfo], names: set[str]
) -> None:
    """Add the layers of one level of the tree, and of the levels below that are opened."""
    from explainguide.hooks.layers import split_index

    inside = {
        f"{prefix}{name}": (child, sum(n.startswith(f"{prefix}{name}.") for n in spatial))
        for name, child in module.named_children()
    }
    total = sum(count for _, count in inside.values())
    leaf: tuple[str, tuple[int, int]] | None = None
    for name, (child, count) in inside.items():
        if count:
            leaf = None
            alike = any(
                type(neighbour) is type(child) and size > total / 20
                for sibling, (neighbour, size) in inside.items()
                if sibling != name
            )
            own = {n for n in spatial if split_index(n)[0] == name}  # itself, or its members
            if not own or (count > total / 2 and not alike):
                _collect(child, f"{name}.", spatial, names)
            else:
                names |= own
        elif name in spatial and not _is_passed_over(child):
            layout = spatial[name].layout
            assert layout is not None
            if leaf is not None and leaf[1] == layout.grid:
                names.discard(leaf[0])
            names.add(name)
            leaf = (name, layout.grid)


def _is_passed_over(module: nn.Module) -> bool:
    """Whether a layer only hands on, drops or resizes what the one before it computed."""
    kind = type(module).__name__.lower()
    return any(word in kind for word in _PASSED_OVER)


def _row(layer: LayerInfo, chosen: bool) -> dict[str, object]:
    grid, note = "", ""
    if layer.layout is None:
        note = "no grid of places"
    else:
        grid = str(layer.layout)
        if not layer.alive:
            note = _DEAD
        elif layer.calls > 1:
            note = f"runs {layer.calls} times: a guided layer runs once"
        elif layer.cancels:
            note = "activation x gradient cancels: a normalisation follows"
        elif chosen:
            note = "the choice where no layer is named"
    output = " x ".join(map(str, layer.shape[1:]))
    return {"": "*" if chosen else "", "layer": layer.name, "output": output, "grid": grid,
            "note": note}  # fmt: skip


def _reason(layers: list[LayerInfo], chosen: str) -> str:
    place = next(i for i, layer in enumerate(layers) if layer.name == chosen)
    layout = layers[place].layout
    after = [layer for layer in layers[place + 1 :] if layer.layout is not None]
    why = f"{chosen} is the last layer whose places reach the logits"
    if layout is not None and layout.prefix and any(not layer.alive for layer in after):
        return f"{why}: after it only the class token does."
    return f"{why}: after it there is one vector for the whole image."
