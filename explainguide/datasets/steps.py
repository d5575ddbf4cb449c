"""Joint transforms, run step by step, so that the step that loses the boxes can be named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from explainguide.errors import OptionError

__all__ = ["refuse_unfit", "run_steps"]

_FIRST, _SECOND = "torchvision.transforms.", "torchvision.transforms.v2"
_FORMATS = ("XYXY", "XYWH", "CXCYWH")  # newer versions of torchvision have rotated ones too
_KEEP_COLUMNS = frozenset(
    {
        Tensor.clone,
        torch.clone,
        Tensor.contiguous,
        Tensor.detach,
        torch.detach,
        Tensor.double,
        Tensor.float,
        Tensor.to,
    }
)


def refuse_unfit(transforms: Any) -> None:
    """Refuse transforms of the first version, wherever they stand, and those for images alone.

    Raises:
        OptionError: Naming the one.
    """
    steps = list(_walk(transforms))
    for step in steps:
        if _is_first_version(step):
            name = _name(step)
            again = f"torchvision.transforms.v2.{name}" if hasattr(v2, name) else _SECOND
            where = "is" if step is transforms else "holds"
            raise OptionError(
                f"transforms {where} a torchvision.transforms.{name}, which moves the "
                f"image and leaves the boxes where they were. Use {again}, which moves both."
            )
    for step in steps:
        call = step.lambd if isinstance(step, v2.Lambda) else step
        if call is step and not _takes_two(step):
            raise OptionError(
                f"transforms has the step {_name(step)!r}, which cannot be called as "
                f"{_name(step)}(image, target). Use v2.Compose for several steps, and v2.Lambda for "
                "a function of the image alone."
            )


def _walk(step: Any) -> Iterator[Any]:
    """A transform and those inside torchvision's own containers."""
    yield step
    inner = getattr(step, "transforms", None)
    if type(step).__module__.startswith(_FIRST) and isinstance(inner, (list, tuple, nn.ModuleList)):
        for part in inner:
            yield from _walk(part)
    elif _forward(step) is nn.Sequential.forward:
        for part in step:
            yield from _walk(part)
    elif isinstance(step, v2.Lambda) and _is_first_version(step.lambd):
        yield step.lambd


def _forward(step: Any) -> Any:
    return getattr(type(step), "forward", None)


def _is_first_version(step: Any) -> bool:
    while isinstance(step, partial):
        step = step.func
    code = step if inspect.isroutine(step) else _forward(step) or type(step).__call__
    module = getattr(code, "__module__", None) or ""
    return module.startswith(_FIRST) and not module.startswith(_SECOND)


def _takes_two(step: Any) -> bool:
    try:
        signature = inspect.signature(step.forward if isinstance(step, nn.Module) else step)
    except (TypeError, ValueError):  # of compiled code nothing is known
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def _name(step: Any) -> str:
    while isinstance(step, partial):
        step = step.func
    return step.__name__ if inspect.isroutine(step) else type(step).__name__


class _Form(NamedTuple):
    format: Any  # a BoundingBoxFormat
    canvas: tuple[int, int]


class _Forms(TorchFunctionMode):
    """Remembers the format of boxes that become plain tensors, while a pipeline runs.

    A plain tensor does not say whether its columns are corners or centre and size. It is known
    where the tensor shares its memory with boxes that went into or came out of one of
    torchvision's transforms, wherever that stands, and while nothing but rows is taken from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, int, _Form]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which transforms are watched. ``as_subclass`` cannot be by a mode."""
        handle = register_module_forward_hook(self._read_call)
        try:
            with self:
                yield
        finally:
            handle.remove()

    def _read_call(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, v2.Transform):
            for boxes in _boxes_in((args, output)):
                self.remember(boxes)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        takes_rows = func is Tensor.__getitem__ and not isinstance(args[1], tuple)
        if (takes_rows or func in _KEEP_COLUMNS) and type(result) is Tensor:
            self.remember(result, self.form_of(args[0]))
        return result

    def remember(self, boxes: Tensor, form: _Form | None = None) -> None:
        """Keep the form of boxes, as it is given, or as they know it themselves."""
        form = form or self.form_of(boxes)
        if form is not None:
            self._seen.append((boxes, _version(boxes), form))

    def form_of(self, boxes: Any) -> _Form | None:
        """Format and canvas of boxes, ``None`` where they are not known any more."""
        if isinstance(boxes, tv_tensors.BoundingBoxes):
            height, width = boxes.canvas_size
            return _Form(boxes.format, (height, width))
        for tensor, version, form in reversed(self._seen):
            if _is_same(tensor, boxes) and version == _version(boxes):
                return form
        return None


def _boxes_in(value: Any) -> Iterator[tv_tensors.BoundingBoxes]:
    if isinstance(value, tv_tensors.BoundingBoxes):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _boxes_in(part)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory, read in the same way."""
    return (one.data_ptr(), one.shape, one.stride(), one.dtype) == (
        other.data_ptr(),
        other.shape,
        other.stride(),
        other.dtype,
    )


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; not known under ``inference_mode``."""
    return 0 if tensor.is_inference() else tensor._version


def run_steps(
    transforms: Callable[[Any, Any], Any], image: Any, target: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Apply joint transforms; boxes come back as a plain float32 ``(M, 4)``, XYXY.

    Raises:
        OptionError: If boxes, labels and masks are not what they were, naming the first step after
            which they never were again.
    """
    forms = _Forms()
    before, fault, blamed, shrunk = _corners(target["boxes"], forms), None, "", False
    for step in _steps(transforms):
        if "boxes" in target and isinstance(target["boxes"], Tensor):
            forms.remember(target["boxes"])
        with forms.watching():
            result = step(image, target)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise OptionError(
                f"transforms(image, target) must return (image, target), "
                f"but returned {type(result).__name__} in the step {_name(step)!r}."
            )
        image, target = result
        now = _find_fault(image, target, forms)
        if now is None and len(target["boxes"]):
            after = _corners(target["boxes"], forms)
            shrunk = _is_tiny(after) and (shrunk or _is_share(after, before))
            before = after
            if shrunk:
                now = "scaled boxes to [0, 1]. Leave them in pixels"
        if now is None or fault is None:
            blamed = _name(step)
        fault = now
    if fault is not None:
        raise OptionError(
            f"transforms {fault}. It was the step {blamed!r}. Steps of "
            "torchvision.transforms.v2, called as transforms(image, target), are allowed."
        )
    return image, {**target, "boxes": _corners(target["boxes"], forms)[0]}


def _steps(transforms: Any) -> list[Any]:
    """The steps of ``v2.Compose``, one in another, in their order."""
    if _forward(transforms) is not v2.Compose.forward:
        return [transforms]
    return [step for part in transforms.transforms for step in _steps(part)]


def _find_fault(image: Any, target: dict[str, Any], forms: _Forms) -> str | None:
    """What is wrong after a step, as the rest of a sentence about transforms; else ``None``."""
    for key in ("boxes", "labels"):
        if key not in target:
            return f"left out {key!r} of the target. Keep it"
    try:
        height, width = functional.get_size(image)
    except TypeError:
        return f"made the image a {type(image).__name__}. Keep it one image"
    boxes, labels, masks = target["boxes"], target["labels"], target.get("masks")
    fault = _find_fault_of_boxes(boxes, (height, width), forms)
    if fault is not None:
        return fault
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32):
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        return f"made the labels {kind}. Keep them torch.int64"
    if labels.ndim != 1 or len(labels) != len(boxes):
        return (
            f"left {len(boxes)} boxes and labels of shape {tuple(labels.shape)}. Keep one label a "
            "box: a step that drops boxes must drop their labels too (labels_getter= of "
            "SanitizeBoundingBoxes)"
        )
    if masks is not None and tuple(masks.shape) != (len(boxes), height, width):
        return (
            f"left masks of shape {tuple(masks.shape)} with {len(boxes)} boxes in an image of "
            f"{(height, width)}. Keep masks tv_tensors.Mask"
        )
    return None


def _find_fault_of_boxes(boxes: Any, size: tuple[int, int], forms: _Forms) -> str | None:
    if isinstance(boxes, getattr(tv_tensors, "KeyPoints", ())):
        return "turned the boxes into key points. Keep them boxes"
    if not isinstance(boxes, Tensor):
        return f"made the boxes a {type(boxes).__name__}. Keep them tv_tensors.BoundingBoxes"
    form = forms.form_of(boxes)
    if form is not None and form.format.name not in _FORMATS:
        return f"turned the boxes into rotated ones ({form.format.name}). Keep them upright"
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return f"gave boxes of shape {tuple(boxes.shape)}. Keep them (M, 4)"
    if form is None and len(boxes):
        return (
            "made the boxes a plain tensor and changed it, so that their format can no longer be "
            "known. Keep them tv_tensors.BoundingBoxes, or make them that again"
        )
    if form is not None and form.canvas != size:
        return (
            f"made the image {size} but left the boxes on a canvas of {form.canvas}. Move both "
            "(height, width)"
        )
    return None


def _corners(boxes: Tensor, forms: _Forms) -> tuple[Tensor, tuple[int, int]]:
    """Boxes as plain float32 XYXY, and their canvas."""
    form = forms.form_of(boxes)
    plain = boxes.as_subclass(Tensor).to(torch.float32)
    if form is None:  # no box at all
        return plain.clone(), (1, 1)
    xyxy = functional.convert_bounding_box_format(
        plain, old_format=form.format, new_format=tv_tensors.BoundingBoxFormat.XYXY
    )
    return xyxy.clone(), form.canvas  # a later step may work in place


def _is_tiny(corners: tuple[Tensor, tuple[int, int]]) -> bool:
    boxes = corners[0]
    return bool((boxes[:, 2:] - boxes[:, :2] <= 1).all())


def _is_share(
    after: tuple[Tensor, tuple[int, int]], before: tuple[Tensor, tuple[int, int]]
) -> bool:
    """Whether boxes are what they were, divided by width and height."""
    if _is_tiny(before):  # a crop leaves boxes without area, which no division changes
        return False
    height, width = before[1]
    share = before[0] / torch.tensor([width, height, width, height])
    return share.shape == after[0].shape and torch.allclose(share, after[0], atol=1e-4)
