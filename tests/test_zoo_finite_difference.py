"""Real architectures, made small: parameter gradients of loss_loc equal central differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from explainguide import ExplanationGuidance

from .networks import batch, boxes
from .test_finite_difference import assert_gradients_are_right

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=4
    ),
    "vit_pooled": lambda: timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=4,
        global_pool="avg", class_token=False,
    ),
    "torchvision_vit": lambda: models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=4),
    "swin": lambda: timm.models.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4,
        num_classes=4,
    ),
    "torchvision_swin": lambda: models.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=4
    ),
    "cait": lambda: timm.models.Cait(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=4
    ),
    "mobilenet_v3": lambda: models.mobilenet_v3_small(width_mult=0.25, num_classes=4, dropout=0.0),
    "convnext": lambda: timm.models.ConvNeXt(
        depths=(1, 1, 1, 1), dims=(8, 8, 12, 12), num_classes=4, ls_init_value=0.5
    ),
    "mixer": lambda: timm.models.MlpMixer(
        img_size=32, patch_size=8, embed_dim=24, num_blocks=2, num_classes=4
    ),
}  # fmt: skip
STRIDED = ("mobilenet_v3", "convnext")  # by 32: a grid of 2 x 2
ANNOTATIONS = [boxes((3, 5, 20, 26), labels=(2,)), boxes((10, 1, 31, 17), labels=(1,))]


@pytest.mark.parametrize("layer", ["input", None])
@pytest.mark.parametrize("name", MODELS)
def test_finite_difference_of_an_architecture(name: str, layer: str | None) -> None:
    torch.manual_seed(5)
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(9)
    for parameter in model.parameters():  # what starts at zero has no second derivative to test
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise)
    model = model.double().eval()
    guide = ExplanationGuidance(model, layer, target="all", loss="rrr")
    assert_gradients_are_right(
        model, guide, batch(2, 64 if name in STRIDED else 32, torch.float64),
        annotations=ANNOTATIONS,
    )  # fmt: skip
