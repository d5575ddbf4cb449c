"""VOC: boxes, labels, difficult objects and masks, on small folders made here."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from explainguide.datasets import VOC, VOC_CLASSES
from explainguide.errors import DataError, OptionError

if TYPE_CHECKING:
    from conftest import VOCFolder

CAT, DOG, PERSON = (VOC_CLASSES.index(n) for n in ("cat", "dog", "person"))


def test_item(voc: VOCFolder) -> None:
    data = VOC(voc.small().folder, "train")
    image, labels, annotation = data[0]
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert image.shape == (3, 30, 40)
    assert image.max() <= 1
    assert labels.dtype == torch.float32
    assert labels.nonzero().flatten().tolist() == [DOG, PERSON]
    assert annotation is not None
    assert sorted(annotation) == ["boxes", "labels"]
    # 1-based inclusive corners become 0-based with the right and bottom edge outside.
    assert annotation["boxes"].tolist() == [[4, 5, 14, 15], [20, 0, 40, 30]]
    assert tuple(annotation["boxes"].canvas_size) == (30, 40)
    assert annotation["labels"].tolist() == [DOG, PERSON]
    assert image[0, 5:15, 4:14].min() > 0.8
    assert data.multilabel
    assert data.num_classes == 20
    assert data.classes == sorted(data.classes)
    assert len([data[i] for i in range(len(data))]) == 3
    with pytest.raises(IndexError):
        data[3]


def test_difficult(voc: VOCFolder) -> None:
    ignored = VOC(voc.small().folder, "train")
    assert ignored.labels.sum(1).tolist() == [2, 1, 0]
    assert ignored[1][2]["labels"].tolist() == [CAT]
    assert ignored[2][2]["boxes"].shape == (0, 4)  # annotated, with nothing in it
    assert ignored.difficult_only.nonzero().tolist() == [[1, DOG], [2, CAT]]
    included = VOC(voc.folder, "train", difficult="include")
    assert included.labels.sum(1).tolist() == [2, 2, 1]
    assert included[1][2]["labels"].tolist() == [CAT, DOG]
    assert torch.equal(included.difficult_only, ignored.difficult_only)


def test_masks_are_the_class_inside_the_box(voc: VOCFolder) -> None:
    segmentation = np.zeros((30, 40), dtype=np.uint8)
    segmentation[2:20, 2:20] = DOG + 1
    segmentation[2:20, 18:20] = 255  # void is no object
    segmentation[8:10, 8:10] = PERSON + 1
    voc.small().add(
        "000004",
        [("dog", (5, 6, 25, 15)), ("dog", (1, 1, 4, 4)), ("cat", (9, 9, 12, 12))],
        segmentation=segmentation,
    )
    voc.split("train", "000001", "000004")
    data = VOC(voc.folder, "train", masks=True)
    assert data.has_mask.tolist() == [False, True]
    assert "masks" not in data[0][2]
    annotation = data[1][2]
    assert annotation["labels"].tolist() == [DOG, DOG]  # the cat has no pixel: dropped
    expected = np.zeros((2, 30, 40), dtype=bool)
    expected[0, 5:15, 4:18] = True
    expected[0, 8:10, 8:10] = False
    expected[1, 2:4, 2:4] = True
    assert annotation["masks"].dtype == torch.bool
    assert np.array_equal(annotation["masks"].numpy(), expected)
    assert "masks" not in VOC(voc.folder, "train")[1][2]
    only = VOC(voc.folder, "train", masks=True, only_masked=True)
    assert only.ids == ["000004"]


def test_transforms_keep_boxes_masks_and_image_in_step(voc: VOCFolder) -> None:
    segmentation = np.zeros((30, 40), dtype=np.uint8)
    segmentation[5:15, 4:14] = DOG + 1
    voc.add("1", [("dog", (5, 6, 14, 15))], segmentation=segmentation).split("train", "1")
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(1.0),
            v2.Resize((60, 80)),
            v2.CenterCrop(50),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    image, _, annotation = VOC(voc.folder, "train", masks=True, transforms=transforms)[0]
    assert image.shape == (3, 50, 50)
    assert annotation["boxes"].tolist() == [[37, 5, 50, 25]]  # 52..72 less the crop's 15
    assert annotation["masks"].nonzero().amin(0).tolist() == [0, 5, 37]
    assert image[0, 7:23, 39:].min() > 0.8
    assert image[0, :, :35].max() < 0.2
    lost = VOC(voc.folder, "train", transforms=v2.CenterCrop(4))[0]
    assert lost[2]["boxes"].shape == (0, 4)
    assert lost[1][DOG] == 1  # the label is the whole image's


@pytest.mark.parametrize("up", [0, 1, 2])
def test_root_may_be_the_year_folder_or_above(voc: VOCFolder, up: int) -> None:
    folder = voc.small().folder
    root = [folder, folder.parent, folder.parent.parent][up]
    assert VOC(root, "train").folder == folder
    assert VOC(str(root), "train", year=2007).folder == folder


def test_several_years(voc: VOCFolder) -> None:
    voc.small()
    other = type(voc)(voc.folder.parent / "VOC2012")
    other.add("2012_1", [("cat", (1, 1, 5, 5))]).split("train", "2012_1")
    with pytest.raises(OptionError, match=r"several years.*year=.*VOC2007, VOC2012"):
        VOC(voc.folder.parent, "train")
    assert VOC(voc.folder.parent, "train", year="2012").ids == ["2012_1"]
    with pytest.raises(DataError, match=r"holds no folder VOC2010"):
        VOC(voc.folder.parent, "train", year=2010)
    with pytest.raises(OptionError, match=r"unknown year '2031'"):
        VOC(voc.folder.parent, "train", year=2031)


def test_splits(voc: VOCFolder) -> None:
    voc.small().split("cat_train", "000001 -1", "000002  1", "000003  0")
    voc.split("mine", "000002 cat", "", "000003 dog")
    sets = voc.folder / "ImageSets"
    (sets / "own.txt").write_text("000003\n")
    (sets / "Segmentation").mkdir()
    (sets / "Segmentation" / "val.txt").write_text("000001\n")
    assert VOC(voc.folder, "cat_train").ids == ["000002"]
    assert VOC(voc.folder, "cat_train", difficult="include").ids == ["000002", "000003"]
    assert VOC(voc.folder, "mine").ids == ["000002", "000003"]
    assert VOC(voc.folder, "own").ids == ["000003"]
    assert VOC(voc.folder, "Segmentation/val").ids == ["000001"]
    message = r"^VOC: .*no split 'trian'\. Did you mean 'train'.*Available: mine, train, .*own\.$"
    with pytest.raises(DataError, match=message):
        VOC(voc.folder, "trian")
    voc.split("empty", "")
    with pytest.raises(DataError, match=r"lists no image .*\. Use another split\."):
        VOC(voc.folder, "empty")


def test_annotated_fraction(voc: VOCFolder) -> None:
    data = VOC(voc.small().folder, "train", annotated=0.34, seed=1)
    assert data.annotated.sum() == 1
    assert [data[i][2] is not None for i in range(3)] == data.annotated.tolist()


def test_own_classes(voc: VOCFolder) -> None:
    voc.add("1", [("lynx", (1, 1, 5, 5))]).split("train", "1")
    with pytest.raises(DataError, match=r"1\.xml' has an object of class 'lynx'\..*classes="):
        VOC(voc.folder, "train")
    data = VOC(voc.folder, "train", classes=["bear", "lynx"])
    assert data[0][1].tolist() == [0, 1]
    for bad in ("lynx", ["lynx", "lynx"], []):
        with pytest.raises(OptionError, match="classes must be distinct names"):
            VOC(voc.folder, "train", classes=bad)


def test_unusual_but_valid_xml(voc: VOCFolder) -> None:
    voc.small().xml(
        "000002", "<annotation><folder>VOC2007</folder></annotation>"
    )  # no object, no size
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    voc.xml(
        "000003",
        f"<annotation><object><name>person</name>{part}<bndbox><xmin>1.6</xmin><ymin>1</ymin>"
        "<xmax>5</xmax><ymax>1</ymax></bndbox></object></annotation>",
    )
    data = VOC(voc.folder, "train")
    assert data[1][2]["boxes"].shape == (0, 4)
    assert data[2][2]["boxes"].flatten().tolist() == pytest.approx([0.6, 0, 5, 1])


def drop_none(batch: list[Any]) -> list[Any]:
    return [item for item in batch if item is not None]


def test_pickles(voc: VOCFolder) -> None:
    data = pickle.loads(pickle.dumps(VOC(voc.small().folder, "train")))
    assert data[0][2]["labels"].tolist() == [DOG, PERSON]


@pytest.mark.slow
def test_workers(voc: VOCFolder) -> None:
    path = voc.small().folder / "JPEGImages" / "000002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    data = VOC(voc.folder, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # in the workers a warning must stay one
        loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=drop_none)
        batches = list(loader)
    assert [len(batch) for batch in batches] == [1, 0, 1]
    assert batches[0][0][2]["boxes"].tolist() == data[0][2]["boxes"].tolist()
