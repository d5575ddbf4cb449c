"""What stands where pixels of an image were taken away."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from explainguide.errors import OptionError, ShapeError, did_you_mean

__all__ = ["Fill", "check_fill", "draw_normal", "draw_uniform", "filling", "shown"]

Fill: TypeAlias = Literal["mean", "blur", "noise"] | float | Tensor | Callable[[Tensor], Tensor]

_NAMES = ("mean", "blur", "noise")
_RADIUS, _SIGMA = 5, 5.0  # of RISE, for images of 224 x 224 pixels


def check_fill(fill: Any, generator: torch.Generator | None) -> None:
    """Refuse a fill that does not exist, and a generator that nothing would draw from."""
    if isinstance(fill, str):
        if fill not in _NAMES:
            raise OptionError(
                f"unknown fill {fill!r}.{did_you_mean(fill, _NAMES)} 'mean', 'blur', 'noise', a "
                "number, a colour (C,), or a callable from images to images, are allowed."
            )
    elif isinstance(fill, Tensor):
        if fill.ndim != 1 or not fill.is_floating_point():
            raise OptionError(
                f"fill is a tensor of shape {tuple(fill.shape)} and dtype {fill.dtype}. Give one "
                "number a channel, in the units of the images. A floating point colour (C,) is allowed."
            )
    elif not callable(fill) and (not isinstance(fill, Real) or isinstance(fill, bool)):
        raise OptionError(
            f"fill is {fill!r}. Use 'mean'. 'mean', 'blur', 'noise', a number, a colour (C,), or a "
            "callable from images to images, are allowed."
        )
    if generator is not None and not (isinstance(fill, str) and fill == "noise"):
        raise OptionError(
            f"generator was given with fill={shown(fill)}, which does not draw from it. Leave it out, "
            "or use fill='noise'. Without noise no generator is allowed."
        )


def shown(fill: Fill) -> str:
    """A fill in a word, for messages, `repr` and the names of states."""
    if isinstance(fill, Tensor):
        return repr(fill.tolist())
    return getattr(fill, "__name__", type(fill).__name__) if callable(fill) else repr(fill)


def filling(images: Tensor, fill: Fill, generator: torch.Generator | None) -> Tensor:
    """What is shown in place of the pixels, of the images' dtype, broadcastable to ``(N, C, H, W)``."""
    if isinstance(fill, Tensor):
        if len(fill) != images.shape[1]:
            raise ShapeError(
                f"fill has {len(fill)} channels but the images have {images.shape[1]}. Give one number "
                "a channel. A colour (C,) is allowed."
            )
        return fill.to(images)[None, :, None, None]
    if callable(fill):
        filled = fill(images)
        if not isinstance(filled, Tensor) or filled.shape != images.shape:
            shape = tuple(filled.shape) if isinstance(filled, Tensor) else type(filled).__name__
            raise ShapeError(
                f"fill returned {shape} for images {tuple(images.shape)}. Return images to take pixels "
                "from. The same shape is allowed."
            )
        return filled.to(images)
    if isinstance(fill, str):
        return _filling(images, fill, generator)
    return images.new_full((1, 1, 1, 1), float(fill))


def _filling(images: Tensor, fill: str, generator: torch.Generator | None) -> Tensor:
    wide = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    if fill == "blur":
        # Reflected at the border, so no wider than the image itself.
        radius = min(_RADIUS, *(side - 1 for side in wide.shape[-2:]))
        size = [2 * radius + 1] * 2
        filled = gaussian_blur(wide, size, [_SIGMA, _SIGMA]) if radius and len(wide) else wide
    else:
        filled = wide.mean((2, 3), keepdim=True)
        if fill == "noise":
            spread = wide.std((2, 3), keepdim=True, correction=0)
            filled = filled + spread * draw_normal(tuple(wide.shape), generator, wide)
    return filled.to(images.dtype)


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers in float32, drawn where the generator is, on the device of ``like``."""
    return torch.randn(shape, generator=generator, **_where(generator, like)).to(like.device)


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Numbers in [0, 1) in float32, drawn where the generator is, on the device of ``like``."""
    return torch.rand(shape, generator=generator, **_where(generator, like)).to(like.device)


def _where(generator: torch.Generator | None, like: Tensor) -> dict[str, Any]:
    """Drawn where the generator is, in float32: the same numbers on every device and dtype."""
    device = like.device if generator is None else generator.device
    return {"device": device, "dtype": torch.float32}
