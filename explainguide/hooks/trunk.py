"""What runs before the first guided layer: differentiated once alone, it may be compiled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import (
    ExplainGuideError,
    GuidanceError,
    LayerError,
    OptionError,
    did_you_mean,
    first_line,
)
from explainguide.hooks.compiled import CompiledPart, check_outside, compiled_parts
from explainguide.hooks.dynamic import is_bcos
from explainguide.hooks.layers import split_index
from explainguide.hooks.probe import probe, probed_size
from explainguide.hooks.reading import Reading
from explainguide.hooks.tap import Tap, unread

__all__ = ["check_compiled", "compile_trunk", "with_compiled"]


def check_compiled(tap: Tap, reading: Reading) -> None:
    """Let the tap know which compiled parts end before its first layer; the others are refused.

    Costs one forward pass of one image, uncompiled, where there are compiled parts.

    Args:
        tap: What reads the model.
        reading: What the user has said of the model.

    Raises:
        GuidanceError: For a part that holds a layer or runs after the first, for B-cos networks, and
            with rows="annotated".
        LayerError: If the model does not run on an image of the probe.
    """
    parts = compiled_parts(tap.model)
    if not parts:
        return
    _check_compilable(tap)
    check_outside(tap.model, [name for name, module in tap.layers.items() if module is not None])
    ran, before = _order(tap, reading)
    for name, part in parts.items():
        wrapped = part in tap.layers.values()  # the layer itself, whose hooks run outside
        if part in ran and part not in before and not wrapped:
            raise GuidanceError(
                f"module {name!r} was compiled, and ends after the first guided layer, "
                f"{next(iter(tap.layers))!r}: what was compiled can be differentiated once alone. "
                "Leave it uncompiled and call `guide.compile()`, which compiles what lies before. "
                "Compiled modules that end before it are allowed."
            )
    layers = tap.layers.values()
    tap.trunk = frozenset(n for n, p in parts.items() if p in before or p in layers)
    tap.examined = frozenset(parts)


def with_compiled(tap: Tap, reading: Reading) -> Tap:
    """The tap itself after `check_compiled`, which takes it off the model where it refuses."""
    try:
        check_compiled(tap, reading)
    except BaseException:
        tap.remove()
        raise
    return tap


def compile_trunk(tap: Tap, reading: Reading, options: Mapping[str, Any]) -> list[str]:
    """Compile, in place, the outermost modules that end before the first layer of a tap.

    Those that are compiled already stay as they are. `Tap.remove` undoes it.

    Args:
        tap: What reads the model.
        reading: What the user has said of the model.
        options: Of `torch.nn.Module.compile`.

    Returns:
        Their names.

    Raises:
        GuidanceError: If there are none, for B-cos networks, and with rows="annotated".
        LayerError: If the model does not run on an image of the probe.
        OptionError: For options that torch.compile does not take.
    """
    if not tap.attached:
        raise GuidanceError(
            "the guide's hooks were taken off the model. Build a new guide. A guide works until "
            "`remove`, or the end of its `with`."
        )
    if torch.__version__ < "2.5":  # whose graph of a single module calls that module again
        raise GuidanceError(
            f"torch {torch.__version__} cannot compile single modules in place. Use torch 2.5, or "
            "leave the model uncompiled. 2.5 and later are allowed."
        )
    _check_options(options)
    model = tap.model
    _check_compilable(tap)
    _, before = _order(tap, reading)
    chosen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name == outer or name.startswith(f"{outer}.") for outer in chosen)
        if module in before and not inside:
            chosen[name] = module
    if not chosen:
        raise GuidanceError(
            f"no module ends before the first guided layer, {next(iter(tap.layers))!r}. Guide a later "
            "layer, or leave the model uncompiled. What lies before the first guided layer can be "
            "compiled."
        )
    already = compiled_parts(model)
    names = [name for name in chosen if name not in already]
    with ExitStack() as undo:
        for name in names:
            try:
                part = CompiledPart(name, chosen[name], options)
            except Exception as error:  # whatever torch.compile has against a value
                raise OptionError(
                    f"torch.compile does not take {dict(options)!r} ({first_line(error)}). Leave "
                    "them out for its defaults. The options of torch.nn.Module.compile are allowed."
                ) from error
            undo.callback(part.remove)
        tap.take_off_too(undo.pop_all().close)
    tap.trunk |= frozenset(names)
    tap.examined |= frozenset(names)
    return names


def _check_options(options: Mapping[str, Any]) -> None:
    allowed = [name for name in inspect.signature(torch.compile).parameters if name != "model"]
    for name in options:
        if name not in allowed:
            raise OptionError(
                f"unknown option {name!r}.{did_you_mean(name, allowed)} Those of "
                f"torch.nn.Module.compile are allowed: {', '.join(allowed)}."
            )


def _check_compilable(tap: Tap) -> None:
    model = tap.model
    if not tap.compilable:
        raise GuidanceError(
            "with rows='annotated' modules before the layer hand out rows of what they returned, "
            "which is not seen of one that was compiled. Use rows='all', or leave the model "
            "uncompiled. Either is allowed."
        )
    if is_bcos(model):
        raise GuidanceError(
            f"{type(model).__name__} is a B-cos network, whose backward pass asks whether it explains, "
            "which one that was compiled does not. Train it uncompiled. Other networks may be compiled "
            "before the layer."
        )


def _order(tap: Tap, reading: Reading) -> tuple[set[nn.Module], set[nn.Module]]:
    """The modules that run at all, and those that end before the first layer is read."""
    model = tap.model
    ended: set[nn.Module] = set()
    late: set[nn.Module] = set()
    read = [None in tap.layers.values()]  # the image is read before anything runs

    def reads(*_: Any) -> None:
        read[0] = True

    def begin(module: nn.Module, *_: Any) -> None:
        if read[0]:
            late.add(module)

    def end(module: nn.Module, *_: Any) -> None:
        (late if read[0] else ended).add(module)

    handles = []
    for name in tap.attentions:  # whose weights are read inside
        handles.append(model.get_submodule(name).register_forward_pre_hook(reads))
    for name in tap.layers:
        if tap.layers[name] is not None and name not in tap.attentions:
            layer = model.get_submodule(split_index(name)[0])
            handles.append(layer.register_forward_hook(reads))
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end))
    size = probed_size(model, reading)

    def nothing(score: Tensor) -> None:
        return None

    try:
        with unread():
            probe(model, size, nothing, reading=reading)
    except ExplainGuideError:
        raise
    except Exception as error:  # whatever a model does with an image that it was not made for
        raise LayerError(
            f"it could not be seen what runs before the first guided layer, because the model did not "
            f"run on an image of {' x '.join(map(str, size))} ({first_line(error)}). Say "
            "image_size=(H, W), or compile nothing. An image size that the model takes is allowed."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return ended | late, ended - late
