"""An attribution map on its image, and the checks of what can be drawn."""

from __future__ import annotations

from typing import Literal, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from explainguide.errors import AnnotationError, OptionError, ShapeError, check_option, operation

__all__ = [
    "Box",
    "Look",
    "Sign",
    "blend",
    "checked_boxes",
    "checked_image",
    "checked_map",
    "overlay",
]

Sign = Literal["positive", "signed"]
Box = tuple[float, float, float, float]

_COLOUR_MAPS = {"positive": "plasma", "signed": "PuOr_r"}
_LUMINANCE = (0.299, 0.587, 0.114)
_ROUNDING = 1e-4  # how far outside [0, 1] un-normalising an image may leave it


@operation("overlay")
def overlay(
    image: Tensor,
    attribution: Tensor,
    *,
    sign: Sign = "positive",
    alpha: float = 0.9,
    percentile: float = 99.5,
    grey: bool = False,
) -> Tensor:
    """An image coloured by an attribution map; where the map is zero the image stays as it is.

    The map is resized bilinearly to the image and divided by a percentile of its magnitudes. Colour
    and opacity both follow the result, so weak attribution does not veil the image.

    Args:
        image: ``(3, H, W)``, floating point in [0, 1].
        attribution: Signed map of any scale, ``(h, w)`` or ``(1, h, w)``, at any resolution.
        sign: ``"positive"`` shows the positive part only; ``"signed"`` both, the positive in
            orange and the negative in purple.
        alpha: Opacity where the map is strongest, in [0, 1].
        percentile: The percentile of the non-zero magnitudes that gets full colour, in [50, 100].
            Below 100, a few extreme pixels do not pale all others.
        grey: Take the image's own colours out and lighten it, so that colour means attribution.

    Returns:
        ``(3, H, W)``, float32 in [0, 1], on the CPU.

    Raises:
        ShapeError: If a shape or dtype is not as above.
        OptionError: If a value is not as above.

    Example:
        >>> image = torch.full((3, 2, 2), 0.5)
        >>> torch.equal(overlay(image, torch.zeros(2, 2)), image)
        True
    """
    look = Look(sign, alpha, percentile, grey).checked()
    return blend(
        checked_image("image", image),
        checked_map("attribution", attribution),
        look,
    )


class Look(NamedTuple):
    """The options of `overlay`."""

    sign: Sign
    alpha: float
    percentile: float
    grey: bool

    def checked(self) -> Look:
        """Itself, if each option has an allowed value."""
        check_option("sign", self.sign, _COLOUR_MAPS)
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"alpha is {self.alpha}. It must be in [0, 1].")
        if not 50 <= self.percentile <= 100:
            fix = f" Did you mean {100 * self.percentile:g}?" if 0.5 <= self.percentile <= 1 else ""
            raise OptionError(f"percentile is {self.percentile}.{fix} It must be in [50, 100].")
        return self


def blend(image: Tensor, attribution: Tensor, look: Look) -> Tensor:
    """`overlay` of an image ``(3, H, W)`` and a map ``(h, w)`` that have been checked."""
    if look.grey:
        luminance = torch.tensor(_LUMINANCE).view(3, 1, 1)
        image = (0.35 + 0.65 * (image * luminance).sum(0, keepdim=True)).expand(3, -1, -1)
    size = (image.shape[1], image.shape[2])
    if attribution.shape != size:
        attribution = F.interpolate(
            attribution[None, None], size=size, mode="bilinear", align_corners=False, antialias=True
        )[0, 0]
    if look.sign == "positive":
        attribution = attribution.clamp(min=0)
    shown = attribution[attribution != 0].abs()
    if shown.numel() == 0:
        return image.clone()
    value = (attribution / float(np.percentile(shown.numpy(), look.percentile))).clamp(-1, 1)
    # The ends of PuOr are nearly black; stopping short of them, the hue tells for from against.
    position = value if look.sign == "positive" else 0.5 + 0.4 * value
    rgba = matplotlib.colormaps[_COLOUR_MAPS[look.sign]](position.numpy())
    colour = torch.from_numpy(rgba[..., :3]).permute(2, 0, 1)
    opacity = look.alpha * value.abs()
    return ((1 - opacity) * image + opacity * colour).float().clamp(0, 1)


def checked_image(name: str, image: Tensor) -> Tensor:
    """The image in float32 on the CPU, if it is one."""
    _check_tensor(name, image, "(3, H, W)")
    shape = tuple(image.shape)
    if image.ndim != 3 or shape[0] != 3 or 0 in shape:
        fix = "Pass it without other dimensions"
        if image.ndim == 3 and shape[-1] == 3:
            fix = f"Pass {name}.permute(2, 0, 1)"
        elif image.ndim == 2 or shape[0] == 1:
            fix = f"Pass {name}.expand(3, -1, -1)"
        raise ShapeError(f"{name} has shape {shape}. {fix}. It must be (3, H, W).")
    if not image.is_floating_point():
        raise ShapeError(
            f"{name} has dtype {image.dtype}. Pass {name}.float() / 255 if it counts to "
            "255. It must be floating point in [0, 1]."
        )
    image = image.detach().cpu().float()
    low, high = float(image.min()), float(image.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN fails too
        fix = "Undo the normalisation with image * std + mean"
        if low >= 0 and high > 10:
            fix = "Divide it by 255"
        raise OptionError(
            f"{name} ranges from {low:.3g} to {high:.3g}. {fix}. It must be in [0, 1]."
        )
    return image.clamp(0, 1)


def checked_map(name: str, attribution: Tensor) -> Tensor:
    """The map as ``(h, w)`` in float64 on the CPU, if it is one."""
    _check_tensor(name, attribution, "(h, w)")
    shape = tuple(attribution.shape)
    if attribution.ndim == 3 and shape[0] == 1:
        attribution = attribution[0]
    if attribution.ndim != 2 or 0 in shape:
        fix = "Sum over channels first" if attribution.ndim == 3 else "Pass one map"
        raise ShapeError(f"{name} has shape {shape}. {fix}. It must be (h, w).")
    attribution = attribution.detach().cpu().double()  # tiny gradients are zero in float32
    bad = int((~torch.isfinite(attribution)).sum())
    if bad:
        raise OptionError(
            f"{name} has {bad} of {attribution.numel()} values that are NaN or infinite. "
            "Find the layer with ExplanationGuidance.check. A map must be finite."
        )
    return attribution


def checked_boxes(name: str, boxes: Tensor | None, image: Tensor) -> list[Box]:
    """The boxes as x1, y1, x2, y2 clipped to the image, without those that end up empty."""
    form = str(getattr(getattr(boxes, "format", None), "value", "XYXY"))  # of tv_tensors
    if form != "XYXY":
        raise AnnotationError(
            f"{name} has the format {form}. Convert it with torchvision's "
            "ConvertBoundingBoxFormat('XYXY'). Boxes must be x1, y1, x2, y2."
        )
    if boxes is None or torch.as_tensor(boxes).numel() == 0:
        return []
    boxes = torch.as_tensor(boxes).detach().cpu().double()
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(
            f"{name} has shape {tuple(boxes.shape)}. Pass one list of boxes an image. "
            "It must be (M, 4)."
        )
    x1, y1, x2, y2 = boxes.unbind(1)
    bad = ~torch.isfinite(boxes).all(1) | (x2 < x1) | (y2 < y1)
    if bad.any():
        row = [round(v, 2) for v in boxes[bad][0].tolist()]
        raise AnnotationError(
            f"{name} has the box {row}. Convert it if it is x, y, width, height. "
            "Boxes must be finite, x1 <= x2 and y1 <= y2."
        )
    if boxes.max() <= 1 and (boxes != boxes.round()).any():
        raise AnnotationError(
            f"{name} lies in [0, 1]. Multiply it by the width and height of the image. "
            "Boxes must be in pixels."
        )
    height, width = image.shape[-2:]
    x1, x2 = x1.clamp(0, width), x2.clamp(0, width)
    y1, y2 = y1.clamp(0, height), y2.clamp(0, height)
    clipped = zip(x1.tolist(), y1.tolist(), x2.tolist(), y2.tolist(), strict=True)
    return [box for box in clipped if box[2] > box[0] and box[3] > box[1]]


def _check_tensor(name: str, value: object, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{name} is a {type(value).__name__}. Convert it with torch.as_tensor. "
            f"It must be a tensor {shape}."
        )
