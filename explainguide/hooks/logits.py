"""The class scores in what a classifier returns, and which of them are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.errors import GuidanceError, OptionError, ShapeError, first_line
from explainguide.hooks.reading import AS_FOUND, Output, Reading
from explainguide.host import host_array, send

__all__ = [
    "PREDICTED",
    "as_targets",
    "check_classifier",
    "check_logits",
    "class_scores",
    "count_classes",
    "ends_in_log_softmax",
    "find_logits",
    "log_probabilities",
    "overflowed",
    "target_tensor",
]

PREDICTED = "predicted"
_FIX = (
    "Say which with output=: an index, a key, an attribute, or a callable such as "
    "output=lambda out: out[1]"
)


def find_logits(output: Any, choice: Output | None = None) -> Any:
    """The logits of a model that returns more than them, or the output as it is.

    Without a choice these are understood: an attribute ``logits`` (torchvision's GoogLeNet and
    Inception with auxiliary heads, Transformers' outputs), a mapping with ``"logits"`` or ``"out"``,
    and a tuple or list with one tensor that can be logits.

    Args:
        output: What the model returned.
        choice: An index, a key or an attribute; a bare tensor has none of them and stays. Or a
            callable that takes the output.

    Raises:
        LookupError, AttributeError: If there is no such member.
    """
    if callable(choice):
        return choice(output)
    if isinstance(output, Tensor):
        return output
    if choice is not None:
        return _member(output, choice)
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return next((output[name] for name in ("logits", "out") if name in output), output)
    if isinstance(output, tuple | list):
        candidates = [tensor for _, tensor in _tensors(output) if tensor.ndim in (1, 2)]
        return candidates[0] if len(candidates) == 1 else output
    return output


def _member(output: Any, choice: int | str) -> Any:
    if isinstance(choice, str) and not (isinstance(output, Mapping) and choice in output):
        return getattr(output, choice)
    return output[choice]


def _tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating point tensor in an output, and how it is reached."""
    members: Any = ()
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.ndim:
            yield path, output
    elif isinstance(output, Mapping):
        members = output.items()
    elif isinstance(output, tuple | list):
        members = enumerate(output)
    elif hasattr(output, "__dict__"):
        members = vars(output).items()
    for key, value in members:
        if isinstance(value, Tensor | Mapping | tuple | list):
            yield from _tensors(
                value, f"{path}[{key!r}]" if path or isinstance(key, int) else repr(key)
            )


def check_logits(output: Any, *, reading: Reading = AS_FOUND, images: int | None = None) -> Tensor:
    """The model's logits, ``(N, K)``; one logit an image is ``(N, 1)``.

    What can be seen to be something else is refused: probabilities (by the operation that made them,
    and by rows that sum to 1 where reading them costs no synchronisation), embeddings of length 1.

    Args:
        output: What the model returned.
        reading: What the caller says of the model.
        images: N, where it is known.

    Raises:
        ShapeError: If there are none, or several tensors could be them.
        OptionError: If `output=` names what is not there.
        GuidanceError: If they are probabilities or embeddings.
    """
    try:
        logits = find_logits(output, reading.output)
    except (LookupError, AttributeError, TypeError) as error:
        if callable(reading.output):
            kind = f"{type(error).__name__}: " if str(error) else ""
            raise OptionError(
                f"output= was called with {_describe(output)} and raised "
                f"{kind}{first_line(error)}. It takes what the model returns. "
                "A callable that returns logits (N, K) is allowed."
            ) from error
        raise OptionError(
            f"the model returns a {_describe(output)}, in which there is no output="
            f"{reading.output!r}. {_FIX}. The logits (N, K) are needed."
        ) from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise _no_logits(logits)
    if logits.ndim == 1 and images in (None, len(logits)):
        logits = logits[:, None]
    if logits.ndim != 2:
        raise _no_logits(logits)
    if images is not None and len(logits) != images:
        raise ShapeError(
            f"the model's output has shape {tuple(logits.shape)} for {images} images. Was a "
            "dimension squeezed away, or does the model return something else first? One row of logits "
            "an image, (N, K), is allowed."
        )
    _refuse_probabilities(logits)
    return logits


def _describe(output: Any) -> str:
    """An output in words: its type, and its tensors with their shapes."""
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    inside = ", ".join(f"{path} of shape {tuple(t.shape)}" for path, t in _tensors(output))
    return type(output).__name__ + (f" with {inside}" if inside else "")


def _no_logits(output: Any) -> ShapeError:
    candidates = (
        [] if isinstance(output, Tensor) else [t for _, t in _tensors(output) if t.ndim in (1, 2)]
    )
    if len(candidates) > 1:
        return ShapeError(
            f"the model returns a {_describe(output)}, and more than one of them can be the "
            f"logits. {_FIX}. The logits (N, K), before softmax or sigmoid, are needed."
        )
    return ShapeError(
        f"the model's output is not logits: {_describe(output)}. Wrap the model so that "
        "it returns the class scores before softmax or sigmoid, or say where they are with output=. A "
        "floating point tensor (N, K), or a tuple or dict with `logits`, is allowed."
    )


def _made_by(logits: Tensor) -> Any:
    """The node of autograd's graph that made a tensor, under views and casts."""
    node: Any = logits.grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0]
    return node


_VIEWS = (
    "View",
    "Squeeze",
    "Unsqueeze",
    "UnsafeView",
    "Reshape",
    "ToCopy",
    "Clone",
    "Alias",
    "Slice",
)


def ends_in_log_softmax(logits: Tensor) -> bool:
    """Whether the model returns log-probabilities, as one that is trained with `nn.NLLLoss` does."""
    node = _made_by(logits)
    return node is not None and node.name().startswith("LogSoftmax")


def _refuse_probabilities(logits: Tensor) -> None:
    node = _made_by(logits)
    name = "" if node is None else node.name()
    softmax = name.startswith("Softmax")
    if not softmax and logits.device.type == "cpu" and logits.shape[1] > 1 and len(logits):
        values = logits.detach().double()
        slack = 0.02 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-4
        sums = (values.sum(1) - 1).abs() < slack
        softmax = bool(host_array(values >= 0).all() and host_array(sums).all())
    if softmax or name.startswith("Sigmoid"):
        rows = "softmax, rows that sum to 1" if softmax else "sigmoid"
        inverse = "log" if softmax else "logit"
        raise GuidanceError(
            f"the model returns probabilities ({rows}), not logits. Return the class scores "
            f"before them, or say output=lambda out: out.{inverse}(). Logits (N, K) are needed."
        )
    if name.startswith("Div") and _is_length(node.next_functions[1][0]):
        raise GuidanceError(
            f"the model returns vectors of length 1, {tuple(logits.shape)}: embeddings, "
            f"whose entries are no classes. {_WHOLE}"
        )


_WHOLE = (
    "Guide the whole: nn.Sequential(model, head), or output=lambda out: head(out), with the head that "
    "makes logits of it. Logits (N, K) are needed."
)


def _is_length(node: Any) -> bool:
    """Whether a node is the length of a vector, as `F.normalize` divides by it."""
    while node is not None and node.name().startswith(("Expand", "Clamp", "Unsqueeze", "Add")):
        node = node.next_functions[0][0]
    return node is not None and "Norm" in node.name() and "Vector" in node.name()


def check_classifier(model: nn.Module, reading: Reading) -> None:
    """Refuse a model that says of itself that it has no classifier.

    Known are timm's ``num_classes=0`` and a head of timm or torchvision that was made an identity.

    Raises:
        GuidanceError: With how the whole is guided. A model that `output=` completes is allowed.
    """
    if callable(reading.output):
        return
    count = getattr(model, "num_classes", None)
    library = type(model).__module__.split(".")[0]
    config = getattr(model, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, dict) else None
    heads = named if isinstance(named, tuple | list) else [named] if named else []
    if library == "torchvision":
        heads = [n for n in ("fc", "classifier", "head", "heads") if hasattr(model, n)]
    modules = dict(model.named_modules())
    gone = [n for n in heads if isinstance(modules.get(n), nn.Identity)]
    if (type(count) is int and count == 0) or (gone and library in ("timm", "torchvision")):
        why = f"its {gone[0]!r} is an identity" if gone else "num_classes is 0"
        raise GuidanceError(
            f"{type(model).__name__} has no classifier ({why}), so that a label would name "
            f"an entry of an embedding. {_WHOLE}"
        )


def count_classes(logits: Tensor) -> int:
    """K for logits ``(N, K)``; 2 where there is one logit, of class 1 against class 0."""
    return max(int(logits.shape[1]), 2)


def class_scores(logits: Tensor) -> Tensor:
    """The score of every class, ``(N, K)``: the logits; of one logit z those of two classes, -z and z.

    Example:
        >>> class_scores(torch.tensor([[2.0]]))
        tensor([[-2.,  2.]])
    """
    return torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits


def log_probabilities(logits: Tensor) -> Tensor:
    """Of every class, ``(N, K)``: under softmax, or, for one logit, under sigmoid."""
    if logits.shape[1] == 1:
        return F.logsigmoid(class_scores(logits))
    return logits.log_softmax(1)


def overflowed(logits: Tensor) -> bool:
    """Whether logits have left float16's range; their values are fetched to the host."""
    if logits.dtype != torch.float16:
        return False
    return not host_array(logits.detach().cpu().isfinite()).all()


def as_targets(target: Any, output: Tensor) -> Tensor:
    """Indices of classes ``(N,)``, or of a layer's channels, on the output's device.

    Args:
        target: One for all images, or one an image. ``"predicted"`` is the class of the highest score.
            None is that too; but where there is one logit or channel, it, as in Captum.
        output: Logits ``(N, K)``, or a layer's activation ``(N, C, h, w)``.

    Raises:
        OptionError: If they are none of the output's (checked where they are on the host).
        ShapeError: If they are not one an image.
    """
    is_logits = output.ndim == 2
    images, count = output.shape[0], count_classes(output) if is_logits else output.shape[1]
    words = ("class", "classes", "model") if is_logits else ("channel", "channels", "layer")
    kind, plural, whose = words
    if target is None and output.shape[1] == 1:
        target = count - 1
    if is_logits and (target is None or (isinstance(target, str) and target == PREDICTED)):
        return class_scores(output).detach().argmax(1)
    if target is None:
        raise OptionError(
            f"target is None, but the {whose} has {count} {plural}. Name the {kind} to "
            "explain. An int or a tensor (N,) is allowed."
        )
    if isinstance(target, str):
        raise OptionError(
            f"target is {target!r}. Give a {kind} index. An int, a tensor (N,) or "
            f"{PREDICTED!r} is allowed."
        )
    indices = torch.as_tensor(target)
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.ndim > 1:
        raise OptionError(
            f"target has shape {tuple(indices.shape)} and dtype {indices.dtype}. Give one "
            f"{kind} index an image. An int or an integer tensor (N,) is allowed."
        )
    if indices.ndim == 1 and len(indices) not in (1, images):  # one serves all, as in Captum
        raise ShapeError(
            f"target has {len(indices)} {plural} for {images} images. Give one an image. "
            "(N,) is allowed."
        )
    if indices.device.type == "meta":
        raise OptionError(
            "target is on the meta device, which holds no values. Make it on the CPU, or move it "
            "before it gets there. Any other device is allowed; it need not be the model's."
        )
    if indices.device.type == "cpu" and host_array((indices < 0) | (indices >= count)).any():
        bad = indices[(indices < 0) | (indices >= count)].flatten()[0]
        fix = "Check the label map." if kind == "class" else "Count the layer's channels."
        raise OptionError(
            f"target holds {kind} {int(bad)}, but the {whose} has {count}. {fix} 0 to "
            f"{count - 1} are allowed."
        )
    indices = indices.clone() if indices.is_inference() else indices
    return send(indices.to(torch.int64), output.device).expand(images)


def target_tensor(labels: Tensor | None, logits: Tensor) -> Tensor | None:
    """Class indices ``(N,)`` or multi-hot labels ``(N, K)`` on the logits' device; None stays None."""
    if labels is None or labels.ndim == 2:
        return None if labels is None else send(labels, logits.device)
    return as_targets(labels, logits)
