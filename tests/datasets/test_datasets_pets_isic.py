"""The Oxford-IIIT pets and ISIC 2017: masks, splits, and files that are not as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from explainguide.datasets import ISIC2017, OxfordPets
from explainguide.errors import DataError, OptionError

from . import miniatures


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return miniatures.pets(tmp_path)


@pytest.fixture
def skin(tmp_path: Path) -> Path:
    return miniatures.isic2017(tmp_path)


def test_trimaps(pets: Path) -> None:
    data = OxfordPets(pets, masks=True)
    assert data.classes == ["Abyssinian", "american_bulldog", "Birman"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    image, label, annotation = data[2]
    assert image.shape == (3, 30, 40)
    assert label == 1
    assert annotation["boxes"].tolist() == [[8, 5, 24, 16]]
    assert annotation["labels"].tolist() == [1]
    assert annotation["masks"].sum() == 11 * 16
    assert OxfordPets(pets, border="in")[2][2]["boxes"].tolist() == [[8, 4, 24, 16]]
    assert OxfordPets(pets, "test").labels.tolist() == [2]


def test_training_and_validation_are_trainval(pets: Path) -> None:
    lines = [f"cat_{n} 1 1 1" for n in range(40)]
    (pets / "annotations/trainval.txt").write_text("\n".join(lines))
    for n in range(40):
        miniatures.picture(pets / f"images/cat_{n}.jpg", (4, 4), None)
    parts = [
        {path.stem for path in OxfordPets(pets, s).paths} for s in ("train", "val", "trainval")
    ]
    assert [len(part) for part in parts] == [36, 4, 40]
    assert parts[0] | parts[1] == parts[2]
    assert not OxfordPets(pets, "train").annotated.any()  # they have no trimaps


def test_bad_pets(pets: Path) -> None:
    with pytest.raises(OptionError, match=r"^OxfordPets: unknown image_set 'training'"):
        OxfordPets(pets, "training")
    with pytest.raises(DataError, match=r"split 'val' of '.*trainval\.txt' is empty"):
        OxfordPets(pets, "val")
    for wrong in (pets.parent, pets / "images"):
        with pytest.raises(DataError, match=rf"root '{wrong}' has no images and no ann.*'{pets}'"):
            OxfordPets(wrong)
    (pets / "annotations/test.txt").write_text("Birman_3\n")
    with pytest.raises(DataError, match=r"test\.txt', line 1: 'Birman_3' has no class"):
        OxfordPets(pets, "test")
    (pets / "annotations/list.txt").unlink()
    with pytest.raises(DataError, match=r"list\.txt' does not exist.*annotations\.tar\.gz"):
        OxfordPets(pets)


def test_files_of_pets_that_are_missing_or_damaged(pets: Path) -> None:
    (pets / "images/Abyssinian_1.jpg").unlink()
    with pytest.warns(UserWarning, match=r"^OxfordPets: split 'trainval' lists 4 images, 1 of"):
        data = OxfordPets(pets)
    assert data.labels.tolist() == [0, 1, 1]
    assert data[0][2]["boxes"].tolist() == [[8, 5, 24, 16]]
    path = pets / "annotations/trimaps/Abyssinian_2.png"
    miniatures.mask(path, miniatures.filled(255))
    with pytest.raises(
        DataError, match=r"Abyssinian_2\.png' is a mask with the value 0, .*1 for the animal, 2 for"
    ):
        data[0]
    miniatures.mask(path, np.ones((30, 40, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"Abyssinian_2\.png' is a mask with the value 1, "):
        data[0]
    path.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"Abyssinian_2\.png' cannot be read as a mask"):
        assert data[0] is None
    data.paths[1].write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"^OxfordPets: '.*bulldog_10\.jpg' cannot be read"):
        assert data[1] is None


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_lesions(skin: Path, split: str) -> None:
    data = ISIC2017(skin, split, masks=True)
    assert data.classes == ["nevus", "melanoma", "seborrheic_keratosis"]
    assert data.labels.tolist() == [0, 1, 2]
    image, label, annotation = data[1]
    assert image.shape == (3, 30, 40)
    assert label == 1
    assert annotation["boxes"].tolist() == [[8, 4, 24, 16]]
    assert annotation["masks"].sum() == 12 * 16


def test_bad_isic(skin: Path) -> None:
    with pytest.raises(OptionError, match=r"^ISIC2017: unknown image_set 'training'"):
        ISIC2017(skin, "training")
    for wrong in (skin.parent, skin / "ISIC-2017_Training_Data"):
        with pytest.raises(
            DataError, match=rf"root '{wrong}' has no ISIC-2017_Train.*Give '{skin}'"
        ):
            ISIC2017(wrong)
    path = skin / "ISIC-2017_Training_Part3_GroundTruth.csv"
    for text, message in (
        ("image_id,melanoma\nISIC_0000000,0.0\n", r"no column 'seborrheic_keratosis'"),
        ("image_id,melanoma,seborrheic_keratosis\n", r"split 'train' is empty"),
        (
            "image_id,melanoma,seborrheic_keratosis\nISIC_0000000,1.0,1.0\n",
            r"shows melanoma and seb",
        ),
        ("image_id,melanoma,seborrheic_keratosis\nISIC_0000000,yes,0\n", r"has melanoma 'yes' for"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"^ISIC2017: .*{message}"):
            ISIC2017(skin)


def test_files_of_isic_that_are_missing_or_damaged(skin: Path) -> None:
    data = ISIC2017(skin)
    path = skin / "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png"
    miniatures.mask(path, miniatures.filled(1))
    with pytest.raises(
        DataError, match=r"_segmentation\.png' is a mask with the value 1, .*0 and 255"
    ):
        data[0]
    path.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"_segmentation\.png' cannot be read as a mask"):
        assert data[0] is None
    data.paths[1].write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"^ISIC2017: '.*ISIC_0000001\.jpg' cannot be read"):
        assert data[1] is None
    path.unlink()
    assert ISIC2017(skin).annotated.tolist() == [False, True, True]
    data.paths[1].unlink()
    with pytest.warns(UserWarning, match=r"lists 3 images, 1 of them without.*ISIC_0000001\.jpg"):
        assert ISIC2017(skin).labels.tolist() == [0, 2]
