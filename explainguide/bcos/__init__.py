"""B-cos networks: convert a model, and explain it exactly."""

from __future__ import annotations

from explainguide.bcos.calibration import calibrate
from explainguide.bcos.convert import bcosify
from explainguide.bcos.explanations import contribution_map, dynamic_weights, logit_bias
from explainguide.bcos.modules import (
    AddInverse,
    DynamicLinearUnit,
    Gated,
    GatedChannels,
    LogitBias,
)
from explainguide.bcos.norms import (
    AllNormUncentered2d,
    BatchNormUncentered2d,
    ChannelsLast,
    DetachableGroupNorm2d,
    DetachableLayerNorm,
    DetachablePositionNorm2d,
    GroupNormUncentered2d,
    LayerNormUncentered,
    PositionNormUncentered2d,
)
from explainguide.bcos.pictures import to_rgba
from explainguide.bcos.record import Conversion, conversion
from explainguide.bcos.relearning import relearn
from explainguide.bcos.release import load_published, published
from explainguide.bcos.schedule import scale_biases, set_b
from explainguide.bcos.simple_vit import SimpleViT
from explainguide.bcos.units import BcosConv2d, BcosLinear
from explainguide.hooks.dynamic import explanation_mode, hold

__all__ = [
    "AddInverse",
    "AllNormUncentered2d",
    "BatchNormUncentered2d",
    "BcosConv2d",
    "BcosLinear",
    "ChannelsLast",
    "Conversion",
    "DetachableGroupNorm2d",
    "DetachableLayerNorm",
    "DetachablePositionNorm2d",
    "DynamicLinearUnit",
    "Gated",
    "GatedChannels",
    "GroupNormUncentered2d",
    "LayerNormUncentered",
    "LogitBias",
    "PositionNormUncentered2d",
    "SimpleViT",
    "bcosify",
    "calibrate",
    "contribution_map",
    "conversion",
    "dynamic_weights",
    "explanation_mode",
    "hold",
    "load_published",
    "logit_bias",
    "published",
    "relearn",
    "scale_biases",
    "set_b",
    "to_rgba",
]
