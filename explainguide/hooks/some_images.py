"""Some images of a forward pass once more, from what the pass had computed before its first layer.

A pass that is differentiated twice costs as much for an image without annotation as for one with. So
the pass itself runs as it would without a guide, and the layers above the first guided one run again
for the annotated images alone. Modules that had returned before that layer do not: they hand out rows
of what they returned, in the graph of the pass, so that gradients reach them through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from explainguide.errors import GuidanceError
from explainguide.hooks.layers import INPUT, split_index
from explainguide.hooks.sharded import check_whole
from explainguide.hooks.tap import ForwardPass, Tap, in_backward
from explainguide.hooks.token_grid import Steps
from explainguide.hooks.weak_hook import WeakHook
from explainguide.host import host_array

__all__ = ["SomeImages", "check_same"]


_ONE_RUN = "Use rows='all', which runs the model once."


class _Kept(NamedTuple):
    """What a module returned.

    Attributes:
        name: Of the module.
        output: What it returned.
        version: That the output had: in-place operations count it up.
        of_images: Whether its rows may be images.
        gone: Whether the next module has changed it in place and returned it, as ``ReLU(inplace=True)``
            does, so that what it was is nobody's input.
    """

    name: str
    output: Tensor
    version: int
    of_images: bool
    gone: bool = False


class SomeImages(Tap):
    """Reads forward passes so that a part of their images can be run again.

    The first pass of a batch's shape and a mode is read as `Tap` does, to see where tokens lie. In each
    other nothing is replaced and no layer is kept, but what the modules beside the way to the first
    layer return until that layer has.

    Args:
        model: The unwrapped model.
        layers: As `resolve_layers` returns them.
        attentions: As `Tap` takes them.
        image_argument: Likewise.

    Raises:
        GuidanceError: If `fully_shard` has cut the model in pieces.
    """

    compilable = False  # what a compiled module returns, no hook of its own sees

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module | None],
        attentions: Sequence[str] = (),
        *,
        image_argument: int | str | None = None,
    ) -> None:
        check_whole(model, remedy=_ONE_RUN)
        super().__init__(model, layers, attentions, reruns=True, image_argument=image_argument)
        self._shown: dict[Any, dict[str, Steps]] = {}  # by `_kind`, what such a pass shows
        self._over = True  # whether the first layer of the pass has run
        targets = {split_index(name)[0] for name in (*layers, *attentions) if name != INPUT}
        handles = []
        for name in [] if INPUT in layers else _beside(model, targets):
            handles.append(
                model.get_submodule(name).register_forward_hook(WeakHook(self, "_ran", name))
            )
        for name in targets:
            module = model.get_submodule(name)
            if name in attentions:  # which show their weights where they run again
                handles.append(module.register_forward_pre_hook(WeakHook(self, "_reached")))
            else:
                handles.append(module.register_forward_hook(WeakHook(self, "_layer_ran", name)))
        for handle in handles:
            self.take_off_too(handle.remove)

    @contextmanager
    def again(self, passed: ForwardPass, reader: Tap, rows: Tensor) -> Iterator[ForwardPass]:
        """Run some images of a pass again, read by another tap.

        With the parameters and buffers that the pass saw, of which running statistics are copies.

        Args:
            passed: The pass.
            reader: Reads the new one.
            rows: Which images, ``(n,)`` int64 on their device.

        Yields:
            The pass of those images.

        Raises:
            GuidanceError: For a pass with tensors beside the images, or a module that gives an image
                another value when its companions are not with it.
        """
        model, images = self.model, passed.images
        assert passed.state is not None and images is not None
        check_whole(model, remedy=_ONE_RUN)
        _check_unchanged(passed)
        others = [v for v in tree_leaves((passed.inputs, passed.kwargs)) if v is not images]
        if any(isinstance(value, Tensor) for value in others):
            raise GuidanceError(
                "with rows='annotated' the model is run again for some of the images, and of its other "
                "tensors nobody knows which part belongs to them. Use rows='all'. Images, and values "
                "that are no tensors, are allowed."
            )
        buffers = {name for name, _ in model.named_buffers()}
        state = {n: v.clone() if n in buffers else v for n, v in passed.state.items()}
        some = images.index_select(0, rows.to(images.device))
        args = tuple(some if value is images else value for value in passed.inputs)
        kwargs = {n: some if value is images else value for n, value in passed.kwargs.items()}
        enabled, dtype = passed.autocast
        with ExitStack() as watched:
            for name, module in model.named_modules():
                if (why := _never_alone(module)) is not None:
                    _exchange(watched, module, partial(_refuse, name, why))
            with (
                ExitStack() as stack,
                reader.alone(),
                torch.autocast(passed.device, dtype=dtype, enabled=enabled),
            ):
                for name in dict.fromkeys(kept.name for kept in passed.kept):
                    module, own = (
                        model.get_submodule(name),
                        [k for k in passed.kept if k.name == name],
                    )
                    given = iter([_rows(kept, len(images), rows) for kept in own])
                    _exchange(stack, module, partial(_given, module.forward, given))
                drawn = _random_state(images.device)
                torch.func.functional_call(model, state, args, kwargs)
                if (host_array(drawn) != host_array(_random_state(images.device))).any():
                    raise GuidanceError(
                        "with rows='annotated' the annotated images are run again without the others, "
                        "and the model draws random numbers there, others than before: a functional "
                        "dropout, perhaps. Use rows='all', or put the module that draws them in "
                        "evaluation mode. Nothing random above the layer is allowed."
                    )
            part = reader.last
            assert part is not None
            part.until = self._shown[self._kind(passed)]
            yield part  # an attribution may run it once more, from other features

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self.last
        changed = super()._begin(args, kwargs)
        if self.last is not before:
            assert self.last is not None
            self.last.versions = {n: p._version for n, p in self.model.named_parameters()}
            self._over = INPUT in self.layers
        return changed if self._mode is not None else None

    def _enter_mode(self, parts: dict[str, nn.Module], **options: Any) -> None:
        if self.last is not None and self._kind(self.last) not in self._shown:
            super()._enter_mode(parts, **options)
        else:
            self._leave()

    def _trace(self, model: nn.Module, images: Tensor | None) -> None:
        if self._mode is not None:
            super()._trace(model, images)

    def _keep(self, name: str, output: Any) -> Any:
        return super()._keep(name, output) if self._mode is not None else output

    def _end(self, args: Any, output: Any) -> None:
        looked = self._mode is not None
        super()._end(args, output)
        if looked and not self._silent and self.last is not None and self.last.output is not None:
            self._shown[self._kind(self.last)] = self.last.until
            self.last.features.clear()
            self.last.attentions.clear()

    @property
    def _keeps(self) -> bool:
        passing = self.last is not None and self.last.recorded and self.last.output is None
        return passing and not (self._over or self._silent or in_backward())

    def _ran(self, name: str, args: Any, output: Any) -> None:
        if self._keeps and isinstance(output, Tensor) and not output.is_inference():
            # What was made of no images, as a table of positions is, has none of their rows.
            of_images = any(isinstance(a, Tensor) and a.shape[:1] == output.shape[:1] for a in args)
            assert self.last is not None
            kept, version = self.last.kept, output._version
            for index in reversed(range(len(kept))):
                if kept[index].output is not output:
                    break
                gone = kept[index].gone or kept[index].version != version
                kept[index] = kept[index]._replace(gone=gone)
            kept.append(_Kept(name, output, version, of_images))

    def _layer_ran(self, name: str, args: Any, output: Any) -> Any:
        """The layer's own output is kept too; a clone goes on, which may be changed in place."""
        if not self._keeps:
            return None
        self._ran(name, args, output)
        self._over = True
        if isinstance(output, Tensor):  # and its own parts need not run
            assert self.last is not None
            self.last.kept = [k for k in self.last.kept if not k.name.startswith(f"{name}.")]
        return output.clone() if isinstance(output, Tensor) else None

    def _reached(self, args: Any) -> None:
        self._over = self._over or self._keeps


def check_same(logits: Tensor, again: Tensor, *, half: bool) -> Tensor:
    """Whether images have the logits that they had in company, a scalar bool on their device.

    Rounding differs with the size of a batch; statistics of fewer images differ by far more.

    Args:
        logits: ``(n, K)``.
        again: ``(n, K)``.
        half: Whether they may have been computed in half precision.

    Raises:
        GuidanceError: If not, where they are on the host.
    """
    before, after = logits.detach().double(), again.detach().double()
    rounded = 1e-4 if logits.device.type == "cpu" else 5e-3  # products in TF32, on a GPU
    allowed = 1e-6 if logits.dtype == torch.float64 else 0.05 if half else rounded
    # Each image against itself; logits near 0, against the largest of the batch's.
    size = before.norm(dim=1).clamp_min(0.01 * before.norm(dim=1).max())
    same = ((after - before).norm(dim=1) <= allowed * size).all()
    same = same | ~before.isfinite().all()  # which the loss tells
    if same.device.type == "cpu" and not host_array(same):
        raise GuidanceError(
            "with rows='annotated' the annotated images are run again without the others, and their "
            "logits are not those that they had: the model mixes the images of a batch, or changes "
            "values in place, outside the modules where that is known. Use rows='all', or put what "
            "does it in evaluation mode. What an image gets must depend on the image alone."
        )
    return same


def _check_unchanged(passed: ForwardPass) -> None:
    """Refuse a pass whose backward has run, or whose weights have moved on."""
    state = passed.state
    assert state is not None
    moved = next((n for n, v in passed.versions.items() if state[n]._version != v), None)
    if moved is not None or _is_gone(passed.output):
        what = f"{moved!r} was changed" if moved is not None else "its backward has run"
        raise GuidanceError(
            f"with rows='annotated' the forward pass is continued with the weights that it saw, but "
            f"since then {what}. Call loss_loc before backward() and optimizer.step(), and add it to "
            "the loss. Nothing may change what was computed until then."
        )


def _is_gone(output: Any) -> bool:
    """Whether what the graph of a tensor holds was let go, as `backward` does."""
    tensor = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
    nodes = [] if tensor is None or tensor.grad_fn is None else [tensor.grad_fn]
    for node in nodes:  # until one that holds something
        for name in dir(node):
            if name.startswith("_saved_"):
                try:
                    held = getattr(node, name)
                except RuntimeError:
                    return True
                if isinstance(held, Tensor):
                    return False
        nodes += [following for following, _ in node.next_functions if following is not None]
    return False


def _random_state(device: torch.device) -> Tensor:
    """Of the numbers that operations on a device draw; it is on the host."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _beside(model: nn.Module, targets: set[str]) -> list[str]:
    """The children of every module on the way to some modules, without that way itself.

    Modules with two names, and those within, may run anywhere, so they are left out.
    """
    way = {""} | {".".join(name.split(".")[:depth]) for name in targets for depth in range(1, 99)}
    counts: dict[nn.Module, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        counts[module] = counts.get(module, 0) + 1
    return [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[0] in way and name not in way and counts[module] == 1
    ]


def _rows(kept: _Kept, images: int, rows: Tensor) -> Callable[[], Tensor] | None:
    """Rows of what a module returned; None where it must run again."""
    output = kept.output
    if not kept.of_images or output.shape[:1] != (images,):
        return None
    if (
        kept.gone and output.is_floating_point()
    ):  # a value that would be seen, if somebody read it all the same
        return lambda: torch.full_like(output[: len(rows)], torch.nan, requires_grad=False)
    if output._version != kept.version:
        return None
    return lambda: output.index_select(0, rows.to(output.device))


def _given(
    forward: Callable[..., Any], given: Iterator[Callable[[], Tensor] | None], *args: Any, **kw: Any
) -> Any:
    rows = next(given, None)
    return forward(*args, **kw) if rows is None else rows()


def _exchange(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give a module another forward, until the stack is left."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    stack.callback(_give_back, module, before)


def _give_back(module: nn.Module, forward: Any) -> None:
    del vars(module)["forward"]
    if forward is not None:
        vars(module)["forward"] = forward


_PATHS = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d")


def _never_alone(module: nn.Module) -> str | None:
    """Why a module gives a part of a batch other values than it gave the whole, if it does."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.training or (module.running_mean is None and module.running_var is None):
            return "normalizes by the statistics of the batch"
        return None
    if not module.training:
        return None
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
        return f"drops values (p={module.p:g})"
    if isinstance(module, nn.MultiheadAttention) and module.dropout > 0:
        return f"drops attention (dropout={module.dropout:g})"
    if isinstance(module, nn.RReLU):
        return "draws its slopes"
    share = next((v for n in ("drop_prob", "p") if (v := getattr(module, n, None))), 0)
    return f"drops paths (p={share:g})" if type(module).__name__ in _PATHS and share else None


def _refuse(name: str, why: str, *args: Any, **kwargs: Any) -> None:
    raise GuidanceError(
        f"module {name!r} {why} in training mode, so the annotated images alone would get other "
        "values than in their batch, where rows='annotated' runs them again. Put it in evaluation mode "
        "after each model.train(), or use rows='all'. Modules above the layer that treat every image "
        "by itself, and draw nothing, are allowed."
    )
