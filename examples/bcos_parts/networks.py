"""The three networks: one architecture, three conversions, and the images that each takes."""

from functools import partial
from typing import Any

import torch
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import Tensor, nn
from torchvision.transforms import v2

from explainguide import bcos, xdnn
from explainguide.bcos import AddInverse, bcosify, scale_biases, set_b
from explainguide.models import load_weights, small_cnn
from explainguide.xdnn import remove_bias

__all__ = ["ATTRIBUTIONS", "begin", "drop_biases", "finish", "mobilenet"]
__all__ += ["relearn", "small", "transforms"]

ATTRIBUTIONS = {"vanilla": "ixg", "X-DNN": "intgrad", "B-cos": "bcos"}


def mobilenet(num_classes: int, weights: str) -> nn.Module:
    """MobileNet v1 of width 0.75 as in TensorFlow, with ReLU, which an X-DNN must have."""
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    options = {"pad_type": "same", "norm_layer": norm, "act_layer": nn.ReLU}
    model = _gen_mobilenet_v1("mobilenetv1_100", 0.75, num_classes=num_classes, **options)
    load_weights(model, weights)  # all but the head
    return model


def small(num_classes: int) -> nn.Module:
    """The embedded example's network, with ReLU, for `--smoke`."""
    model = small_cnn(num_classes)
    for stage in (model.stage1, model.stage2, model.stage3):
        for i, part in enumerate(stage):
            if isinstance(part, nn.GELU):
                stage[i] = nn.ReLU()
    return model


def begin(kind: str, model: nn.Module, size: int) -> nn.Module:
    """The converted network: a B-cos one still answers as the model does, with B = 1 and biases."""
    if kind == "X-DNN":
        return remove_bias(model, image_size=(size, size))
    return bcosify(model, b=1, mean=0.5, std=0.5) if kind == "B-cos" else model


def drop_biases(kind: str, model: nn.Module) -> None:
    """What `relearn` does to a B-cos network over many steps, at once."""
    if kind == "B-cos":
        set_b(model, 2)
        scale_biases(model, 0)


def relearn(kind: str, model: nn.Module, teacher: nn.Module, images: Tensor, **how: Any) -> None:
    """Learn the pretrained network's features again, without labels."""
    learn = bcos.relearn if kind == "B-cos" else xdnn.relearn
    learn(model, teacher, images, mean=0.5, std=0.5, **how)


def finish(kind: str, model: nn.Module) -> None:
    """Without norms a large first loss would throw all weights off."""
    if kind == "X-DNN":
        with torch.no_grad():
            [m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(0.02)


def transforms(kind: str, size: int, *, flip: bool = False) -> v2.Compose:
    """Plain images and their inverse for B-cos, [-1, 1] for the others."""
    last = AddInverse() if kind == "B-cos" else v2.Normalize([0.5] * 3, [0.5] * 3)
    steps = [v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True), last]
    return v2.Compose([v2.RandomHorizontalFlip(), *steps] if flip else steps)
