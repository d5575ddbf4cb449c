"""Datasets whose items carry boxes or masks: ``(image, labels, annotation)``.

See :mod:`explainguide.datasets.items` for the form of an item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide.datasets.decoy import DecoyDigits
    from explainguide.datasets.image_folder import ImageFolder
    from explainguide.datasets.table import DATASETS, DataSource
    from explainguide.datasets.voc import VOC, VOC_CLASSES

__all__ = ["DATASETS", "VOC", "VOC_CLASSES", "DataSource", "DecoyDigits", "ImageFolder"]

# The command line lists the table without torch.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "DATASETS": "table",
        "DataSource": "table",
        "DecoyDigits": "decoy",
        "ImageFolder": "image_folder",
        "VOC": "voc",
        "VOC_CLASSES": "voc",
    },
)
