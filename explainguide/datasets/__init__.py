"""Datasets whose items carry boxes or masks: ``(image, labels, annotation)``.

See :mod:`explainguide.datasets.items` for the form of an item.
"""

from explainguide.datasets.decoy import DecoyDigits
from explainguide.datasets.image_folder import ImageFolder
from explainguide.datasets.voc import VOC, VOC_CLASSES

__all__ = ["VOC", "VOC_CLASSES", "DecoyDigits", "ImageFolder"]
