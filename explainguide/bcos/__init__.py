"""B-cos networks: convert any model, and explain it exactly."""

from __future__ import annotations

from explainguide.bcos.calibration import calibrate
from explainguide.bcos.conversion import Conversion, conversion
from explainguide.bcos.convert import bcosify, scale_biases, set_b
from explainguide.bcos.maps import contribution_map, dynamic_weights, logit_bias
from explainguide.bcos.mode import explanation_mode, hold
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
    DetachableGroupNorm2d,
    DetachableLayerNorm,
    DetachablePositionNorm2d,
    GroupNormUncentered2d,
    LayerNormUncentered,
    PositionNormUncentered2d,
)
from explainguide.bcos.units import BcosConv2d, BcosLinear

__all__ = [
    "AddInverse",
    "AllNormUncentered2d",
    "BatchNormUncentered2d",
    "BcosConv2d",
    "BcosLinear",
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
    "bcosify",
    "calibrate",
    "contribution_map",
    "conversion",
    "dynamic_weights",
    "explanation_mode",
    "hold",
    "logit_bias",
    "scale_biases",
    "set_b",
]
