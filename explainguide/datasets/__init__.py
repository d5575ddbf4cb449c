"""Datasets whose items carry boxes or masks: ``(image, labels, annotation)``.

See :mod:`explainguide.datasets.items` for the form of an item.
"""

# Not by alphabet: the command line names them in this order.
from explainguide.datasets.decoy import DecoyDigits
from explainguide.datasets.voc import VOC, VOC_CLASSES

# isort: split
from explainguide.datasets.image_folder import ImageFolder
from explainguide.datasets.table import DATASETS, DataSource

__all__ = ["DATASETS", "VOC", "VOC_CLASSES", "DataSource", "DecoyDigits", "ImageFolder"]
