"""A small timm hybrid ViT: a frozen convolutional stem, then transformer blocks of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm import trange

from explainguide.checkpoints import save_weights
from explainguide.models import build_model, load_weights
from robustvit_parts.animals import CLASSES, Animals, augmentation, augmented

SIDE = 128
HEAD_WIDTH = 32
normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])

StepLoss = Callable[[nn.Module, Animals], Tensor]


class FrozenStem(nn.Sequential):
    """The stages of a MobileNet down to a sixteenth of the image; BatchNorm keeps its statistics."""

    def train(self, mode: bool = True) -> FrozenStem:
        """Stay in evaluation mode."""
        return super().train(False)


def build_vit(*, stem: str = "", width: int = 128, depth: int = 4, drop: float = 0.0) -> nn.Module:
    """8 x 8 tokens and a class token; `stem` is a file of ImageNet weights of the MobileNet."""
    net = build_model("voc_finetune:mobilenet_075", weights=stem or None)
    backbone = FrozenStem(net.conv_stem, net.bn1, *net.blocks[:4]).requires_grad_(False)
    return VisionTransformer(
        img_size=SIDE, patch_size=1, embed_dim=width, depth=depth, num_heads=width // HEAD_WIDTH,
        num_classes=len(CLASSES), drop_path_rate=drop,
        embed_layer=partial(HybridEmbed, backbone=backbone),
    )  # fmt: skip


def fit(
    model: nn.Module,
    data: Animals,
    step_loss: StepLoss,
    *,
    lr: float,
    epochs: int,
    batch: int,
    weight_decay: float,
    warm_up: float = 0.0,
    largest_gradient: float = math.inf,
    after_epoch: Callable[[int], None] = lambda _: None,
) -> None:
    """AdamW with a cosine schedule; vectors (biases, norms) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr,
    )
    a_pass = len(data) // batch
    steps, transform = a_pass * epochs, augmentation(SIDE)
    for epoch in trange(epochs, desc="epochs", leave=False):
        model.train()
        order = torch.randperm(len(data))
        for i in range(a_pass):
            drawn = augmented(data, order[i * batch : (i + 1) * batch], transform)
            done = (epoch * a_pass + i) / steps
            rise = min(1.0, done / warm_up) if warm_up else 1.0
            for group in optimizer.param_groups:
                group["lr"] = lr * rise * (1 + math.cos(math.pi * done)) / 2
            loss = step_loss(model, drawn)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, largest_gradient)
            optimizer.step()
        after_epoch(epoch)


def trained(
    file: str, train: Animals, val: Animals, *, stem: str, epochs: int, **size: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The ViT before any guidance, and how it was trained; both kept in files where there is a name."""
    path, history = Path(file), Path(file).with_suffix(".json") if file else None
    model = build_vit(**size)
    if history and history.exists():
        load_weights(model, path)
        return model, json.loads(history.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    dropping, begin, accuracies = build_vit(stem=stem, drop=0.1, **size), time.perf_counter(), []
    fit(
        dropping, train, _smooth_loss, lr=1e-3, epochs=epochs, batch=min(64, len(train)),
        weight_decay=0.05, warm_up=0.06, largest_gradient=1.0,
        after_epoch=lambda _: accuracies.append(accuracy(dropping, val)),
    )  # fmt: skip
    model.load_state_dict(dropping.state_dict())  # without drop path: fixed maps
    found = {"seed": 0, "seconds": time.perf_counter() - begin, "val accuracy": accuracies}
    if history:
        save_weights(path, model.state_dict())
        history.write_text(json.dumps(found), encoding="utf-8")
    return model, found


def _smooth_loss(model: nn.Module, batch: Animals) -> Tensor:
    logits = model(normalize(batch.images))
    return F.cross_entropy(logits, batch.labels, label_smoothing=0.1)


@torch.no_grad()
def accuracy(model: nn.Module, data: Animals, *, batch: int = 64) -> float:
    """Share of right answers."""
    model.eval()
    right = 0
    for rows in torch.arange(len(data)).split(batch):
        answers = model(normalize(data.images[rows])).argmax(1)
        right += int((answers == data.labels[rows]).sum())
    return right / len(data)
