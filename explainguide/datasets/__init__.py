"""Datasets whose items carry boxes or masks: ``(image, labels, annotation)``, or with a group.

See :mod:`explainguide.datasets.items` for the form of an item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide.datasets.coco import COCO
    from explainguide.datasets.composite import Composite
    from explainguide.datasets.decoy import DecoyDigits
    from explainguide.datasets.image_folder import ImageFolder
    from explainguide.datasets.imagenet9 import ImageNet9
    from explainguide.datasets.imagenet_s import ImageNetS
    from explainguide.datasets.isic2017 import ISIC2017
    from explainguide.datasets.pets import OxfordPets
    from explainguide.datasets.table import DATASETS, DataSource
    from explainguide.datasets.textured import TexturedMNIST
    from explainguide.datasets.voc import VOC, VOC_CLASSES
    from explainguide.datasets.waterbirds import Waterbirds

__all__ = [
    "COCO",
    "DATASETS",
    "ISIC2017",
    "VOC",
    "VOC_CLASSES",
    "Composite",
    "DataSource",
    "DecoyDigits",
    "ImageFolder",
    "ImageNet9",
    "ImageNetS",
    "OxfordPets",
    "TexturedMNIST",
    "Waterbirds",
]

# The command line lists the table without torch.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "COCO": "coco",
        "Composite": "composite",
        "ISIC2017": "isic2017",
        "ImageNet9": "imagenet9",
        "ImageNetS": "imagenet_s",
        "OxfordPets": "pets",
        "TexturedMNIST": "textured",
        "Waterbirds": "waterbirds",
        "DATASETS": "table",
        "DataSource": "table",
        "DecoyDigits": "decoy",
        "ImageFolder": "image_folder",
        "VOC": "voc",
        "VOC_CLASSES": "voc",
    },
)
