"""Images without labels, from which a converted network learns its features again."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

__all__ = ["read_folder"]


def read_folder(folder: str | Path, size: int) -> Tensor:
    """All of a folder's .jpg files, squashed, as ``(N, 3, size, size)`` of bytes."""
    shrink = v2.Compose([v2.PILToTensor(), v2.Resize((size, size), antialias=True)])
    files = sorted(Path(folder).glob("*.jpg"))
    if not files:
        raise SystemExit(f"--unlabelled: '{folder}' has no .jpg files. Name a folder of images.")
    bar = tqdm(files, desc=f"reading {folder}")
    return torch.stack([shrink(Image.open(file).convert("RGB")) for file in bar])
