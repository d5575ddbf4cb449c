"""The three networks: one architecture, three conversions, and the images that each takes."""

from functools import partial

import torch
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn
from torchvision.transforms import v2

from explainguide.bcos import AddInverse, bcosify, scale_biases, set_b
from explainguide.models import load_weights, small_cnn
from explainguide.xdnn import remove_bias

__all__ = ["ATTRIBUTIONS", "build", "mobilenet", "raise_b", "small", "transforms"]

ATTRIBUTIONS = {"vanilla": "ixg", "X-DNN": "intgrad", "B-cos": "bcos"}


def mobilenet(num_classes: int, weights: str) -> nn.Module:
    """MobileNet v1 of width 0.75 as in TensorFlow, with ReLU, which an X-DNN must have."""
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    options = {"pad_type": "same", "norm_layer": norm, "act_layer": nn.ReLU}
    model = _gen_mobilenet_v1("mobilenetv1_100", 0.75, num_classes=num_classes, **options)
    load_weights(model, weights)  # all but the head
    return model


def small(num_classes: int, weights: str) -> nn.Module:
    """The embedded example's network, with ReLU, for `--smoke`."""
    model = small_cnn(num_classes)
    for stage in (model.stage1, model.stage2, model.stage3):
        for i, part in enumerate(stage):
            if isinstance(part, nn.GELU):
                stage[i] = nn.ReLU()
    return model


def build(kind: str, model: nn.Module, size: int) -> nn.Module:
    """The network itself, without biases, or as a B-cos network, at first with B = 1 and biases."""
    if kind == "X-DNN":
        return remove_bias(model, image_size=(size, size))
    return bcosify(model, b=1, mean=0.5, std=0.5) if kind == "B-cos" else model


def raise_b(model: nn.Module, share: float, end: float = 1.1) -> None:
    """B rises from 1 while the biases shrink; at a share of 1 they are gone.

    Each unit raises contrasts to the power B. MobileNet v1 has 27 in a row, without a skip connection:
    1.1 to the power of 27 is 13, and 2 would be 10^8.

    Args:
        model: What `build` made of B-cos.
        share: How much of the way is done, from 0 to 1.
        end: B at the end.
    """
    set_b(model, 1 + (end - 1) * share)
    scale_biases(model, 0.97 if share < 1 else 0)


def transforms(kind: str, size: int, *, flip: bool = False) -> v2.Compose:
    """Plain images and their inverse for B-cos, [-1, 1] for the others."""
    last = AddInverse() if kind == "B-cos" else v2.Normalize([0.5] * 3, [0.5] * 3)
    steps = [v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True), last]
    return v2.Compose([v2.RandomHorizontalFlip(), *steps] if flip else steps)
