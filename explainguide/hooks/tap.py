"""Reads layers in the forward passes that a model makes anyway."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from explainguide.hooks.attention import Weights
from explainguide.hooks.compiled import compiled_parts, uncompiled
from explainguide.hooks.fast import Fast
from explainguide.hooks.fast.nodes import mark_own
from explainguide.hooks.forward_pass import ForwardPass
from explainguide.hooks.layers import INPUT, split_index
from explainguide.hooks.members import find_image, find_member, is_map, with_image, with_member
from explainguide.hooks.places import Arrangement, PlaceTracer
from explainguide.hooks.second_order import TwiceDifferentiable
from explainguide.hooks.token_grid import Steps
from explainguide.hooks.weak_hook import WeakHook

__all__ = ["ForwardPass", "Tap", "in_backward", "unread"]

# Whoever alone reads the forward passes of this thread, while one does.
_READER: ContextVar[Any] = ContextVar("explainguide_reader", default=None)

# What the first pass of a model, mode and image shape showed of its layers' tokens holds for the next.
_Known = dict[str, tuple[tuple[int, ...], Arrangement | None]]
_ARRANGED: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Known]] = weakref.WeakKeyDictionary()
# The same of models with compiled parts, inside which nothing is seen.
_SHOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[str, Steps]]] = (
    weakref.WeakKeyDictionary()
)


@contextmanager
def unread() -> Iterator[None]:
    """Within this context no tap reads: the library's own passes are nobody's training step."""
    token = _READER.set(object())
    try:
        yield
    finally:
        _READER.reset(token)


class Tap:
    """Reads the outputs of named layers in the forward passes that the model makes anyway.

    While gradients are enabled, the output of each layer is kept and a clone of it goes on (an
    in-place operation that follows would rewrite it otherwise). Under ``torch.no_grad`` nothing is
    touched. Hooks come off with `remove`, or when the tap is forgotten.

    Args:
        model: The unwrapped model.
        layers: As `resolve_layers` returns them.
        attentions: Names of modules whose attention weights are kept too, in the order in which they
            are computed. The feature of such a layer is its weights, read as one token a key.
        replace: Whether operations above the first layer get a form with a second derivative.
        reruns: Whether the model may be run again from other features (`substitute`), with the
            parameters and buffers that the pass saw.
        image_argument: Which argument of the model the images are, where the user has said it.
        fast: Whether operations above the first layer that have a fast second derivative use it.

    Attributes:
        layers: The layers, as they were given.
        last: The last forward pass, or None before one and after `forget`.
        dropped: How many recorded passes were followed by another before somebody took them.
        told: Whether that was said.
        compiled: Whether the model ran inside torch.compile, where no layer is read.
        attentions: As they were given.
        examined: Compiled parts of the model of which it was seen when they run.
        trunk: Those that end before the first layer. They run compiled, but in the first pass of its
            kind; others never do.
        compilable: Whether parts of the model may be compiled at all.
    """

    compilable = True

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module | None],
        attentions: Sequence[str] = (),
        *,
        replace: bool = True,
        reruns: bool = False,
        image_argument: int | str | None = None,
        fast: Fast = False,
    ) -> None:
        self.last: ForwardPass | None = None
        self.dropped, self.told = 0, False
        self.compiled = False
        self.trunk = self.examined = frozenset[str]()
        self._replace, self._reruns = replace, reruns
        self._image_argument = image_argument
        self._fast = fast
        self._model = weakref.ref(model)
        self._paused = 0
        self._waiting: ForwardPass | None = None  # while a checkpointed model is computed again
        self._recomputing = False
        self.layers = layers
        self._substitute: dict[str, Tensor] | None = None
        self._watched: dict[str, Any] = {}
        self._place: int | str = 0
        self._mode: TwiceDifferentiable | None = None
        self._tracer: PlaceTracer | None = None
        self._known: _Known = {}
        self._context = ExitStack()
        handles = [
            model.register_forward_pre_hook(
                WeakHook(self, "_begin"), prepend=False, with_kwargs=True
            ),
            # First to leave, as it was last to enter: the modes of two taps stay nested.
            model.register_forward_hook(WeakHook(self, "_end"), prepend=True, always_call=True),
        ]
        self.attentions = tuple(attentions)
        self._attending: list[str] = []  # the attention modules that run, the innermost last
        for name in attentions:
            attention = model.get_submodule(name)
            handles.append(attention.register_forward_pre_hook(WeakHook(self, "_attend", name)))
            handles.append(attention.register_forward_hook(WeakHook(self, "_attended", name)))
        for name, module in layers.items():
            if module is not None and name not in attentions:
                handles.append(module.register_forward_hook(WeakHook(self, "_capture", name)))
        self._undo = ExitStack()
        for handle in handles:
            self._undo.callback(handle.remove)
        self._undo.callback(self._context.close)
        self._finalizer = weakref.finalize(self, self._undo.close)

    @property
    def model(self) -> nn.Module:
        """The model that is read; the tap does not keep it alive."""
        model = self._model()
        assert model is not None
        return model

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return self._finalizer.alive

    def remove(self) -> None:
        """Take every hook off the model and forget the last pass."""
        self._finalizer()
        self.forget()

    def take_off_too(self, undo: Callable[[], None]) -> None:
        """What else is to be done when the hooks come off, out of any pass."""
        self._undo.callback(undo)
        self._undo.callback(self._context.close)

    def forget(self) -> None:
        """Let the last pass and its graph go, and leave it where it was interrupted."""
        self._leave()
        self.last, self.dropped = None, 0

    def _leave(self) -> None:
        self._context.close()
        self._mode = self._tracer = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within this context nothing is read; what waits for a loss stays as it is."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

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
        return bool(self._paused) or _READER.get() not in (None, self)

    @contextmanager
    def substitute(
        self, features: dict[str, Tensor], passed: ForwardPass
    ) -> Iterator[dict[str, Any]]:
        """Within this context a forward pass continues from these features instead of its own.

        Args:
            features: Layer name to what it returns; ``"input"`` to the images.
            passed: The pass whose arguments the model is called with again.

        Yields:
            What the other layers return then, by name. `last` stays as it is.
        """
        assert passed.place is not None
        self._substitute, self._watched, self._place = features, {}, passed.place
        try:
            with self.alone():
                yield self._watched
        finally:
            self._leave()
            self._substitute, self._watched = None, {}

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._silent:
            return None
        self._leave()  # a pass that was interrupted
        if self._substitute is not None:
            image = self._substitute.get(INPUT)
            self._enter_mode(compiled_parts(self.model), activate=True, late=image is None)
            return None if image is None else with_image(args, kwargs, self._place, image.clone())
        recorded = torch.is_grad_enabled()
        self._recomputing = in_backward()
        if self._recomputing:
            self._waiting = self.last
        elif recorded and self.last is not None and self.last.output is not None:
            self.dropped += 1
        model = self.model
        place, why = find_image(model, args, kwargs, self._image_argument)
        self.last = ForwardPass(args, kwargs, recorded, place, why, model.training)
        if recorded and self._reruns:
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            self.last.state = {**dict(model.named_parameters()), **buffers}
        device = self.last.device
        self.last.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        if not self.last.recorded:
            return None
        if place is not None and self.last.images is not None:
            self.last.steps.images = tuple(self.last.images.shape)
        parts = compiled_parts(model)
        self.last.compiled = frozenset(parts)
        shown = _SHOWN.get(model, {}).get(self._kind(self.last))
        activate = INPUT in self.layers
        late = shown is not None and not activate
        self._enter_mode(parts, activate=activate, late=late, steps=self.last.steps)
        if self._mode is not None and self._mode.late:
            self.last.until = shown or {}
        else:
            self._trace(model, self.last.images)
        if INPUT not in self.layers or place is None:
            return None
        return with_image(args, kwargs, place, self._keep(INPUT, self.last.images))

    def _capture(self, name: str, args: Any, output: Any) -> Any:
        if self._silent:
            return None
        place, feature = find_member(name, output)
        if self._substitute is not None:
            assert self._mode is not None
            self._mode.activate()
            if name in self._substitute:
                return with_member(output, place, self._substitute[name].clone())
            self._watched[name] = feature
            return with_member(output, place, feature.clone()) if is_map(feature) else None
        if self.last is None or not self.last.recorded or self._mode is None:
            return None
        if self._replace:
            self._mode.activate()
        if not is_map(feature) or feature.ndim == 3:
            self._note(name, feature, self._tracer.arrangement(feature) if self._tracer else None)
        if place is not None:  # not the paths by which other members were computed from this one
            feature = feature.clone()
        module, index = split_index(name)
        if index is not None and isinstance(output, Tensor):
            self.last.problems[name] = (
                f"is a member of one tensor. Use {module!r} itself, or a part of it such as "
                f"'{module}.{index}'. Members are of layers that return a tuple or a list."
            )
        onward = self._keep(name, feature)
        return None if onward is None else with_member(output, place, onward)

    def _trace(self, model: nn.Module, images: Tensor | None) -> None:
        """Follow where tokens go, where no pass has shown it yet."""
        if images is None:
            return
        key = (images.shape[1:], model.training)
        self._known = _ARRANGED.setdefault(model, {}).setdefault(key, {})
        if any(name != INPUT and name not in self._known for name in self.layers):
            self._tracer = self._context.enter_context(PlaceTracer())
            self._tracer.start(images)

    def _note(self, name: str, feature: Any, arrangement: Arrangement | None) -> None:
        """Keep what the pass has shown until a layer."""
        assert self.last is not None and self._mode is not None
        if self._mode.late:  # an earlier pass has shown it
            return
        steps = self.last.until[name] = self.last.steps.copy()
        shape = tuple(feature.shape[1:]) if isinstance(feature, Tensor) else ()
        if self._tracer is not None:
            self._known[name] = shape, arrangement
        seen, known = self._known.get(name, ((), None))
        steps.arrangement = known if seen == shape else None

    def _attend(self, name: str, args: Any) -> None:
        if not self._silent and self._substitute is None and self._mode is not None:
            self._attending.append(name)
            self._mode.activate()
            self._mode.record = self._record

    def _attended(self, name: str, args: Any, output: Any) -> None:
        if self._attending and self._mode is not None:
            self._attending.pop()
            self._mode.record = self._record if self._attending else None

    def _record(self, weights: Weights) -> None:
        assert self.last is not None
        name = self._attending[-1]
        self.last.attentions.setdefault(name, []).append(weights)
        if name in self.layers:
            self.last.calls[name] = self.last.calls.get(name, 0) + 1
            rows = self.last.features[name] = weights.tensor.view(weights.shape)[:, 0].mT
            self._note(name, rows, self._tracer.row(rows.shape[1]) if self._tracer else None)

    def _end(self, args: Any, output: Any) -> None:
        if self._silent:
            return
        if self._mode is not None and self.last is not None:
            self.last.replaced |= self._mode.replaced
            self.last.fast |= self._mode.fast
            self.last.slow |= self._mode.slow
            if self.last.compiled and output is not None:
                _SHOWN.setdefault(self.model, {})[self._kind(self.last)] = self.last.until
        if self._tracer is not None and output is not None:  # the other layers did not run
            self._known |= {n: ((), None) for n in self.layers if n not in self._known}
        self._leave()
        if self._substitute is not None or self.last is None:
            return
        if self._recomputing:
            self.last, self._waiting, self._recomputing = self._waiting, None, False
        elif output is None:  # the forward raised
            self.forget()
        elif self.last.recorded:
            self.last.output = output
        else:  # evaluation: keep the fact, not the tensors
            self.last.inputs, self.last.kwargs, self.last.place = (), {}, None

    def _enter_mode(
        self,
        parts: dict[str, nn.Module],
        *,
        activate: bool,
        late: bool,
        steps: Steps | None = None,
    ) -> None:
        self._context.close()
        self._attending.clear()
        late = late and not self.trunk.isdisjoint(parts)
        plain = {n: part for n, part in parts.items() if not (late and n in self.trunk)}
        self._context.enter_context(uncompiled(plain))
        mode = TwiceDifferentiable(steps, fast=self._fast, late=late)
        self._mode = self._context.enter_context(mode)
        if activate and not late:
            self._mode.activate()

    def _kind(self, passed: ForwardPass) -> tuple[Any, ...]:
        """What two passes share of which each shows the same of the layers' tokens."""
        return passed.steps.images, passed.training, *self.layers

    def _keep(self, name: str, output: Any) -> Any:
        """Store a layer's output; return what goes on in its place."""
        assert self.last is not None
        self.last.calls[name] = self.last.calls.get(name, 0) + 1
        if not torch.is_grad_enabled():
            self.last.problems[name] = (
                "ran without gradients, inside torch.no_grad or a segment checkpointed with "
                "use_reentrant=True. Use use_reentrant=False, or a layer outside. A guided layer runs "
                "with gradients."
            )
        if is_map(output):
            if not output.requires_grad:
                # A leaf of our own (for the image, or for what a frozen part of the model
                # computed), so that the caller's tensor stays as it was.
                output = output.clone() if output.is_inference() else output.detach()
                mark_own(output.requires_grad_())
            self.last.features[name] = output
            return output.clone()
        self.last.features[name] = output
        if isinstance(output, tuple | list):  # all of them, for a look at every layer
            for i, member in enumerate(output):
                if is_map(member):
                    self.last.features[f"{name}[{i}]"] = kept = member.clone()
                    output = with_member(output, i, kept.clone())
            return output
        return None


def in_backward() -> bool:
    """Whether a backward pass runs now: a forward pass inside one computes a checkpoint again."""
    return torch._C._current_graph_task_id() != -1
