"""The explanations of a B-cos network, as its papers show them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, operation
from explainguide.visualization.grid import check_count, count_rows, draw_scale, lay_out
from explainguide.visualization.overlays import checked_boxes, checked_image, checked_map

__all__ = ["bcos_panel"]

_COLOURS = "bwr"  # the papers'
_HEADINGS = ("image", "explanation", "contributions")


@operation("bcos_panel")
def bcos_panel(
    images: Tensor | Sequence[Tensor],
    explanations: Tensor | Sequence[Tensor],
    contributions: Tensor | Sequence[Tensor],
    *,
    boxes: Sequence[Tensor | None] | None = None,
    titles: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    percentile: float = 99.5,
) -> Figure:
    """One row an image: the image, its explanation on white, and what each place contributes.

    Red places speak for the class, blue ones against it. Every map has a scale of its own,
    symmetric around zero.

    Args:
        images: N images, ``(N, 3, H, W)`` or a sequence of ``(3, H, W)``, in [0, 1].
        explanations: What `explainguide.bcos.to_rgba` made, N of ``(4, H, W)``, in [0, 1].
        contributions: N contribution maps, ``(H, W)``, signed, any scale.
        boxes: As in `panel`.
        titles: For each image a text to put under it.
        captions: For each image a text to put under its contributions.
        percentile: The percentile of a map's magnitudes that gets full colour, in [50, 100].

    Returns:
        A figure with the columns image, explanation and contributions.

    Raises:
        ShapeError: If shapes, dtypes or counts disagree.
        OptionError: If a value is not as above.
        AnnotationError: As `panel`.

    References:
        Boehle et al., 2022, Fig. 1.
    """
    if not 50 <= percentile <= 100:
        raise OptionError(f"percentile is {percentile}. Use 99.5. It must be in [50, 100].")
    count = len(images)
    if count == 0:
        raise ShapeError(
            "got 0 images. Pass at least one. (N, 3, H, W), or a list of (3, H, W), is allowed."
        )
    given = {"explanations": explanations, "contributions": contributions, "boxes": boxes}
    check_count(count, {**given, "titles": titles, "captions": captions})
    pictures = [checked_image(f"images[{i}]", image) for i, image in enumerate(images)]
    on_white, coloured, outlines = [], [], []
    for i, picture in enumerate(pictures):
        on_white.append(_on_white(f"explanations[{i}]", explanations[i], picture))
        contribution = checked_map(f"contributions[{i}]", contributions[i])
        _check_size(f"contributions[{i}]", contribution, picture)
        coloured.append(_colour(contribution, percentile))
        box = boxes[i] if boxes is not None else None
        outlines.append(checked_boxes(f"boxes[{i}]", box, picture))
    blank = [""] * count
    figure = lay_out(
        [pictures, on_white, coloured],
        _HEADINGS,
        [titles or blank, blank, captions or blank],
        outlines,
        partial(_colour_bar, percentile=percentile),
        framed=True,
    )
    figure.set_label(count_rows(count, _HEADINGS, boxed=any(outlines)))
    return figure


def _on_white(name: str, explanation: Tensor, image: Tensor) -> Tensor:
    shape = tuple(explanation.shape)
    if len(shape) != 3 or shape[0] != 4:
        raise ShapeError(
            f"{name} has shape {shape}. Make it with explainguide.bcos.to_rgba. It must "
            "be (4, H, W)."
        )
    explanation = torch.as_tensor(explanation)
    _check_size(name, explanation, image)
    colours = checked_image(name, explanation[:3])
    opacity = checked_image(name, explanation[3:].expand(3, -1, -1))
    return opacity * colours + 1 - opacity


def _check_size(name: str, given: Tensor, image: Tensor) -> None:
    if given.shape[-2:] != image.shape[-2:]:
        raise ShapeError(
            f"{name} has shape {tuple(given.shape)} for an image {tuple(image.shape)}. "
            "Resize the image as the network saw it. Heights and widths must agree."
        )


def _colour(contributions: Tensor, percentile: float) -> Tensor:
    """Blue below zero, white at zero, red above, ``(3, H, W)``."""
    full = float(np.percentile(contributions.abs().numpy(), percentile))
    full = full or float(contributions.abs().max()) or 1.0
    position = 0.5 + 0.5 * (contributions / full).clamp(-1, 1)
    coloured = matplotlib.colormaps[_COLOURS](position.numpy())[..., :3]
    return torch.from_numpy(coloured).permute(2, 0, 1).float()


def _colour_bar(axes: Axes, percentile: float) -> None:
    ramp = _colour(torch.linspace(-1, 1, 256, dtype=torch.float64)[None], 100)
    unit = "largest magnitude" if percentile == 100 else f"percentile {percentile:g}"
    draw_scale(axes, ramp, signed=True, label=f"contribution; 1 = {unit} of each map")
