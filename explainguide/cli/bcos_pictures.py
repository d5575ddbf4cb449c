"""``explain --bcos``: the explanation of a B-cos network's own, for a class or a neuron."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL.Image import Image as PILImage
from torch import Tensor

from explainguide.bcos import dynamic_weights, logit_bias, to_rgba
from explainguide.cli.subject import Subject, ask
from explainguide.cli.usage import UsageError
from explainguide.hooks.dynamic import is_bcos
from explainguide.visualization import bcos_panel

__all__ = ["Neuron", "check_bcos_arguments", "draw_bcos", "parse_neuron"]


class Neuron(NamedTuple):
    """A channel of a layer; at a place, or where it is largest."""

    layer: str
    channel: int
    position: tuple[int, int] | None

    def __str__(self) -> str:
        where = "where it is largest"
        if self.position is not None:
            where = f"row {self.position[0]}, column {self.position[1]}"
        return f"{self.layer}, channel {self.channel}, {where}"


def parse_neuron(text: str, *, option: str = "--neuron") -> Neuron:
    """A neuron from ``"layer3:7"`` or ``"layer3:7:4,5"``.

    Raises:
        OptionError: If it is neither form.

    Example:
        >>> parse_neuron("layer3.0:7:4,5")
        Neuron(layer='layer3.0', channel=7, position=(4, 5))
    """
    match = re.fullmatch(r"([^:]+):(\d+)(?::(\d+),(\d+))?", text.strip())
    if match is None:
        raise UsageError(
            f"{option}: {text!r} is no neuron. Use layer3:7 for channel 7 of layer3 where it is "
            "largest, or layer3:7:4,5 at row 4, column 5. LAYER:CHANNEL[:ROW,COLUMN], counted from "
            "0, is allowed."
        )
    position = None if match[3] is None else (int(match[3]), int(match[4]))
    return Neuron(match[1], int(match[2]), position)


def check_bcos_arguments(args: argparse.Namespace) -> None:
    """Refuse options that say something else than ``--bcos``, or nothing without it.

    Raises:
        OptionError: It names the option.
    """
    if not args.bcos:
        if args.neuron:
            raise UsageError(
                "--neuron: it goes with --bcos. Add --bcos, or leave it out. Other attributions "
                "explain classes."
            )
        return
    for name in ("attribution", "layer", "signed"):
        if getattr(args, name):
            raise UsageError(
                f"--{name}: --bcos shows what the image contributes, by the network's own weights. "
                f"Leave out --{name}, or use `--attribution bcos` for a map of any layer."
            )
    if args.neuron and args.target:
        raise UsageError(
            f"--neuron, --target: {args.neuron!r} and class {args.target!r} are two explanations. "
            "Leave one out. Either is allowed."
        )


def draw_bcos(
    pictures: Sequence[PILImage],
    subject: Subject,
    *,
    target: str | None,
    neuron: Neuron | None,
    boxes: list[Tensor],
) -> tuple[Figure, list[str]]:
    """The figure, and a line for each image.

    Raises:
        OptionError: If the model is no B-cos network, or the target is none of its outputs.
        LayerError: If the neuron's layer is not there.
    """
    if not is_bcos(subject.model):
        raise UsageError(
            f"--bcos: this {type(subject.model).__name__} is no B-cos network. Convert one with "
            "`explainguide convert MODEL --bcos --out FILE`, or leave --bcos out. A checkpoint of "
            "`convert --bcos` or `train --bcos` is allowed."
        )
    if not subject.encoding:
        raise UsageError(
            f"--bcos: this {type(subject.model).__name__} adds the inverse of the image itself, so "
            "its weights hold no colour. Return the network without AddInverse. One that takes 6 "
            "channels is allowed."
        )
    shown, explanations, contributions, texts, sums = [], [], [], [], []
    for picture in pictures:
        image, taken = subject.prepare(picture)
        if neuron is None:
            label, text, logit = ask(target, taken, subject)
            bias = logit_bias(subject.model).detach()
            explained = logit - float(bias if bias.ndim == 0 else bias[label])
            weights = dynamic_weights(subject.model, taken, label)
        else:
            text, explained = str(neuron), None
            weights = dynamic_weights(
                subject.model,
                taken,
                neuron.channel,
                layer=neuron.layer,
                position=neuron.position,
            )
        contribution = (weights * taken).sum(1)
        shown.append(image)
        explanations.append(to_rgba(weights, contribution)[0])
        contributions.append(contribution[0])
        texts.append(text)
        sums.append(_say_sum(float(contribution.sum()), explained))
    figure = bcos_panel(
        shown, explanations, contributions, boxes=boxes, titles=texts, captions=sums
    )
    return figure, texts


def _say_sum(total: float, explained: float | None) -> str:
    """What contributions add up to; where biases were kept, that is not all of a logit."""
    if explained is None or abs(total - explained) <= 0.01 * abs(explained):
        return f"sum {total:.3g}"
    return f"sum {total:.3g} of {explained:.3g}: biases add the rest"
