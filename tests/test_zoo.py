"""Guidance on real families at three places: a fast part of ``benchmarks/zoo.py``."""

from __future__ import annotations

from typing import Any

import pytest
from zoo import run
from zoo_check import Row
from zoo_families import FAMILIES

# The smallest classifiers, as in the benchmark, that take a few seconds.
AS_THEY_ARE = [
    "timm/byobnet", "timm/convnext", "timm/cpubone", "timm/cspnext", "timm/deit",
    "timm/edgenext", "timm/efficientnet", "timm/efficientvim", "timm/efficientvit_mit",
    "timm/efficientvit_msra", "timm/fasternet", "timm/ghostnet", "timm/mambaout",
    "timm/maxxvit", "timm/mobilenetv3", "timm/nfnet", "timm/regnet", "timm/resnet",
    "timm/starnet", "timm/vision_transformer", "timm/vision_transformer_relpos",
    "torchvision/mobilenetv3", "torchvision/shufflenetv2", "torchvision/squeezenet",
]  # fmt: skip
# Others with fewer blocks; and the layer that must be found.
MADE_SMALL: dict[str, tuple[dict[str, Any], str]] = {
    "timm/beit": ({"depth": 2, "embed_dim": 48, "num_heads": 2}, "blocks.1"),
    "timm/cait": ({"depth": 2}, "blocks_token_only.1.norm1"),
    "timm/coat": ({"serial_depths": (1, 1, 1, 1), "parallel_depth": 1}, "parallel_blocks.0.norm14"),
    "timm/crossvit": ({"depth": ((1, 1, 0),)}, "blocks.0.fusion.1.norm1"),
    "timm/hiera": ({"stages": (1, 1, 1, 1), "embed_dim": 24}, "blocks.3"),
    "timm/pit": ({"depth": (1, 1, 1)}, "transformers.2.blocks.0.norm1"),
    "timm/swin_transformer": ({"depths": (1, 1, 1, 1), "embed_dim": 24}, "norm"),
    "timm/xcit": ({"depth": 2}, "cls_attn_blocks.1.norm1"),
}


def assert_guided(row: Row) -> None:
    assert row.refused == ""
    for place in (row.automatic, row.input, row.middle):
        assert place is not None and place.failures == [], place


@pytest.mark.slow
@pytest.mark.parametrize("family", AS_THEY_ARE)
def test_a_family_can_be_guided(family: str) -> None:
    assert_guided(run(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", MADE_SMALL)
def test_a_family_with_fewer_blocks_can_be_guided(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, layer = MADE_SMALL[family]
    monkeypatch.setitem(FAMILIES, family, (FAMILIES[family][0], options))
    row = run(family)
    assert_guided(row)
    assert row.automatic is not None and row.automatic.layer == layer
