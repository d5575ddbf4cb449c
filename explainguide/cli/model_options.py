"""The options of `train` that say which network."""

from __future__ import annotations

import argparse

__all__ = ["add_model_arguments"]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which network."""
    group = parser.add_argument_group("network (--model, or --checkpoint)")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="resnet18 or timm:resnet18, torchvision:resnet18, or package.module:function",
    )
    group.add_argument("--pretrained", action="store_true", help="download the model's weights")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="weights to begin with instead; those of a training say their size and normalisation",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="begin with the network of `explainguide convert`, or of a training",
    )
    group.add_argument("--bcos", action="store_true", help="make --model a B-cos network first")
    group.add_argument("--b", type=float, metavar="X", help="its exponent B (default: 2)")
    group.add_argument(
        "--fresh", action="store_true", help="with --bcos: new weights and no activations"
    )
