"""ImageNet-9 and ImageNet-S: variants, masks, and folders that are not as published."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from explainguide.datasets import ImageNet9, ImageNetS
from explainguide.errors import DataError, OptionError

from . import miniatures


@pytest.fixture
def nine(tmp_path: Path) -> Path:
    return miniatures.imagenet9(tmp_path)


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    return miniatures.imagenet_s(tmp_path)


def test_the_original_images_have_masks(nine: Path) -> None:
    data = ImageNet9(nine, masks=True)
    assert data.classes == ["dog", "bird"]
    assert data.labels.tolist() == [0, 1]
    image, label, annotation = data[1]
    assert image.shape == (3, 20, 20)
    assert label == 1
    assert annotation["boxes"].tolist() == [[4, 6, 12, 14]]
    assert annotation["labels"].tolist() == [1]
    assert annotation["masks"].sum() == 64
    assert "masks" not in ImageNet9(nine)[1][2]
    assert not ImageNet9(nine, "train").annotated.any()


def test_mixed_images_have_the_mask_of_their_object(nine: Path) -> None:
    data = ImageNet9(nine, variant="mixed_rand")
    assert [path.stem for path in data.paths[:2]] == ["fg_n02_1_bg_n09_7", "fg_n02_2_bg_n09_7"]
    assert data.annotated.tolist() == [True, False, True, False]
    assert data[0][2]["boxes"].tolist() == [[4, 6, 12, 14]]
    assert data[1][2] is None


def test_where_there_is_no_object_there_is_no_annotation(nine: Path) -> None:
    assert ImageNet9(nine, variant="only_fg").annotated.all()
    assert not ImageNet9(nine, variant="only_bg_b").annotated.any()
    shutil.rmtree(nine / "fg_mask")
    assert not ImageNet9(nine).annotated.any()


def test_other_folders_of_imagenet9(nine: Path) -> None:
    with pytest.raises(
        OptionError, match=r"^ImageNet9: unknown variant 'mixed_random'.*'mixed_rand'"
    ):
        ImageNet9(nine, variant="mixed_random")
    for wrong in (nine.parent, nine / "original", nine / "original/val"):
        with pytest.raises(DataError, match=rf"^ImageNet9: root '{wrong}' has no .*Give '{nine}'"):
            ImageNet9(wrong, variant="only_fg")
    with pytest.raises(
        DataError, match=r"'.*mixed_rand' has no split 'train'.*'val' of this folder"
    ):
        ImageNet9(nine, "train", variant="mixed_rand")
    with pytest.raises(OptionError, match=r"unknown image_set 'test'"):
        ImageNet9(nine, "test")
    shutil.rmtree(nine / "original/val/00_dog")
    shutil.rmtree(nine / "original/val/01_bird")
    with pytest.raises(DataError, match=r"original/val' holds no images in folders of classes"):
        ImageNet9(nine)


def test_masks_of_imagenet9_that_are_none(nine: Path) -> None:
    path, data = nine / "fg_mask/val/00_dog/n02_1.npy", ImageNet9(nine)
    np.save(path, np.full((20, 20), 7))
    with pytest.raises(DataError, match=r"^ImageNet9: '.*n02_1\.npy' is a mask with the value 7"):
        data[0]
    np.save(path, np.zeros((30, 20)))
    with pytest.warns(UserWarning, match=r"n02_1\.npy' is \(30, 20\) and its image \(20, 20\)"):
        assert data[0] is None
    path.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"n02_1\.npy' cannot be read as a mask"):
        assert data[0] is None
    np.save(path, np.zeros((20, 20)))
    assert len(data[0][2]["boxes"]) == 0
    data.paths[0].write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"^ImageNet9: '.*n02_1\.JPEG' cannot be read"):
        assert data[0] is None


def test_ids_above_255_are_in_two_channels(segmented: Path) -> None:
    data = ImageNetS(segmented, "train-semi", masks=True)
    assert (len(data), data.num_classes) == (3, 300)
    assert data.labels.tolist() == [0, 1, 299]
    assert data.classes[299] == "n10000299"
    for index, label in enumerate((0, 1, 299)):
        annotation = data[index][2]
        assert annotation["labels"].tolist() == [label]
        assert annotation["boxes"].tolist() == [[8, 4, 24, 16]]
        assert annotation["masks"].sum() == 12 * 16  # not the pixels that are left open


def test_each_class_of_an_image_is_an_object(segmented: Path) -> None:
    path = segmented / "validation-segmentation/n10000000/a.png"
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:10, :20, 0], pixels[10:20, 20:, :2] = 1, (300 % 256, 1)
    miniatures.mask(path, pixels)
    annotation = ImageNetS(segmented, "validation")[0][2]
    assert annotation["labels"].tolist() == [0, 299]
    assert annotation["boxes"].tolist() == [[0, 0, 20, 10], [20, 10, 40, 20]]


def test_the_training_images_have_the_masks_of_train_semi(segmented: Path) -> None:
    data = ImageNetS(segmented, "train")
    assert data.annotated.tolist() == [True, False, True, True]
    assert data[1][2] is None


def test_other_folders_of_imagenet_s(segmented: Path) -> None:
    with pytest.raises(
        DataError, match=r"^ImageNetS: .*no split 'validate'\. Did you mean 'validation'"
    ):
        ImageNetS(segmented, "validate")
    with pytest.raises(DataError, match=r"no split 'train-semi-segmentation'"):
        ImageNetS(segmented, "train-semi-segmentation")
    for wrong in (segmented.parent, segmented / "train-semi"):
        with pytest.raises(
            DataError, match=rf"root '{wrong}' has no validation\. Give '{segmented}'"
        ):
            ImageNetS(wrong)


def test_masks_of_imagenet_s_of_other_values(segmented: Path) -> None:
    path = segmented / "train-semi-segmentation/n10000000/a.png"
    data = ImageNetS(segmented)
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[0, 0, :2] = (301 % 256, 1)
    miniatures.mask(path, pixels)
    with pytest.raises(
        DataError,
        match=r"^ImageNetS: '.*a\.png' is a mask with the value 301.*from 0 to 300, and 1000",
    ):
        data[0]
    miniatures.mask(path, pixels[..., 0])
    with pytest.raises(DataError, match=r"a\.png' is a mask without colours"):
        data[0]
    data.paths[0].write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"^ImageNetS: '.*a\.JPEG' cannot be read"):
        assert data[0] is None
