"""ImageFolder: boxes from CSV and COCO JSON, and files that are not as they should be."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from explainguide.datasets import ImageFolder
from explainguide.errors import AnnotationError, DataError

HEADER = "image,xmin,ymin,xmax,ymax"


def write_csv(root: Path, *lines: str, header: str = HEADER) -> Path:
    path = root / "boxes.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def write_coco(root: Path, entries: list[dict[str, Any]], **changes: Any) -> Path:
    content: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "cat/a.png", "height": 30, "width": 40},
            {"id": 2, "file_name": "c.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [{"id": i, **a} for i, a in enumerate(entries, start=1)],
    }
    content.update(changes)
    path = root / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def test_csv(photos: Path) -> None:
    lines = ("cat/a.png,4,6,14,16", "cat/a.png,20.5,0,40,30", "./dog\\c.png,0,0,8,8")
    data = ImageFolder(photos, write_csv(photos, *lines))
    assert data.classes == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.annotated.tolist() == [True, False, True]
    assert not data.multilabel
    image, label, annotation = data[0]
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    assert (label, type(label)) == (0, int)
    assert annotation is not None
    assert annotation["boxes"].tolist() == [[4, 6, 14, 16], [20.5, 0, 40, 30]]
    assert tuple(annotation["boxes"].canvas_size) == (30, 40)
    assert annotation["labels"].tolist() == [0, 0]
    assert image[:, 6:16, 4:14].min() == 1
    assert data[1][2] is None
    assert data[-1][2] is not None
    assert data[2][2]["labels"].tolist() == [1]
    with pytest.raises(IndexError):
        data[3]
    assert "2 annotated" in repr(data)


def test_csv_with_labels_any_order_and_byte_order_mark(photos: Path) -> None:
    path = photos / "boxes.csv"
    text = "label, xmax,ymax,xmin,ymin,image\ndog,14,16,4,6,a.png\n,14,16,4,6,a.png\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    data = ImageFolder(photos, path)
    assert data[0][2]["boxes"].tolist() == [[4, 6, 14, 16]] * 2
    assert data[0][2]["labels"].tolist() == [1, 0]


def test_without_boxes(photos: Path) -> None:
    data = ImageFolder(str(photos))
    assert not data.annotated.any()
    assert [data[i][2] for i in range(3)] == [None] * 3


def test_transforms_in_step(photos: Path) -> None:
    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(1.0),
            v2.Resize((60, 80), interpolation=0),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    data = ImageFolder(photos, write_csv(photos, "cat/b.png,20,10,30,20"), transforms=transforms)
    image, _, annotation = data[1]
    assert annotation["boxes"].tolist() == [[20, 20, 40, 40]]
    assert image[:, 20:40, 20:40].min() == 1
    assert image.sum() == 3 * 20 * 20
    assert data[0][0].shape == (3, 60, 80)
    assert data[0][2] is None


@pytest.mark.parametrize(
    ("header", "line", "kind", "message"),
    [
        ("image,xmin,ymin,xmax,ymaxx", "", DataError, r"line 1: unknown column 'ymaxx'\. Did you"),
        ("image;xmin;ymin;xmax;ymax", "", DataError, r"unknown column.*separated by commas"),
        ("image,xmin,ymin,xmax", "", DataError, r"line 1: no column 'ymax'"),
        (HEADER, "cat/a.png,1,2,3", DataError, r"line 3: not as many values"),
        (HEADER, "cat/a.png,1,2,3,4,5", DataError, r"line 3: not as many values"),
        (HEADER, "cat/a.png,1,2,x,4", AnnotationError, r"line 3: could not convert.*'x'"),
        (HEADER, "cat/a.png,1,2,nan,4", AnnotationError, r"line 3: box .*nan.* is not finite"),
        (HEADER, "cat/a.png,1,2,inf,4", AnnotationError, r"line 3: box .* is not finite"),
        (HEADER, "cat/a.png,9,2,3,4", AnnotationError, r"line 3: .*inverted.*width, height\?"),
        (HEADER, "cat/a.png,3,2,3,4", AnnotationError, r"line 3: .*inverted or empty"),
        (HEADER, "cat/a.png,.1,.2,.5,1", AnnotationError, r"line 3: .*\[0, 1\].*in pixels"),
        (
            HEADER,
            "cat/a.png,1,2,44,9",
            AnnotationError,
            r"line 3: .*outside.*40 wide and 30 high\. Correct",
        ),
        (
            HEADER,
            "cat/a.png,40,2,41,9",
            AnnotationError,
            r"line 3: .*outside.*inside the image, are allowed\.",
        ),
        (
            HEADER,
            "cat/x.png,1,2,3,4",
            DataError,
            r"names 1 images.*'cat/x\.png'\. Did you mean.* Correct",
        ),
        (
            HEADER + ",label",
            "cat/a.png,1,2,3,4,dogg",
            DataError,
            r"line 3: .*'dogg'\. Did you.*\? Correct it",
        ),
    ],
)
def test_bad_csv(photos: Path, header: str, line: str, kind: type[Exception], message: str) -> None:
    good = "cat/b.png,1,2,9,9" + ("," if "label" in header else "")
    with pytest.raises(kind, match=rf"^ImageFolder: .*boxes\.csv'.*{message}"):
        ImageFolder(photos, write_csv(photos, good, line, header=header))


def test_a_rounded_edge_is_clipped(photos: Path) -> None:
    data = ImageFolder(photos, write_csv(photos, "cat/a.png,-0.5,2,41,9"))
    assert data[0][2]["boxes"].tolist() == [[0, 2, 40, 9]]


def test_images_that_are_not_there_are_counted(photos: Path) -> None:
    lines = [f"cat/{i}.png,1,2,3,4" for i in range(5)]
    message = r"names 5 images .*: 'cat/0.png', 'cat/1.png', 'cat/2.png' and 2 more\..*'cat/a.png'"
    with pytest.raises(DataError, match=message):
        ImageFolder(photos, write_csv(photos, *lines, *lines))


def test_a_name_alone_must_be_unique(photos: Path, paint: Callable[..., None]) -> None:
    paint(photos / "dog" / "a.png", (40, 30))
    with pytest.raises(DataError, match=r"names 1 images"):
        ImageFolder(photos, write_csv(photos, "a.png,1,2,3,4"))


def test_bad_files_and_folders(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^ImageFolder: root '.*none' does not exist"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match=r"is not one folder of images a class .*\)\. Put the"):
        ImageFolder(tmp_path / "flat")
    with pytest.raises(DataError, match=r"boxes file '.*none\.csv' does not exist"):
        ImageFolder(photos, photos / "none.csv")
    (photos / "boxes.txt").touch()
    with pytest.raises(DataError, match=r"ends in '\.txt'\. Allowed: \.csv"):
        ImageFolder(photos, photos / "boxes.txt")
    (photos / "boxes.csv").touch()
    with pytest.raises(DataError, match=r"boxes\.csv' is empty\."):
        ImageFolder(photos, photos / "boxes.csv")
    (photos / "boxes.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe,1,2,3,4")
    with pytest.raises(DataError, match=r"not a CSV file in UTF-8"):
        ImageFolder(photos, photos / "boxes.csv")


def test_corrupt_image_is_named_and_skipped(photos: Path) -> None:
    path = photos / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    data = ImageFolder(photos, write_csv(photos, "cat/a.png,4,6,14,16"))
    with pytest.warns(UserWarning, match=r"^ImageFolder: '.*a\.png' cannot be read"):
        assert data[0] is None
    assert data[1] is not None


def test_coco(photos: Path) -> None:
    pytest.importorskip("pycocotools")
    run_lengths = {"size": [30, 40], "counts": [4 * 30 + 6, 10, 30 * 40 - 4 * 30 - 16]}
    annotations = [
        {
            "image_id": 1,
            "category_id": 7,
            "bbox": [4, 6, 10, 10],
            "segmentation": [[4, 6, 14, 6, 14, 16, 4, 16]],
        },
        {
            "image_id": 1,
            "category_id": 9,
            "bbox": [4, 6, 1, 10],
            "segmentation": run_lengths,
        },
        {"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": 2, "category_id": 9, "bbox": [0, 0, 8, 8]},
    ]
    data = ImageFolder(photos, write_coco(photos, annotations), masks=True)
    assert data.annotated.tolist() == [True, False, True]
    first, last = data[0][2], data[2][2]
    assert first["boxes"].tolist() == [[4, 6, 14, 16], [4, 6, 5, 16]]
    assert first["labels"].tolist() == [0, 1]
    assert first["masks"].sum((1, 2)).tolist() == [100, 10]
    assert first["masks"][0, 6:16, 4:14].all()
    assert first["masks"][1, 6:16, 4].all()
    assert last["labels"].tolist() == [1]
    assert "masks" not in last
    assert "masks" not in ImageFolder(photos, photos / "boxes.json")[0][2]
    assert np.array_equal(pickle.loads(pickle.dumps(data))[0][2]["masks"], first["masks"])


GOOD = {"image_id": 1, "category_id": 7, "bbox": [4, 6, 10, 10]}


@pytest.mark.parametrize(
    ("annotation", "changes", "kind", "message"),
    [
        ({**GOOD, "bbox": [4, 6, -1, 10]}, {}, AnnotationError, r"annotation 1: .*inverted"),
        ({**GOOD, "bbox": [0.1, 0.1, 0.5, 0.5]}, {}, AnnotationError, r"annotation 1: .*\[0, 1\]"),
        ({**GOOD, "bbox": [4, 6, 90, 10]}, {}, AnnotationError, r"annotation 1: .*outside"),
        (
            {**GOOD, "image_id": 5},
            {},
            DataError,
            r"annotation 1: image_id 5 is not in the file\. Correct it, or add it",
        ),
        ({**GOOD, "category_id": 5}, {}, DataError, r"annotation 1: category_id 5 is not in"),
        (GOOD, {"categories": [{"id": 7, "name": "cats"}]}, DataError, r"'cats'\. Did you mean"),
        (
            GOOD,
            {"images": [{"id": 1, "file_name": "cat/a.png", "height": 40, "width": 30}]},
            DataError,
            r"is given as \(40, 30\) and the image is \(30, 40\).*EXIF.* Make its boxes anew",
        ),
        (GOOD, {"annotations": 3}, DataError, r"is not COCO JSON"),
        ({"image_id": 1, "category_id": 7}, {}, DataError, r"annotation 1: no bbox, and no seg"),
    ],
)
def test_bad_coco(
    photos: Path,
    annotation: dict[str, Any],
    changes: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    pytest.importorskip("pycocotools")
    with pytest.raises(kind, match=rf"^ImageFolder: .*boxes\.json'.*{message}"):
        ImageFolder(photos, write_coco(photos, [annotation], **changes))


def test_broken_segmentation(photos: Path) -> None:
    pytest.importorskip("pycocotools")
    path = write_coco(photos, [{**GOOD, "segmentation": [["a", "b"]]}])
    with pytest.raises(
        AnnotationError, match=r"annotation 1 of 'cat/a.png' has a segmentation .* Make"
    ):
        ImageFolder(photos, path, masks=True)[0]
    assert ImageFolder(photos, path)[0] is not None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": []}'])
def test_json_that_is_not_coco(photos: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    (photos / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=r"boxes\.json' is not COCO JSON"):
        ImageFolder(photos, photos / "boxes.json")
    assert capsys.readouterr().out == ""


def test_coco_without_the_extra(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(DataError, match=r"needs pycocotools\. `pip install explainguide\[coco\]`"):
        ImageFolder(photos, write_coco(photos, [GOOD]))
