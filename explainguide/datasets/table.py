"""The table of data sets that ``--data NAME`` names.

A new data set is an entry here, and a file of its own. What makes it may be named rather than
imported, so that the command line can list the table without torch::

    DATASETS["voc"] = DataSource("a PASCAL VOC year folder", "explainguide.datasets.voc:VOC")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from explainguide.errors import Table
from explainguide.named import find_named, parameters_of

__all__ = ["DATASETS", "DataSource", "needed_by", "taken"]

_SHARED = ("image_set", "root", "boxes", "masks")


@dataclass(frozen=True)
class DataSource:
    """A data set as the command line knows it.

    Whether it has several labels an image, the data set itself says (``multilabel``).

    Attributes:
        help: What it is, in a few words.
        open: Makes the data set; a function, or where it is, ``module:function``. It is called by
            keyword, with what is given and what it takes:
            ``image_set`` (a split), ``root``, ``boxes`` (a file), ``masks`` (whether annotations
            should hold them), ``size`` (where `image_size` is set), and its own `options`. Without
            ``image_set``, the images to evaluate on have a ``root`` of their own. A parameter
            without a default is an option that must be given.
        train_set: The split for training, where none is named.
        val_set: The split for evaluation, where none is named.
        image_size: The side in which it draws its images; None for images of any size.
        flips: Whether an image flipped left to right is as good an image of its labels.
        normalise: Whether images are normalised, as the model or ImageNet says.
        options: Its own options of the command line, name to help; their values are strings.
    """

    help: str
    open: Callable[..., Any] | str
    train_set: str = "train"
    val_set: str = "val"
    image_size: int | None = None
    flips: bool = True
    normalise: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def factory(self) -> Callable[..., Any]:
        """The function of `open`, imported."""
        function: Callable[..., Any] = (
            find_named(self.open) if isinstance(self.open, str) else self.open
        )
        return function


_OWN: dict[str, DataSource] = {
    "decoy": DataSource(
        "embedded digits",
        "explainguide.datasets.decoy:open_data",
        val_set="test",
        image_size=48,
        flips=False,  # a mirrored digit is none
        normalise=False,
        options={"decoy": "class, random or none (default: class in train, random in test)"},
    ),
    "voc": DataSource("a PASCAL VOC year folder", "explainguide.datasets.voc:VOC"),
    "folder": DataSource(
        "one folder of images a class", "explainguide.datasets.image_folder:open_data"
    ),
    "waterbirds": DataSource(
        "birds on land and water",
        "explainguide.datasets.waterbirds:Waterbirds",
        options={
            "segmentations": "CUB-200-2011's folder segmentations",
            "task": "bird or background (default: bird)",
            "bias": "published, or complete: no landbird on water and no waterbird on land but in the "
            "test (default: published)",
        },
    ),
    "coco": DataSource(
        "COCO as published",
        "explainguide.datasets.coco:COCO",
        options={"year": "2014 or 2017, where there are both"},
    ),
    "imagenet9": DataSource(
        "the backgrounds challenge",
        "explainguide.datasets.imagenet9:ImageNet9",
        options={"variant": "original, mixed_rand, only_fg and so on (default: original)"},
    ),
    "imagenet_s": DataSource(
        "ImageNet with masks",
        "explainguide.datasets.imagenet_s:ImageNetS",
        train_set="train-semi",
        val_set="validation",
    ),
    "pets": DataSource(
        "the Oxford-IIIT pets",
        "explainguide.datasets.pets:OxfordPets",
        options={"border": "of the trimaps: out of the animal or in (default: out)"},
    ),
    "isic2017": DataSource("lesions of the skin", "explainguide.datasets.isic2017:ISIC2017"),
    "textured": DataSource(
        "MNIST filled with textures",
        "explainguide.datasets.textured:open_data",
        image_size=224,
        flips=False,  # a mirrored digit is none
        options={
            "textures": "the folder of DTD",
            "background_randomness": "p, in training and validation (default: 0; 1 in the test)",
            "digit_randomness": "q (default: 1)",
            "digit_textures": "ten names with commas, or all (default: the first ten)",
            "background_textures": "ten names or more, or all (default: all others)",
            "digit": "side of the digit in pixels (default: --size)",
        },
    ),
    "composite": DataSource(
        "animals pasted on scenes",
        "explainguide.datasets.composite:open_data",
        image_size=128,
        options={
            "backgrounds": "the folder of scenes",
            "pairs": "classes and their scenes (default: cat=forest,dog=street)",
            "correlation": "share on the own scene in training and validation (default: 0.95)",
            "task": "foreground or background (default: foreground)",
        },
    ),
}


DATASETS: Table[str, DataSource] = Table("DATASETS", _OWN, origin=lambda entry: entry.open)


def taken(source: DataSource) -> dict[str, bool]:
    """What `DataSource.open` takes of all that can be asked for, and whether it must be given.

    Without splits the root must be, or training and evaluation could see the same images.

    Example:
        >>> def photos(root=".", *, masks=False): ...
        >>> taken(DataSource("photos", photos))
        {'root': True, 'masks': False}
    """
    given = parameters_of(source.factory, _name_of(source))
    takes_all = any(p.kind is p.VAR_KEYWORD for p in given)
    parameters = {parameter.name for parameter in given}
    drawn = () if source.image_size is None else ("size",)
    names = (*_SHARED, *drawn, *source.options)
    names = tuple(name for name in names if takes_all or name in parameters)
    needed = [*needed_by(source), *(["root"] if "image_set" not in names else [])]
    return {name: name in needed for name in names}


def needed_by(source: DataSource) -> list[str]:
    """The parameters of its function that have no default."""
    parameters = parameters_of(source.factory, _name_of(source))
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in several]


def _name_of(source: DataSource) -> str:
    return source.open if isinstance(source.open, str) else source.open.__name__
