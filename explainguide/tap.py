"""Reads layers in the forward passes that a model makes anyway."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.layers import INPUT
from explainguide.second_order import TwiceDifferentiable

__all__ = ["ForwardPass", "Tap"]

# The tap that alone reads the forward passes of this thread, while one does.
_READER: ContextVar[Any] = ContextVar("explainguide_reader", default=None)


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
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module | None]) -> None:
        self.last: ForwardPass | None = None
        self._layers = layers
        self._substitute: dict[str, Tensor] | None = None
        self._watched: dict[str, Any] = {}
        self._mode: TwiceDifferentiable | None = None
        self._context = ExitStack()
        handles = [
            model.register_forward_pre_hook(_Hook(self, "_begin"), prepend=False, with_kwargs=True),
            # First to leave, as it was last to enter: the modes of two taps stay nested.
            model.register_forward_hook(_Hook(self, "_end"), prepend=True, always_call=True),
        ]
        for name, module in layers.items():
            if module is not None:
                handles.append(module.register_forward_hook(_Hook(self, "_capture", name)))
        self._finalizer = weakref.finalize(self, _remove, handles, self._context)

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return self._finalizer.alive

    def remove(self) -> None:
        """Take every hook off the model and forget the last pass."""
        self._finalizer()
        self.forget()

    def forget(self) -> None:
        """Let the last pass and its graph go."""
        self.last = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within this context no other tap reads; what waits for a loss there stays as it is."""
        token = _READER.set(self)
        try:
            yield
        finally:
            _READER.reset(token)

    @property
    def _silent(self) -> bool:
        return _READER.get() not in (None, self)

    @contextmanager
    def substitute(self, features: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Within this context a forward pass continues from these features instead of its own.

        Yields:
            What the other layers return then, by name. `last` stays as it is.
        """
        self._substitute, self._watched = features, {}
        try:
            with self.alone():
                yield self._watched
        finally:
            self._substitute, self._watched = None, {}

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._silent:
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
        if self._silent:
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
        if self._silent:
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


def _remove(handles: list[Any], context: ExitStack) -> None:
    for handle in handles:
        handle.remove()
    context.close()
