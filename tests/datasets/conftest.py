"""Small folders of images, written for one test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object>"""


def save_image(path: Path, size: tuple[int, int], painted: Sequence[int] | None = None) -> None:
    """Black, with one white XYXY region; ``size`` is (width, height)."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    if painted is not None:
        x1, y1, x2, y2 = painted
        pixels[y1:y2, x1:x2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


class VOCFolder:
    """Writes a VOC year folder; boxes are given as VOC does, 1-based and inclusive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("Annotations", "JPEGImages", "ImageSets/Main", "SegmentationClass"):
            (folder / part).mkdir(parents=True)

    def add(
        self,
        image_id: str,
        objects: Sequence[tuple[Any, ...]],
        size: tuple[int, int] = (40, 30),
        segmentation: np.ndarray | None = None,
    ) -> VOCFolder:
        painted = None
        if objects:
            x1, y1, x2, y2 = (int(v) for v in objects[0][1])
            painted = (x1 - 1, y1 - 1, x2, y2)
        save_image(self.folder / "JPEGImages" / f"{image_id}.jpg", size, painted)
        parts = [
            VOC_OBJECT.format(name=o[0], box=o[1], difficult=int(len(o) > 2 and o[2]))
            for o in objects
        ]
        self.xml(
            image_id,
            f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
            f"{''.join(parts)}</annotation>",
        )
        if segmentation is not None:
            picture = Image.fromarray(segmentation.astype(np.uint8))
            picture.putpalette([0] * 768)  # indices with colours, as VOC's files
            picture.save(self.folder / "SegmentationClass" / f"{image_id}.png")
        return self

    def xml(self, image_id: str, text: str) -> None:
        (self.folder / "Annotations" / f"{image_id}.xml").write_text(text)

    def small(self) -> VOCFolder:
        """Three images: two objects; one and a difficult one; a difficult one alone."""
        self.add("000001", [("dog", (5, 6, 14, 15)), ("person", (21, 1, 40, 30))])
        self.add("000002", [("cat", (1, 1, 10, 10)), ("dog", (11, 11, 20, 20), True)])
        self.add("000003", [("cat", (3, 3, 9, 9), True)])
        return self.split("train", "000001", "000002", "000003")

    def split(self, name: str, *lines: str) -> VOCFolder:
        (self.folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        return self


@pytest.fixture
def voc(tmp_path: Path) -> VOCFolder:
    return VOCFolder(tmp_path / "VOCdevkit" / "VOC2007")


@pytest.fixture
def paint() -> Callable[..., None]:
    return save_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two cats and a dog, 40 wide and 30 high, each with a white region."""
    root = tmp_path / "photos"
    save_image(root / "cat" / "a.png", (40, 30), (4, 6, 14, 16))
    save_image(root / "cat" / "b.png", (40, 30), (20, 10, 30, 20))
    save_image(root / "dog" / "c.png", (40, 30), (0, 0, 8, 8))
    return root
