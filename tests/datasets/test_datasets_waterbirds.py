"""Waterbirds: tasks, groups, boxes and masks of CUB, and files that are not as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from explainguide import Annotations
from explainguide.datasets import Waterbirds
from explainguide.errors import DataError, OptionError

from . import miniatures

BOX = [7.0, 3.0, 25.0, 17.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return miniatures.waterbirds(tmp_path)


@pytest.fixture
def cub(folder: Path) -> dict[str, Path]:
    home = folder.parent / "CUB"
    return {"boxes": home / "bounding_boxes.txt", "segmentations": home / "segmentations"}


def test_the_conventional_task(folder: Path, cub: dict[str, Path]) -> None:
    data = Waterbirds(folder, "train", boxes=cub["boxes"])
    assert data.classes == ["landbird", "waterbird"]
    assert data.groups == [
        "landbird on land",
        "landbird on water",
        "waterbird on land",
        "waterbird on water",
    ]
    assert data.labels.tolist() == [1, 1, 0, 0]
    assert data.group_of is not None
    assert data.group_of.tolist() == [3, 2, 0, 1]
    assert data.annotated.all()
    assert not data.multilabel
    image, label, annotation, group = data[1]
    assert image.shape == (3, 30, 40)
    assert (label, group, type(label), type(group)) == (1, 2, int, int)
    assert annotation["boxes"].tolist() == [BOX]
    assert annotation["labels"].tolist() == [1]
    assert "masks" not in annotation
    assert data.paths[1].name == "Albatross_0002.jpg"
    assert [len(Waterbirds(folder, s)) for s in ("train", "val", "test")] == [4, 2, 2]
    assert "4 groups, 4 annotated" in repr(data)


def test_masks_are_what_most_people_marked(folder: Path, cub: dict[str, Path]) -> None:
    both = Waterbirds(folder, **cub, masks=True)[0][2]
    assert both["boxes"].tolist() == [BOX]
    assert both["masks"].sum() == 16 * 11
    assert both["masks"][0, 5:16, 8:24].all()
    alone = Waterbirds(folder, segmentations=cub["segmentations"])[0][2]
    assert alone["boxes"].tolist() == [[8, 5, 24, 16]]
    assert "masks" not in alone


def test_without_cub_no_image_is_annotated(folder: Path) -> None:
    data = Waterbirds(folder)
    assert not data.annotated.any()
    assert data[0][2] is None
    assert len(data[0]) == 4


@pytest.mark.parametrize("masks", [False, True])
def test_the_reversed_task_is_all_but_the_bird(
    folder: Path, cub: dict[str, Path], masks: bool
) -> None:
    data = Waterbirds(folder, **cub, task="background", masks=masks)
    assert data.classes == ["land", "water"]
    assert data.labels.tolist() == [1, 0, 0, 1]
    _, label, annotation, group = data[1]
    assert (label, group) == (0, 2)
    assert set(annotation["labels"].tolist()) == {0}
    batch = Annotations.from_targets([annotation], canvas=(30, 40))
    expected = torch.ones(1, 30, 40)
    if masks:
        expected[0, 5:16, 8:24] = 0
    else:
        expected[0, 3:17, 7:25] = 0
    assert torch.equal(batch.region(torch.tensor([0]), (30, 40)), expected)
    boxed = batch.without_masks().region(torch.tensor([0]), (30, 40))
    assert boxed.sum() == 30 * 40 - 14 * 18


def test_complete_bias_leaves_two_groups_to_the_test(folder: Path, cub: dict[str, Path]) -> None:
    groups = {
        split: Waterbirds(folder, split, bias="complete").group_of.tolist()
        for split in ("train", "val", "test")
    }
    assert groups == {"train": [3, 0], "val": [3], "test": [2, 1]}


def test_few_annotations_are_drawn_by_the_seed(folder: Path, cub: dict[str, Path]) -> None:
    def kept(seed: int) -> list[bool]:
        return Waterbirds(folder, **cub, annotated=0.5, seed=seed).annotated.tolist()

    assert all(sum(kept(seed)) == 2 for seed in range(6))
    assert kept(3) == kept(3)
    assert len({tuple(kept(seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "place",
            r"has no column 'place'\. Did you mean 'places'.*The columns img_id, .* are needed",
        ),
        ("y", r"has no column 'y'.*It has img_id, .*are needed"),
    ],
)
def test_a_table_without_a_column(folder: Path, column: str, message: str) -> None:
    path = folder / "metadata.csv"
    head, _, rest = path.read_text().partition("\n")
    names = [f"{name}s" if name == column else name for name in head.split(",")]
    path.write_text(f"{','.join(names)}\n{rest}")
    with pytest.raises(DataError, match=rf"^Waterbirds: '.*metadata\.csv' {message}"):
        Waterbirds(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9,001/x.jpg,2,0,0,/o", r"has y '2' for '001/x\.jpg'.*0, 1 are allowed"),
        ("9,001/x.jpg,1,3,0,/o", r"has split '3' for '001/x\.jpg'.*0, 1, 2 are allowed"),
        ("9,001/x.jpg,1", r"line 10: no value of 'split'"),
    ],
)
def test_a_table_with_other_values(folder: Path, line: str, message: str) -> None:
    with (folder / "metadata.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        Waterbirds(folder)


def test_splits_that_are_empty_or_unknown(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"^Waterbirds: unknown image_set 'tests'.*'test'\?"):
        Waterbirds(folder, "tests")
    path = folder / "metadata.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:5]))
    with pytest.raises(DataError, match=r"split 'val' of '.*' is empty\..*'train' of this file"):
        Waterbirds(folder, "val")


def test_a_folder_of_another_level_is_told_the_right_one(folder: Path) -> None:
    told = rf"has no metadata\.csv\. Give '{folder}', which has it\. A folder that holds metadata"
    for wrong in (folder.parent, folder / "001.Albatross"):
        with pytest.raises(DataError, match=rf"^Waterbirds: root '{wrong}' {told}"):
            Waterbirds(wrong)
    (folder / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"has no metadata\.csv\. It holds '001.Albatross', '002"):
        Waterbirds(folder)
    with pytest.raises(DataError, match=r"root '.*none' does not exist"):
        Waterbirds(folder / "none")


def test_segmentations_of_another_level_too(folder: Path, cub: dict[str, Path]) -> None:
    home = cub["segmentations"]
    for wrong in (home.parent, home / "002.Wren"):
        with pytest.raises(DataError, match=rf"segmentations '{wrong}' has no .*Give '{home}'"):
            Waterbirds(folder, segmentations=wrong)


def test_masks_of_other_values(folder: Path, cub: dict[str, Path]) -> None:
    path = cub["segmentations"] / "001.Albatross/Albatross_0001.png"
    miniatures.mask(path, miniatures.filled(1))
    data = Waterbirds(folder, segmentations=cub["segmentations"])
    with pytest.raises(
        DataError, match=r"^Waterbirds: '.*0001\.png' is a mask with the value 1, which .*0 to 255"
    ):
        data[0]
    miniatures.mask(path, miniatures.filled()[:20])
    with pytest.warns(UserWarning, match=r"0001\.png' is \(20, 40\) and its image \(30, 40\)"):
        assert data[0] is None
    path.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"0001\.png' cannot be read as a mask"):
        assert data[0] is None
    # In colours of grey, as a few of CUB's are.
    miniatures.mask(path, np.repeat(miniatures.filled()[..., None], 4, axis=2))
    assert data[0][2]["boxes"].tolist() == [[8, 4, 24, 16]]


def test_images_that_are_not_there_are_counted(folder: Path) -> None:
    (folder / miniatures.BIRDS[1][1]).unlink()
    message = (
        r"^Waterbirds: split 'train' .*lists 4 images, 1 of them without.*Albatross_0002\.jpg'\)"
    )
    with pytest.warns(UserWarning, match=message):
        data = Waterbirds(folder)
    assert [path.name for path in data.missing] == ["Albatross_0002.jpg"]
    assert data.labels.tolist() == [1, 0, 0]
    for _, name, *_ in miniatures.BIRDS:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(
        DataError, match=r"4 of them without a file .* and 1 more\)\. Is the archive"
    ):
        Waterbirds(folder)


def test_a_damaged_image_is_named_and_skipped(folder: Path) -> None:
    path = folder / miniatures.BIRDS[0][1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"^Waterbirds: '.*0001\.jpg' cannot be read"):
        assert Waterbirds(folder)[0] is None


def test_a_box_that_is_not_of_the_image(folder: Path, cub: dict[str, Path]) -> None:
    miniatures.picture(folder / miniatures.BIRDS[0][1], (20, 15))
    message = (
        r"^Waterbirds: '.*0001\.jpg' is \(15, 20\) \(height, width\), and its box is \(7\.0, 3"
    )
    with pytest.warns(UserWarning, match=message):
        assert Waterbirds(folder, boxes=cub["boxes"])[0] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 7.0 3.0 18.0", r"line 1: '1 7\.0 3\.0 18\.0' is no box"),
        ("1 7.0 3.0 -18.0 14.0", r"line 1: .* is no box"),
        ("1 7.0 3.0 nan 14.0", r"line 1: .* is no box"),
        ("99 7.0 3.0 18.0 14.0", r"lists none of the images \(the first is '1'\)"),
    ],
)
def test_bad_boxes(folder: Path, cub: dict[str, Path], text: str, message: str) -> None:
    cub["boxes"].write_text(text)
    with pytest.raises(DataError, match=rf"^Waterbirds: '.*bounding_boxes\.txt'.*{message}"):
        Waterbirds(folder, boxes=cub["boxes"])
    with pytest.raises(DataError, match=r"boxes file '.*none' does not exist"):
        Waterbirds(folder, boxes=folder / "none")
    with pytest.raises(OptionError, match=r"unknown task 'birds'\. Did you mean 'bird'\?"):
        Waterbirds(folder, task="birds")
