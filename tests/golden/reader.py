"""Reads the reference tensors, where they are at hand."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3] / "shared" / "golden"


def load(case: str, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and description of one case; skips where there are none."""
    folder = ROOT / case
    if not folder.is_dir():
        pytest.skip(f"the reference tensors {case} are not part of the repository")
    description = json.loads((folder / f"{name}.json").read_text())
    return load_file(folder / f"{name}.safetensors"), description


def seeded(tag: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The standard-normal numbers that belong to a tag."""
    state = np.random.RandomState(zlib.crc32(tag.encode()))
    return torch.from_numpy(state.standard_normal(math.prod(shape)).reshape(shape)).float()


def fill(model: torch.nn.Module, seed: int | str, gain: float = math.sqrt(2)) -> torch.nn.Module:
    """The weights of a case whose description says ``"weights": "recipe"``."""
    scales = {"running_mean": 0.1, "cls_token": 0.2, "pos_embed": 0.2, "dist_token": 0.2}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        state = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
        z = state.standard_normal(tensor.numel()).reshape(tuple(tensor.shape))
        last = name.rsplit(".", 1)[-1]
        if last == "running_var":
            z = np.exp(0.2 * z)
        elif last == "weight":
            fan_in = tensor.numel() / tensor.shape[0]
            z = z * (gain / math.sqrt(fan_in)) if tensor.ndim >= 2 else 1 + 0.1 * z
        else:
            z = scales.get(last, 0.1) * z
        tensor.copy_(torch.from_numpy(z.astype(np.float32)))
    return model


def boxes_to_mask(boxes: list[list[int]], size: tuple[int, int]) -> torch.Tensor:
    """Union of half-open integer boxes, one slice a box."""
    mask = torch.zeros(size)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 1
    return mask
