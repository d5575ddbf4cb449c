"""Every family of networks that `bcosify` is for, made small, with no parameter at its start value."""

from __future__ import annotations

import copy
import functools
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.models import resnet as timm_resnet
from timm.models import vgg as timm_vgg
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def
from torch import Tensor, nn
from torchvision import models
from torchvision.models import convnext, efficientnet, mobilenetv3, resnet, vgg

from explainguide.bcos import AddInverse, bcosify

CLASSES = 4
SIZE = 48
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


class SmallVgg(models.VGG):
    """torchvision's, whose own constructor has room for 100 million weights."""

    def __init__(self, batch_norm: bool) -> None:
        nn.Module.__init__(self)
        plan: list[str | int] = [8, "M", 10, "M", 12, 12, "M", 12, "M"]
        self.features = vgg.make_layers(plan, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(12 * 49, 16), nn.ReLU(True), nn.Dropout(0.0),
            nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(0.0),
            nn.Linear(16, CLASSES),
        )  # fmt: skip


class SmallResNet(models.ResNet):
    """torchvision's, which has no argument for the width of its stages."""

    def __init__(self, block: Any, **options: Any) -> None:
        super().__init__(block, [1, 1, 1, 1], **options)
        self.fc = nn.Linear(self.inplanes, CLASSES)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **options)


def tv_convnext() -> nn.Module:
    config = convnext.CNBlockConfig
    stages = [config(8, 12, 1), config(12, 16, 2), config(16, None, 1)]
    return models.ConvNeXt(stages, 0.0, 0.5, CLASSES)


def tv_efficientnet() -> nn.Module:
    config = partial(efficientnet.MBConvConfig, width_mult=1.0, depth_mult=1.0)
    stages = [config(1, 3, 1, 8, 8, 1), config(4, 3, 2, 8, 12, 2), config(4, 5, 2, 12, 16, 1)]
    return models.EfficientNet(stages, 0.0, 0.0, CLASSES, last_channel=24)


def tv_mobilenet_v2() -> nn.Module:
    stages = [[1, 8, 1, 1], [4, 12, 2, 2], [4, 16, 1, 2]]
    return models.MobileNetV2(CLASSES, 0.25, stages, 4, dropout=0.0)


def tv_mobilenet_v3() -> nn.Module:
    config = partial(mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    stages = [config(16, 3, 16, 16, True, "RE", 2), config(16, 5, 48, 24, True, "HS", 2)]
    stages.append(config(24, 5, 64, 24, False, "HS", 1))
    return models.MobileNetV3(stages, 24, CLASSES, dropout=0.0)


def timm_blocks(kind: Any, plan: list[str], activation: Any, **options: Any) -> nn.Module:
    """timm's EfficientNet, which is its MobileNets V1 and V2 as well, or its MobileNetV3."""
    stages = decode_arch_def([[stage] for stage in plan])
    shape = {"num_classes": CLASSES, "num_features": 24, "stem_size": 8}
    return kind(stages, **shape, act_layer=activation, **options)


def tv_vit() -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)


def timm_vit(kind: Any = timm.models.VisionTransformer, **options: Any) -> nn.Module:
    return kind(**VIT, num_classes=CLASSES, **options)


BLOCKS = {"channels": (8, 8, 12, 16), "stem_width": 8, "num_classes": CLASSES}
PLAN = [8, "M", 10, "M", 12, 12, "M", 12, "M"]
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 10, 12, 16), "patch_size": 2, "ls_init_value": 0.5}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "tv-resnet": lambda: SmallResNet(resnet.BasicBlock),
    "tv-resnet-bottleneck": lambda: SmallResNet(resnet.Bottleneck),
    "tv-resnext": lambda: SmallResNet(resnet.Bottleneck, groups=4, width_per_group=32),
    "tv-densenet": lambda: models.DenseNet(6, (2, 2, 2), 8, 2, 0.0, CLASSES),
    "tv-vgg": lambda: SmallVgg(False),
    "tv-vgg-bn": lambda: SmallVgg(True),
    "tv-convnext": tv_convnext,
    "tv-efficientnet": tv_efficientnet,
    "tv-mobilenet-v2": tv_mobilenet_v2,
    "tv-mobilenet-v3": tv_mobilenet_v3,
    "tv-vit": tv_vit,
    "resnet": lambda: timm_resnet.ResNet(timm_resnet.BasicBlock, (1, 1, 1, 1), **BLOCKS),
    "resnet-bottleneck": lambda: timm_resnet.ResNet(timm_resnet.Bottleneck, (1, 1, 1, 1), **BLOCKS),
    "resnext": lambda: timm_resnet.ResNet(
        timm_resnet.Bottleneck, (1, 1, 1, 1), cardinality=4, base_width=16, **BLOCKS
    ),
    "seresnext": lambda: timm_resnet.ResNet(
        timm_resnet.Bottleneck,
        (1, 1, 1, 1),
        cardinality=4,
        base_width=16,
        block_args={"attn_layer": "se"},
        **BLOCKS,
    ),
    "resnet-group-norm": lambda: timm_resnet.ResNet(
        timm_resnet.BasicBlock,
        (1, 1, 1, 1),
        act_layer=timm.layers.PReLU,
        norm_layer=partial(timm.layers.GroupNorm, num_groups=4),
        **BLOCKS,
    ),
    "densenet": lambda: timm.models.DenseNet(6, (2, 2, 2), CLASSES, bn_size=2),
    "vgg": lambda: timm_vgg.VGG(PLAN, CLASSES, mlp_ratio=0.004),
    "vgg-bn": lambda: timm_vgg.VGG(PLAN, CLASSES, mlp_ratio=0.004, norm_layer=nn.BatchNorm2d),
    "convnext": lambda: timm.models.ConvNeXt(num_classes=CLASSES, **STAGES),
    "convnext-conv": lambda: timm.models.ConvNeXt(num_classes=CLASSES, conv_mlp=True, **STAGES),
    "efficientnet": lambda: timm_blocks(
        timm.models.EfficientNet,
        ["ds_r1_k3_s1_e1_c8_se0.25", "ir_r2_k3_s2_e4_c12_se0.25", "ir_r1_k5_s2_e4_c16_se0.25"],
        nn.SiLU,
    ),
    "mobilenet-v1": lambda: timm_blocks(
        timm.models.EfficientNet,
        ["dsa_r1_k3_s1_c8", "dsa_r2_k3_s2_c12", "dsa_r2_k3_s2_c24"],
        nn.ReLU6,
        fix_stem=True,
    ),
    "mobilenet-v2": lambda: timm_blocks(
        timm.models.EfficientNet,
        ["ds_r1_k3_s1_c8", "ir_r2_k3_s2_e4_c12", "ir_r1_k3_s2_e4_c16"],
        nn.ReLU6,
    ),
    "mobilenet-v3": lambda: timm_blocks(
        timm.models.MobileNetV3,
        ["ds_r1_k3_s2_e1_c8_se0.25_nre", "ir_r1_k5_s2_e4_c12_se0.25", "cn_r1_k1_s1_c16"],
        nn.Hardswish,
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU),
    ),
    "mixer": lambda: timm.models.MlpMixer(
        img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=CLASSES
    ),
    "vit": timm_vit,
    "vit-pooled": lambda: timm_vit(global_pool="avg", class_token=False),
    "vit-qk-norm": lambda: timm_vit(qk_norm=True, reg_tokens=2),
    "deit": lambda: timm_vit(no_embed_class=True, init_values=0.5),
    "deit-distilled": lambda: timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=CLASSES, **VIT
    ),
}
# What is tested always; the others are slow only because they are many.
CORE = ("tv-resnet", "tv-densenet", "convnext", "mobilenet-v3", "vit")


def size_of(name: str) -> int:
    """Height and width of a family's images, with at least 2 x 2 places at the end."""
    return (
        32
        if "vit" in name or "deit" in name or name == "mixer"
        else 64
        if "convnext" in name
        else SIZE
    )


@functools.cache
def _built(name: str) -> nn.Module:
    model = FAMILIES[name]()
    size = size_of(name)
    config = getattr(model, "pretrained_cfg", None) or {}
    model.pretrained_cfg = {**config, "input_size": (3, size, size)}  # type: ignore[assignment]
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for key, tensor in state.items():
            if tensor.is_floating_point():
                tensor.copy_(_noise(f"{name}.{key}", tensor))
    return model.eval()


def _noise(key: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    noise = torch.randn(tensor.shape, generator=generator)
    if key.endswith("running_var"):
        return noise.abs() + 0.5
    if tensor.ndim > 1:
        return 1.4 * noise / math.sqrt(tensor[0].numel())
    return 0.2 * noise + (0 if key.endswith(("bias", "running_mean")) else 1)


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """An ordinary model in evaluation mode, the same in every test."""
    return copy.deepcopy(_built(name)).to(dtype)


@functools.cache
def _converted(name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    torch.manual_seed(1)
    return bcosify(build(name), **dict(options)).eval()


def converted(name: str, **options: Any) -> nn.Module:
    """A B-cos network in float64 and evaluation mode, the same in every test."""
    return copy.deepcopy(_converted(name, tuple(options.items())))


def images(name: str, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth images with noise and their inverse, ``(count, 6, H, W)``."""
    generator = torch.Generator().manual_seed(5)
    size = size_of(name)
    coarse = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    fine = torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)
    return AddInverse()((0.6 * smooth + 0.4 * fine).to(dtype))
