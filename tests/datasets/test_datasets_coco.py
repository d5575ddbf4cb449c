"""COCO: labels of ids with gaps, crowds, masks, and files that are not as published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from explainguide.datasets import COCO
from explainguide.errors import DataError, OptionError

from . import miniatures

pytest.importorskip("pycocotools")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return miniatures.coco(tmp_path)


def change(folder: Path, **changes: object) -> None:
    path = folder / "annotations/instances_train2014.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_labels_boxes_and_crowds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = COCO(folder, "train")
    assert capsys.readouterr().out == ""
    assert data.classes == ["person", "stop sign", "toothbrush"]  # ids 1, 13, 90
    assert data.multilabel
    assert data.labels.tolist() == [[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert data.annotated.tolist() == [True, True, False, False, True]
    image, labels, annotation = data[0]
    assert image.shape == (3, 30, 40)
    assert labels.tolist() == [1, 0, 1]
    assert annotation["boxes"].tolist() == [[8, 4, 24, 16], [0, 0, 4, 30]]
    assert annotation["labels"].tolist() == [2, 0]
    assert "masks" not in annotation
    assert data[1][2]["labels"].tolist() == [1]
    assert data[2][2] is None
    assert data[3][2] is None
    assert data[3][1].tolist() == [0, 0, 0]
    data[0][1][0] = 7  # a copy
    assert data.labels[0, 0] == 1


def test_masks_of_polygons_and_run_lengths(folder: Path) -> None:
    data = COCO(folder, "val2014", masks=True)
    masks = data[0][2]["masks"]
    assert masks.dtype == torch.bool
    assert masks[0, 4:16, 8:24].all()
    assert masks[0].sum() == 12 * 16
    assert data[4][2]["masks"].sum() == 12
    assert data[4][2]["masks"][0, 4:16, 8].all()


def test_years(folder: Path) -> None:
    shutil.copytree(folder / "train2014", folder / "train2017")
    annotations = folder / "annotations"
    shutil.copy(annotations / "instances_train2014.json", annotations / "instances_train2017.json")
    with pytest.raises(
        OptionError, match=r"^COCO: .*several years of 'train'.*'train2014', 'train2017'"
    ):
        COCO(folder)
    assert COCO(folder, year="2017").paths[0].parent.name == "train2017"
    assert COCO(folder, "train2014", year=2014).paths[0].parent.name == "train2014"


def test_splits_and_folders(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no instances_vall\.json\..*\('train2014', 'val2014'\)"
    ):
        COCO(folder, "vall")
    for wrong in (folder.parent, folder / "annotations", folder / "val2014"):
        with pytest.raises(
            DataError, match=rf"^COCO: root '{wrong}' has no annotations\. Give '{folder}'"
        ):
            COCO(wrong)
    shutil.rmtree(folder / "val2014")
    with pytest.raises(DataError, match=r"has no folder 'val2014'.*Unpack val2014\.zip there"):
        COCO(folder, "val")
    change(folder, images=[], annotations=[])
    with pytest.raises(DataError, match=r"instances_train2014\.json' lists no image"):
        COCO(folder)


def test_images_that_are_missing_damaged_or_of_another_size(folder: Path) -> None:
    (folder / "train2014/7.jpg").unlink()
    with pytest.warns(
        UserWarning, match=r"^COCO: 'instances_.*' lists 5 images, 1 of them .*7\.jpg"
    ):
        data = COCO(folder)
    assert [path.name for path in data.missing] == ["7.jpg"]
    assert data.labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    miniatures.picture(folder / "train2014/9.jpg", (30, 40))
    with pytest.warns(
        UserWarning, match=r"9\.jpg' is \(40, 30\) and its COCO file says \(30, 40\)"
    ):
        assert data[0] is None
    (folder / "train2014/9.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"^COCO: '.*9\.jpg' cannot be read"):
        assert data[0] is None


def test_boxes_of_stored_pixels_are_turned_with_their_picture(folder: Path) -> None:
    path = folder / "train2014/9.jpg"
    upright = COCO(folder, masks=True)[0][2]
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture is turned by a quarter to the right
    with Image.open(path) as stored:
        stored.save(path, exif=exif)
    image, _, turned = COCO(folder, masks=True)[0]
    assert image.shape == (3, 40, 30)
    assert torch.equal(turned["masks"], upright["masks"].mT.flip(2))
    x1, y1, x2, y2 = (int(v) for v in turned["boxes"][0])
    assert turned["masks"][0, y1:y2, x1:x2].all()
    assert image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 0.9


def test_references_that_lead_nowhere(folder: Path) -> None:
    change(folder, annotations=[{"id": 1, "image_id": 9, "category_id": 2, "bbox": [0, 0, 9, 9]}])
    with pytest.raises(DataError, match=r"^COCO: .*annotation 1: category_id 2 is not in the file"):
        COCO(folder)
