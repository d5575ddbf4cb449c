"""Guidance in three lines, around an ordinary training loop: a ResNet on one made-up batch.

    python examples/three_lines.py

Each image is noise with one bright square, whose colour is the class and whose box is known.
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch import nn

from explainguide import ExplanationGuidance


def make_batch(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
    """Images, class indices, and one box an image as in torchvision's detection references."""
    images, labels = 0.3 * torch.rand(count, 3, size, size), torch.arange(count) % 3
    corners = torch.randint(0, size * 2 // 3, (count, 2))
    annotations = []
    for image, label, (x, y) in zip(images, labels, corners.tolist(), strict=True):
        image[label, y : y + size // 3, x : x + size // 3] += 0.7
        box = torch.tensor([[x, y, x + size // 3, y + size // 3]])
        annotations.append({"boxes": box, "labels": label[None]})
    return images, labels, annotations


def main() -> None:
    """Train on the batch and print both losses."""
    parser = argparse.ArgumentParser(description="Guidance in three lines.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lam", type=float, default=1.0, help="weight of the localization loss")
    parser.add_argument("--smoke", action="store_true", help="a few steps on small images")
    args = parser.parse_args()
    steps, size = (12, 64) if args.smoke else (args.steps, 128)

    torch.manual_seed(0)
    images, labels, annotations = make_batch(12, size)
    model = timm.create_model("resnet18", num_classes=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()

    guide = ExplanationGuidance(model, layer="layer3", attribution="ixg", loss="energy")  # 1
    print(guide)
    for step in range(steps):
        logits = model(images)  # the script's own line, unchanged
        loss_loc = guide.loss_loc(annotations)  # 2
        loss = criterion(logits, labels) + args.lam * loss_loc  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(steps // 8, 1) == 0 or step == steps - 1:
            print(f"step {step:2d}  loss {loss.item():.3f}  loss_loc {loss_loc.item():.3f}")
    print(guide.check(images, annotations))
    guide.remove()


if __name__ == "__main__":
    main()
