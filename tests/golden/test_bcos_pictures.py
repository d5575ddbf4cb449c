"""The pictures of a B-cos ResNet equal the authors'."""

from __future__ import annotations

import pytest
import torch

from explainguide.bcos import dynamic_weights, to_rgba

from .bcos_networks import golden_network
from .reader import load

CASES = {
    "rgba_image0_class1_smooth0": (0, 1, {"smooth": 0}),
    "rgba_image0_class1_smooth1": (0, 1, {"smooth": 1}),
    "rgba_image0_class1_smooth5": (0, 1, {"smooth": 5}),
    "rgba_image0_class1_smooth15": (0, 1, {}),
    "rgba_image1_class0_smooth15_pct90": (1, 0, {"percentile": 90}),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_bcos_pictures(name: str) -> None:
    tensors, _ = load("04_bcos", "v2_resnet18_bnu")
    model = golden_network("v2_resnet18_bnu", 64, "")
    image, target, options = CASES[name]
    images = tensors["x6"].double()
    weights = dynamic_weights(model, images, target)
    contributions = (weights * images).sum(1)
    expected = tensors["contribution_map"][:, target]
    torch.testing.assert_close(contributions, expected, rtol=1e-9, atol=1e-12)
    picture = to_rgba(weights, contributions, **options)[image].permute(1, 2, 0)
    torch.testing.assert_close(picture, tensors[name], rtol=0, atol=1e-9)
