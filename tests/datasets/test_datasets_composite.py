"""Composite: who lies where, pasting against an obvious reference, and folders that do not fit."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from explainguide import Annotations
from explainguide.datasets import DATASETS, Composite
from explainguide.datasets.pasting import cut_square, paste
from explainguide.errors import DataError, OptionError

from . import miniatures

GREY = {"cat": 100, "dog": 200, "forest": 20, "street": 60, "sea": 90}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return miniatures.animals(tmp_path)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return miniatures.scenes(tmp_path)


def test_an_image_is_an_animal_on_a_scene(folder: Path, scenes: Path) -> None:
    data = Composite(folder, backgrounds=scenes, size=64, masks=True)
    assert data.classes == ["cat", "dog"]
    assert data.groups == ["cat on forest", "cat on street", "dog on forest", "dog on street"]
    for index in range(len(data)):
        image, label, annotation, group = data[index]
        animal, _, scene = data.groups[group].partition(" on ")
        assert data.classes[label] == animal
        assert annotation["labels"].tolist() == [label]
        mask = annotation["masks"][0]
        values = (image[0] * 255).round()
        # No soft edge here: the animal is all of one grey, and its box is full.
        assert values[mask].unique().tolist() == [GREY[animal]]
        assert values[~mask].unique().tolist() == [GREY[scene]]
        x1, y1, x2, y2 = (int(v) for v in annotation["boxes"][0])
        assert mask.sum() == (x2 - x1) * (y2 - y1)
        assert 0.5 * 64 - 1 <= x2 - x1 <= 0.8 * 64 + 1
        assert (y2 - y1) / (x2 - x1) == pytest.approx(12 / 16, abs=0.03)
        assert data.scenes[index].parent.name == scene


@pytest.mark.parametrize(
    ("split", "correlation", "expected"),
    [
        ("train", None, [19, 1, 1, 19]),
        ("val", None, [4, 0, 0, 4]),
        ("test", None, [4, 4, 4, 4]),
        ("train", 1.0, [20, 0, 0, 20]),
        ("train", 0.5, [10, 10, 10, 10]),
        ("train", 0, [0, 20, 20, 0]),
    ],
)
def test_the_share_on_the_own_scene_is_exact(
    folder: Path, scenes: Path, split: str, correlation: float | None, expected: list[int]
) -> None:
    data = Composite(folder, split, backgrounds=scenes, correlation=correlation)
    assert torch.bincount(data.group_of, minlength=4).tolist() == expected
    assert len(set(data.paths)) == len(data)


def test_other_pairs(folder: Path, scenes: Path) -> None:
    data = Composite(folder, backgrounds=scenes, pairs="dog=sea, cat=street", correlation=0.8)
    assert data.classes == ["dog", "cat"]
    assert data.groups == ["dog on sea", "dog on street", "cat on sea", "cat on street"]
    assert torch.bincount(data.group_of).tolist() == [16, 4, 4, 16]
    assert data[0][1] == data.classes.index(data.paths[0].stem[6:9])


@pytest.mark.parametrize("masks", [False, True])
def test_the_reversed_task(folder: Path, scenes: Path, masks: bool) -> None:
    options = {"backgrounds": scenes, "size": 48, "masks": masks}
    animal = Composite(folder, **options)
    scene = Composite(folder, **options, task="background")
    assert scene.classes == ["forest", "street"]
    for index in range(6):
        image, label, region, group = scene[index]
        assert torch.equal(image, animal[index][0])
        assert group == animal[index][3]
        assert scene.groups[group].endswith(f" on {scene.classes[label]}")
        regions = [
            Annotations.from_targets([annotation], canvas=(48, 48)).region(
                torch.tensor([-1]), (48, 48)
            )
            for annotation in (region, animal[index][2])
        ]
        assert torch.equal(regions[0], 1 - regions[1])


def test_the_seed_decides(folder: Path, scenes: Path) -> None:
    a, b, c = (Composite(folder, backgrounds=scenes, seed=s) for s in (2, 2, 3))
    assert all(torch.equal(a[i][0], b[i][0]) for i in range(6))
    assert a.scenes == b.scenes != c.scenes
    few = Composite(folder, backgrounds=scenes, annotated=0.1)
    assert int(few.annotated.sum()) == 4
    assert sum(few[i][2] is not None for i in range(40)) == 4


def test_no_picture_of_a_scene_is_in_two_splits(folder: Path, scenes: Path) -> None:
    used = {
        split: set(Composite(folder, split, backgrounds=scenes, correlation=0.5).scenes)
        for split in ("train", "val", "test")
    }
    assert not used["train"] & used["val"]
    assert {path.parts[-3] for path in used["train"] | used["val"]} == {"train"}
    assert {path.parts[-3] for path in used["test"]} == {"test"}
    shutil.rmtree(scenes / "test")
    for without in (scenes, scenes / "train"):  # a test folder, or any
        found = [
            {int(path.stem) % 10 for path in Composite(folder, s, backgrounds=without).scenes}
            for s in ("train", "val", "test")
        ]
        assert found[0] <= set(range(7))
        assert found[1:] == [{9}, {7, 8}]
    for path in (scenes / "train/forest").iterdir():
        if path.stem > "05":
            path.unlink()
    with pytest.raises(
        DataError, match=r"forest' has 6 pictures, of which none is for the split 'val'"
    ):
        Composite(folder, "val", backgrounds=scenes)


def test_pasting_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 5, 4), generator=generator, dtype=torch.uint8)
    canvas = torch.randint(0, 256, (3, 9, 8), generator=generator, dtype=torch.uint8)
    mask = torch.rand(5, 4, generator=generator) > 0.4
    same, pixels = paste(picture, mask, canvas, (2, 3), (5, 4))
    expected, covered = canvas.clone(), torch.zeros(9, 8, dtype=torch.bool)
    for row in range(5):
        for column in range(4):
            if mask[row, column]:
                expected[:, 2 + row, 3 + column] = picture[:, row, column]
                covered[2 + row, 3 + column] = True
    assert torch.equal(same, expected)
    assert torch.equal(pixels, covered)


def test_none_of_the_old_surroundings_comes_along() -> None:
    picture = torch.full((3, 12, 12), 255, dtype=torch.uint8)  # white around a black thing
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[3:9, 2:10] = True
    picture[:, mask] = 0
    for size in ((5, 7), (21, 17)):
        pasted, _ = paste(picture, mask, torch.zeros(3, 30, 30, dtype=torch.uint8), (1, 2), size)
        assert pasted.max() == 0


def test_a_square_is_of_the_picture_or_of_all_of_it() -> None:
    columns = torch.arange(40, dtype=torch.uint8).expand(3, 20, 40).contiguous()
    rng = np.random.default_rng(0)
    starts = Counter()
    for _ in range(200):
        square = cut_square(columns, 10, rng)
        start = int(square[0, 0, 0])
        assert torch.equal(square, columns[:, :10, start : start + 10])
        starts[start] += 1
    assert set(starts) == set(range(31))
    assert cut_square(columns, 32, rng).shape == (3, 32, 32)
    whole = cut_square(columns, 10, rng, whole=True)[0, 0]
    assert int(whole[-1] - whole[0]) == pytest.approx(18, abs=1)  # ten columns of twenty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "cat=forest"}, r"pairs is \{'cat': 'forest'\}\. Name two classes or more"),
        ({"pairs": "cat=forest,dog=forest"}, r"pairs is .*with two scenes or more"),
        ({"pairs": "cat,dog"}, r"pairs is 'cat,dog'\. Write it as"),
        ({"pairs": "kat=forest,dog=sea"}, r"pairs has the class 'kat'\. Did you mean 'cat'"),
        ({"correlation": 95}, r"correlation is 95\. Did you mean 0\.95\?"),
        ({"task": "scene"}, r"unknown task 'scene'"),
        ({"size": 16}, r"size is 16\."),
        ({"image_set": "all"}, r"unknown image_set 'all'"),
    ],
)
def test_bad_options(folder: Path, scenes: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=rf"^Composite: {message}"):
        Composite(folder, backgrounds=scenes, **options)  # type: ignore[arg-type]


def test_folders_that_do_not_fit(folder: Path, scenes: Path) -> None:
    with pytest.raises(DataError, match=r"^Composite: .*no image of horse alone with a mask"):
        Composite(folder, backgrounds=scenes, pairs="cat=forest,horse=sea")
    with pytest.raises(
        DataError, match=r"train' has no pictures of the scene 'desert'.*It holds 'for"
    ):
        Composite(folder, backgrounds=scenes, pairs="cat=forest,dog=desert")
    for wrong in (scenes.parent, scenes / "train/street"):
        with pytest.raises(DataError, match=rf"scene 'forest'\. Give '{scenes}', which has it"):
            Composite(folder, backgrounds=wrong)
    with pytest.raises(DataError, match=r"backgrounds '.*none' does not exist"):
        Composite(folder, backgrounds=scenes / "none")
    with pytest.raises(DataError, match=r"^Composite: '.*' holds no folder VOC20"):
        Composite(scenes, backgrounds=scenes)


def test_files_that_are_missing_or_damaged(folder: Path, scenes: Path) -> None:
    (folder / "JPEGImages/train_cat00.png").unlink()
    with pytest.warns(UserWarning, match=r"^Composite: split 'single_train' lists 40 images, 1 of"):
        data = Composite(folder, backgrounds=scenes)
    assert data.missing == ["train_cat00"]
    assert len(data) == 39
    (folder / "Annotations/val_cat00.xml").unlink()
    with pytest.warns(
        UserWarning, match=r"for Annotations, lists 8 images, 1 of them .*cat00\.xml"
    ):
        assert Composite(folder, "val", backgrounds=scenes).missing == ["val_cat00"]
    mask = folder / "SegmentationClass/train_dog00.png"
    miniatures.mask(mask, miniatures.filled(8))
    with pytest.warns(UserWarning, match=r"train_dog00\.png' shows no pixel of the class"):
        assert data[0] is None
    miniatures.mask(mask, miniatures.filled(90))
    with pytest.raises(DataError, match=r"train_dog00\.png' holds no class indices .*value is 90"):
        data[0]
    mask.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"train_dog00\.png' cannot be read as a mask"):
        assert data[0] is None
    data.paths[1].write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"^Composite: '.*train_cat01\.png' cannot be read"):
        assert data[1] is None
    data.scenes[2].write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"cannot be read as an image"):
        assert data[2] is None


def test_on_the_command_line_the_test_stays_even(folder: Path, scenes: Path) -> None:
    opened = [
        DATASETS["composite"].factory(s, str(folder), backgrounds=str(scenes), correlation="1")
        for s in ("train", "test")
    ]
    assert [torch.bincount(d.group_of, minlength=4).tolist() for d in opened] == [
        [20, 0, 0, 20],
        [4, 4, 4, 4],
    ]
