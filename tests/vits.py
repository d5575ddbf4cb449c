"""Small vision transformers of every kind that attention relevance is for."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import timm
import torch
import torchvision
from torch import nn


class Vit(NamedTuple):
    """A model, and what a reference must know of it.

    Attributes:
        read: "class", "distilled", "patches" or "latent": what the logits are read from.
        grid: Patches in height and in width.
    """

    model: nn.Module
    read: str
    grid: tuple[int, int]


SMALL = {"num_classes": 5, "embed_dim": 16, "num_heads": 2, "depth": 3}
TIMM: dict[str, tuple[str, dict, str]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 48}, "class"),
    "vit-registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 42}, "class"),
    "vit-wide": ("vit_tiny_patch16_224", {"img_size": (32, 64)}, "class"),
    "vit-pooled": ("vit_tiny_patch16_224", {"img_size": 48, "global_pool": "avg", "class_token": False}, "patches"),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 48}, "latent"),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 48}, "distilled"),
    "beit": ("beit_base_patch16_224", {"img_size": 48}, "patches"),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 42}, "patches"),
    "cait": ("cait_xxs24_224", {"img_size": 48, "depth": 2}, "class"),
    "vit_relpos": ("vit_relpos_small_patch16_224", {"img_size": 48}, "patches"),
    "vit_relpos-class": ("vit_relpos_base_patch16_cls_224", {"img_size": 48}, "class"),
}  # fmt: skip
NAMES = [*TIMM, "torchvision"]


def build(name: str) -> Vit:
    """A model of 2 or 3 blocks in float64 and evaluation mode, the same in every test."""
    if name == "torchvision":
        model: nn.Module = torchvision.models.VisionTransformer(
            image_size=24, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
        )  # fmt: skip
        vit = Vit(model, "class", (3, 3))
    else:
        known_as, options, read = TIMM[name]
        model = timm.create_model(known_as, **{**SMALL, **options})
        vit = Vit(model, read, tuple(model.patch_embed.grid_size))
    for parameter_name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(parameter_name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        scale = 1 / math.sqrt(fan_in) if parameter.ndim > 1 else 0.3
        with torch.no_grad():
            parameter.copy_(scale * noise + (parameter.ndim == 1 and "bias" not in parameter_name))
    model.double().eval()
    return vit


def size_of(vit: Vit) -> tuple[int, int]:
    """Height and width of its images."""
    patch = (
        8
        if isinstance(vit.model, torchvision.models.VisionTransformer)
        else vit.model.patch_embed.patch_size[0]
    )
    return vit.grid[0] * patch, vit.grid[1] * patch
