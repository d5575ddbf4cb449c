"""The three networks: one architecture, three conversions, and the images that each takes."""

from functools import partial

import torch
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn
from torchvision.transforms import v2

from explainguide.bcos import AddInverse, bcosify, scale_biases, set_b
from explainguide.models import load_weights, small_cnn
from explainguide.xdnn import remove_bias

__all__ = ["ATTRIBUTIONS", "begin", "fade", "finish", "mobilenet", "norms", "small", "transforms"]

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


def begin(kind: str, model: nn.Module) -> nn.Module:
    """A network that answers as the model does, before anything fades."""
    return bcosify(model, b=1, mean=0.5, std=0.5) if kind == "B-cos" else model


def fade(kind: str, model: nn.Module, before: float, share: float) -> float:
    """Biases fall to 0, linearly, with all that norms subtract; meanwhile B rises from 1.

    At once is too much: most channels would never again be above 0.

    Args:
        kind: Vanilla networks stay as they are.
        model: What `begin` made.
        before: How much of the way was done, from 0 to 1.
        share: How much is done now.

    Returns:
        The share, for the next call.
    """
    factor = (1 - share) / (1 - before) if before < 1 else 0
    if kind == "B-cos":
        set_b(model, 1 + share)  # to 2
        scale_biases(model, factor)
    elif kind == "X-DNN":
        with torch.no_grad():
            for module in model.modules():
                for name in ("bias", "running_mean"):
                    if isinstance(getattr(module, name, None), torch.Tensor):
                        getattr(module, name).mul_(factor)
    return share


def finish(kind: str, model: nn.Module, size: int) -> nn.Module:
    """The network of a kind, when all has faded."""
    if kind == "X-DNN":
        model = remove_bias(model, image_size=(size, size))
        with torch.no_grad():  # without norms a large first loss would throw all weights off
            [m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(0.02)
    return model


def norms(model: nn.Module) -> list[str]:
    """The layers at which a network is compared with the one that it was made of."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def transforms(kind: str, size: int, *, flip: bool = False) -> v2.Compose:
    """Plain images and their inverse for B-cos, [-1, 1] for the others."""
    last = AddInverse() if kind == "B-cos" else v2.Normalize([0.5] * 3, [0.5] * 3)
    steps = [v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True), last]
    return v2.Compose([v2.RandomHorizontalFlip(), *steps] if flip else steps)
