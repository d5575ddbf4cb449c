"""From a layer's name to its module, and the tap that reads the layer in the model's own forward."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.errors import GuidanceError, LayerError, OptionError, did_you_mean
from explainguide.second_order import TwiceDifferentiable

__all__ = ["INPUT", "ForwardPass", "Tap", "list_layers", "resolve_layers", "unwrap"]

INPUT = "input"
_WRAPPERS = ("module.", "_orig_mod.")


def unwrap(model: nn.Module, *, caller: str) -> nn.Module:
    """The model itself, out of DistributedDataParallel.

    Raises:
        GuidanceError: For wrappers through which no second derivative can be taken.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"{caller}: model is a {type(model).__name__}, not an nn.Module. "
            "Pass the classifier itself. It must map images (N, 3, H, W) to logits (N, K)."
        )
    if hasattr(model, "_orig_mod"):
        raise GuidanceError(
            f"{caller}: the model was passed through torch.compile, which cannot be differentiated "
            "twice from outside. Build the guide and train with the uncompiled model "
            "(`compiled._orig_mod`). Compile for evaluation only."
        )
    if isinstance(model, nn.DataParallel):
        raise GuidanceError(
            f"{caller}: nn.DataParallel copies the model in every forward, so no layer can be read. "
            "Use `model.module` on one device or DistributedDataParallel."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        if model.static_graph:
            raise GuidanceError(
                f"{caller}: DistributedDataParallel(static_graph=True) does not average the "
                "gradients of a loss on attributions. Build it with static_graph=False."
            )
        return unwrap(model.module, caller=caller)
    return model


def list_layers(model: nn.Module) -> list[str]:
    """The names of every module but the root, aliases included."""
    return [name for name, _ in model.named_modules(remove_duplicate=False) if name]


def resolve_layers(
    model: nn.Module, layer: str | Sequence[str], *, caller: str
) -> dict[str, nn.Module | None]:
    """Names to modules; ``"input"`` (the image itself) to None.

    Args:
        model: The unwrapped model.
        layer: ``"input"``, a dotted name as `nn.Module.named_modules` gives it, or several. The
            prefixes that DistributedDataParallel and torch.compile put in front are understood.
        caller: The public callable that the error names.

    Raises:
        LayerError: For a name that the model has not, a number, a module, or no name at all.
    """
    names = [layer] if isinstance(layer, str) or not isinstance(layer, Sequence) else list(layer)
    if not names:
        raise LayerError(f"{caller}: layer is an empty list. Name at least one layer.")
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module | None] = {}
    for name in names:
        clean = _clean_name(model, name, modules, caller=caller)
        if clean in found:
            raise LayerError(f"{caller}: layer {name!r} is named twice. Name each layer once.")
        found[clean] = None if clean == INPUT else modules[clean]
    return found


def _clean_name(
    model: nn.Module, name: object, modules: dict[str, nn.Module], *, caller: str
) -> str:
    if isinstance(name, nn.Module):
        known = next((n for n, m in modules.items() if m is name and n), None)
        fix = f"Use layer={known!r}" if known else "It is no module of this model"
        raise LayerError(
            f"{caller}: layer is a {type(name).__name__} module. {fix}. "
            "Layers are given by dotted name."
        )
    if not isinstance(name, str):
        raise LayerError(
            f"{caller}: layer is {name!r}, a {type(name).__name__}. Layers are not numbered: use a "
            f"dotted name such as {_example(modules)!r}. {_how_to_list(model, modules)}"
        )
    clean = name
    while clean not in modules and clean.startswith(_WRAPPERS):
        clean = clean.split(".", 1)[1]
    if clean == INPUT or (clean in modules and clean):
        return clean
    hint = did_you_mean(name, [*[n for n in modules if n], INPUT])
    raise LayerError(f"{caller}: unknown layer {name!r}.{hint} {_how_to_list(model, modules)}")


def _example(modules: dict[str, nn.Module]) -> str:
    top = [name for name, m in modules.items() if name and "." not in name and any(m.children())]
    return top[-1] if top else next((name for name in modules if name), INPUT)


def _how_to_list(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    known = config.get("architecture") if isinstance(config, dict) else None
    how = f"`explainguide layers {known}`" if known else "`model.named_modules()`"
    return f"{how} lists all {len(modules) - 1}; 'input' is the image."


@dataclass
class ForwardPass:
    """What the tap has seen of one forward pass."""

    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    recorded: bool  # gradients were enabled
    features: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    logits: Any = None
    autocast: tuple[bool, torch.dtype | None] = (False, None)
    replaced: set[str] = field(default_factory=set)

    @property
    def images(self) -> Any:
        """What the model was called with first, by position or by keyword."""
        return self.inputs[0] if self.inputs else next(iter(self.kwargs.values()), None)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that went in."""
        height, width = self.images.shape[-2:]
        return int(height), int(width)


class _Hook:
    """A hook that keeps neither its owner alive nor a copy of the model bound to it.

    Copies (an EMA of the model, a pickled model) carry a hook that does nothing.
    """

    def __init__(self, owner: Tap | None = None, method: str = "", *args: Any) -> None:
        self._owner = weakref.ref(owner) if owner is not None else lambda: None
        self._method, self._args = method, args

    def __call__(self, module: nn.Module, *call: Any) -> Any:
        owner = self._owner()
        return getattr(owner, self._method)(*self._args, *call) if owner is not None else None

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


class Tap:
    """Reads the outputs of named layers in the forward passes that the model makes anyway.

    While gradients are enabled, the output of each layer is kept and a clone of it goes on (an
    in-place operation that follows would rewrite it otherwise). Under ``torch.no_grad`` nothing is
    touched. Hooks come off with `remove`, or when the tap is forgotten.

    Args:
        model: The unwrapped model.
        layers: As `resolve_layers` returns them.

    Attributes:
        last: The last forward pass, or None before one and after `forget`.
        paused: While True, forward passes go by unread.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module | None]) -> None:
        self.last: ForwardPass | None = None
        self.paused = False
        self._layers = layers
        self._substitute: dict[str, Tensor] | None = None
        self._watched: dict[str, Any] = {}
        self._mode: TwiceDifferentiable | None = None
        self._context = ExitStack()
        handles = [
            model.register_forward_pre_hook(_Hook(self, "_begin"), prepend=False, with_kwargs=True),
            model.register_forward_hook(_Hook(self, "_end"), always_call=True),
        ]
        for name, module in layers.items():
            if module is not None:
                handles.append(module.register_forward_hook(_Hook(self, "_capture", name)))
        self._finalizer = weakref.finalize(self, _remove, handles)

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return self._finalizer.alive

    def remove(self) -> None:
        """Take every hook off the model and forget the last pass."""
        self._finalizer()
        self._context.close()
        self.forget()

    def forget(self) -> None:
        """Let the last pass and its graph go."""
        self.last = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let forward passes go by unread."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    @contextmanager
    def substitute(self, features: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Within this context a forward pass continues from these features instead of its own.

        Yields:
            What the other layers return then, by name. `last` stays as it is.
        """
        self._substitute, self._watched = features, {}
        try:
            yield self._watched
        finally:
            self._substitute, self._watched = None, {}

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paused:
            return None
        if self._substitute is not None:
            self._enter_mode(activate=True)
            image = self._substitute.get(INPUT)
            return None if image is None else _with_image(args, kwargs, image)
        self.last = ForwardPass(inputs=args, kwargs=kwargs, recorded=torch.is_grad_enabled())
        if isinstance(self.last.images, Tensor):
            device = self.last.images.device.type
            self.last.autocast = (
                torch.is_autocast_enabled(device),
                torch.get_autocast_dtype(device),
            )
        if not self.last.recorded:
            return None
        self._enter_mode(activate=INPUT in self._layers)
        if INPUT not in self._layers:
            return None
        onward = self._keep(INPUT, self.last.images)
        return None if onward is None else _with_image(args, kwargs, onward)

    def _capture(self, name: str, args: Any, output: Any) -> Any:
        if self.paused:
            return None
        if self._substitute is not None:
            if name in self._substitute:
                return self._substitute[name]
            self._watched[name] = output
            return output.clone() if isinstance(output, Tensor) else None
        if self.last is None or not self.last.recorded or self._mode is None:
            return None
        self._mode.activate()
        return self._keep(name, output)

    def _end(self, args: Any, output: Any) -> None:
        if self.paused:
            return
        if self._mode is not None and self.last is not None:
            self.last.replaced |= self._mode.replaced
        self._context.close()
        self._mode = None
        if self._substitute is not None or self.last is None:
            return
        if output is None:  # the forward raised
            self.forget()
        elif self.last.recorded:
            self.last.logits = output
        else:  # evaluation: keep the fact, not the tensors
            self.last.inputs, self.last.kwargs = (), {}

    def _enter_mode(self, *, activate: bool) -> None:
        self._context.close()
        self._mode = self._context.enter_context(TwiceDifferentiable())
        if activate:
            self._mode.activate()

    def _keep(self, name: str, output: Any) -> Any:
        """Store a layer's output; return what goes on in its place."""
        assert self.last is not None
        self.last.calls[name] = self.last.calls.get(name, 0) + 1
        if isinstance(output, Tensor) and output.is_floating_point():
            if not output.requires_grad:
                # A leaf of our own (for the image, or for what a frozen part of the model
                # computed), so that the caller's tensor stays as it was.
                output = output.clone() if output.is_inference() else output.detach()
                output.requires_grad_()
            self.last.features[name] = output
            return output.clone()
        self.last.features[name] = output
        return None


def _with_image(
    args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (image, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): image}


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
