"""What the metrics refuse, and in which words: shapes and dtypes; values stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from explainguide.errors import OptionError, ShapeError, did_you_mean

__all__ = [
    "Undefined",
    "check_energy",
    "check_maps",
    "check_threshold",
    "check_tolerance",
    "check_undefined",
]

Undefined = Literal["exclude", "zero"]


def check_maps(attribution: Tensor, **masks: Tensor) -> tuple[Tensor, ...]:
    """The attribution and the masks as ``(N, H, W)`` of one floating dtype, or a `ShapeError`.

    Half precision becomes float32: the sum of a few thousand pixels does not fit into it.
    """
    maps = _drop_channel("attribution", attribution)
    if not maps.is_floating_point():
        raise ShapeError(
            f"attribution has dtype {maps.dtype}. Did you swap attribution and mask? "
            "Attributions must be floating point; convert with attribution.float()."
        )
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    return maps, *(_check_mask(name, mask, maps) for name, mask in masks.items())


def _check_mask(name: str, mask: Tensor, attribution: Tensor) -> Tensor:
    flat = _drop_channel(name, mask)
    if flat.dtype != torch.bool and not flat.is_floating_point():
        raise ShapeError(
            f"{name} has dtype {flat.dtype}, which may hold class ids or 0 to 255. "
            f"Use {name}.bool() or {name} > 0. A mask must be bool, or floating point in [0, 1]."
        )
    if flat.shape != attribution.shape:
        same_count = flat.shape[0] == attribution.shape[0]
        fix = (
            f"Resize the attribution first: torch.nn.functional.interpolate(attribution, "
            f"{tuple(flat.shape[1:])}, mode='bilinear') on (N, 1, h, w)."
            if same_count
            else f"Give one {name} for each map."
        )
        raise ShapeError(
            f"attribution has shape {tuple(attribution.shape)} but {name} has shape "
            f"{tuple(flat.shape)}. {fix} Both must be (N, H, W) or (N, 1, H, W)."
        )
    return flat.to(attribution.dtype)


def _drop_channel(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ShapeError(
            f"{name} is a {type(tensor).__name__}. Convert with torch.as_tensor(...). "
            "It must be a tensor (N, H, W) or (N, 1, H, W)."
        )
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        return tensor[:, 0]
    if tensor.ndim == 3:
        return tensor
    if tensor.ndim == 2:
        fix = f"Add the batch dimension: {name}[None]."
    elif tensor.ndim == 4 and name == "attribution":
        fix = "Sum over the channels first: attribution.sum(1)."
    elif tensor.ndim == 4:
        fix = f"Choose the class of each image first: {name}[torch.arange(N), target]."
    else:
        fix = f"Bring {name} to one map an image."
    raise ShapeError(
        f"{name} has shape {tuple(tensor.shape)}. {fix} It must be (N, H, W) or (N, 1, H, W)."
    )


def check_undefined(undefined: str) -> None:
    """Refuse a rule for undefined images that does not exist."""
    allowed = ("exclude", "zero")
    if undefined not in allowed:
        near = did_you_mean(str(undefined), allowed)
        raise OptionError(f"unknown undefined={undefined!r}.{near} It must be 'exclude' or 'zero'.")


def check_energy(min_energy: float) -> None:
    """Refuse a negative smallest energy."""
    if not min_energy >= 0:
        raise OptionError(
            f"min_energy is {min_energy!r}. Use 0 to accept every map with a positive "
            "part. It must be 0 or more."
        )


def check_threshold(thresholds: Sequence[Any], *, name: str = "threshold") -> None:
    """Refuse thresholds that no normalised map can straddle."""
    for threshold in thresholds:
        if not (isinstance(threshold, Real) and 0 <= float(threshold) < 1):
            raise OptionError(
                f"{name} has the value {threshold!r}. Maps are normalised to [0, 1] "
                "first, so 0.5 is half of an image's maximum. It must be a number in [0, 1)."
            )


def check_tolerance(tolerance: int) -> None:
    """Refuse a tolerance that is not a whole number of pixels."""
    if not isinstance(tolerance, int) or tolerance < 0:
        raise OptionError(
            f"tolerance is {tolerance!r}. Use 0 for a hit inside the mask only, or 15 "
            "as Zhang et al. It must be a whole number of pixels, 0 or more."
        )
