"""What is in files: ranges of pixels, turned photos, encodings, odd boxes, transforms that lose the boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from explainguide import ExplainGuideWarning
from explainguide.cli.pictures import read_picture
from explainguide.datasets import VOC, ImageFolder
from explainguide.errors import DataError, OptionError

RAMP = np.linspace(0, 1, 40 * 30).reshape(30, 40)


def folder(tmp_path: Path, name: str, picture: Image.Image, **save: Any) -> Path:
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    picture.save(root / "cat" / name, **save)
    return root


def pixels(root: Path) -> np.ndarray:
    """(H, W, 3) as the data set gives it; the command line's reader must give the same."""
    data = ImageFolder(root)
    image = data[0][0]
    shown = np.asarray(read_picture(str(data.paths[0]))) / 255
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), shown, atol=1e-6)
    return shown


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("a.png", Image.fromarray((RAMP * 65535).astype(np.uint16))),
        ("a.tif", Image.fromarray((RAMP * 65535).astype(np.uint16))),
        ("a.tif", Image.fromarray(RAMP.astype(np.float32))),
        ("a.tif", Image.fromarray((RAMP * 255).astype(np.float32).round())),
        ("a.tif", Image.fromarray((RAMP * 255).astype(np.int32))),
        ("a.png", Image.fromarray((RAMP * 255).round().astype(np.uint8))),
        ("a.png", Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("LA")),
    ],
)
def test_every_range_becomes_the_same_picture(
    tmp_path: Path, name: str, picture: Image.Image
) -> None:
    found = pixels(folder(tmp_path, name, picture))
    np.testing.assert_allclose(found, np.repeat(RAMP[..., None], 3, 2), atol=1.01 / 255)


@pytest.mark.parametrize("values", [RAMP * 3.5 - 1, RAMP * 1000.5])
def test_a_range_that_cannot_be_known_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    root = folder(tmp_path, "a.tif", Image.fromarray(values.astype(np.float32)))
    with pytest.raises(
        DataError, match=r"a\.tif' is a picture of floats from .*black and white cannot"
    ):
        ImageFolder(root)[0]
    with pytest.raises(DataError, match=r"^.*a\.tif' is a picture of floats"):
        read_picture(str(root / "cat" / "a.tif"))


def test_transparency_is_said_once(tmp_path: Path) -> None:
    rgba = np.zeros((30, 40, 4), np.uint8)
    rgba[:, 20:, 3] = 255
    root = folder(tmp_path, "a.png", Image.fromarray(rgba))
    data = ImageFolder(root)
    with pytest.warns(ExplainGuideWarning, match="transparent pixels, which are laid on white"):
        image = data[0][0]
    assert (image[:, :, :20] == 1).all() and (image[:, :, 20:] == 0).all()
    assert data[0] is not None  # warnings are errors: once


# Photos that a phone turned.


def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """A white block at rows 2 to 8 and columns 4 to 16 of the stored pixels."""
    stored = np.zeros((30, 40, 3), np.uint8)
    stored[2:8, 4:16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(stored), exif


def box_of(picture: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(picture.max(2) > 0.5)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_boxes_and_masks_stay_on_what_they_show(
    tmp_path: Path, orientation: int, frame: str
) -> None:
    pytest.importorskip("pycocotools")
    picture, exif = turned(orientation)
    root = folder(tmp_path, "a.png", picture, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(root / "cat" / "a.png")))
    in_frame = np.asarray(picture) if frame == "stored" else upright
    x1, y1, x2, y2 = (float(v) for v in box_of(in_frame / 255))
    height, width = in_frame.shape[:2]
    content = {
        "images": [{"id": 1, "file_name": "cat/a.png", "height": height, "width": width}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1],
             "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        ],
    }  # fmt: skip
    (root / "boxes.json").write_text(json.dumps(content))
    known = orientation in (1, 5, 6, 7, 8)  # a quarter turn changes the size, half a turn does not
    if known:
        data = ImageFolder(root, root / "boxes.json", masks=True)
    else:
        with pytest.warns(ExplainGuideWarning, match="turned by its EXIF orientation"):
            data = ImageFolder(root, root / "boxes.json", masks=True)
    image, _, annotation = data[0]
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), upright / 255, atol=1e-6)
    if known or frame == "upright":
        assert annotation["boxes"].tolist() == [box_of(upright / 255)]
        assert torch.equal(annotation["masks"][0], image[0] > 0.5)


def test_a_csv_of_a_turned_photo_is_told_or_known(tmp_path: Path) -> None:
    picture, exif = turned(6)
    root = folder(tmp_path, "a.png", picture, exif=exif)
    boxes = root / "boxes.csv"
    boxes.write_text("image,xmin,ymin,xmax,ymax\ncat/a.png,22,4,28,16\n")  # fits both ways
    with pytest.warns(ExplainGuideWarning, match="taken to be those of the turned picture"):
        data = ImageFolder(root, boxes)
    image, _, annotation = data[0]
    assert image.shape[1:] == (40, 30)
    assert (
        annotation["boxes"].tolist()
        == [[22, 4, 28, 16]]
        == [box_of(image.permute(1, 2, 0).numpy())]
    )
    boxes.write_text("image,xmin,ymin,xmax,ymax\ncat/a.png,4,2,36,8\n")  # 36 is beyond 30
    assert ImageFolder(root, boxes)[0][2]["boxes"].tolist() == [[22, 4, 28, 36]]


# Text in other encodings.


def voc(tmp_path: Path, xml: bytes, split: bytes = b"im1\n") -> Path:
    root = tmp_path / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40)).save(root / "JPEGImages" / "im1.jpg")
    (root / "Annotations" / "im1.xml").write_bytes(xml)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(split)
    return root


def xml_text(declared: str, name: str = "dog", owner: str = "图片") -> str:
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    return (
        f"{head}<annotation><folder>{owner}</folder><size><width>50</width><height>40</height></size>"
        f"<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax>"
        "</bndbox></object></annotation>"
    )


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "gb18030", "big5", "shift_jis", "utf-16", "utf-8", "utf-8-sig"])  # fmt: skip
def test_xml_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    owner = {"big5": "圖片", "shift_jis": "写真"}.get(encoding, "图片")
    declared = encoding.replace("-sig", "")
    root = voc(tmp_path, xml_text(declared, owner=owner).encode(encoding))
    assert VOC(root, "train")[0][2]["boxes"].tolist() == [[0, 0, 20, 20]]


def test_class_names_in_their_encoding(tmp_path: Path) -> None:
    root = voc(tmp_path, xml_text("gbk", name="狗").encode("gbk"))
    assert VOC(root, "train", classes=["猫", "狗"])[0][1].tolist() == [0, 1]


@pytest.mark.parametrize("declared", ["utf-8", "ascii", "foo-8"])
def test_a_wrong_encoding_names_the_file(tmp_path: Path, declared: str) -> None:
    root = voc(tmp_path, xml_text(declared, owner="\xff\xfe").encode("latin-1"))
    with pytest.raises(DataError, match=r"^VOC: '.*im1\.xml' declares the encoding"):
        VOC(root, "train")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_splits_and_csv_with_marks(tmp_path: Path, encoding: str) -> None:
    root = voc(tmp_path, xml_text("").encode(), "im1\r\n".encode(encoding))
    assert VOC(root, "train").ids == ["im1"]
    photos = folder(tmp_path, "a.png", Image.new("RGB", (40, 30)))
    text = "image,xmin,ymin,xmax,ymax\r\ncat/a.png,4,6,14,16\r\n"
    (photos / "b.csv").write_bytes(text.encode(encoding))
    assert ImageFolder(photos, photos / "b.csv")[0][2]["boxes"].tolist() == [[4, 6, 14, 16]]


# Transforms.


def change(key: str, act: Any) -> Any:
    def made(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return image, {**target, key: act(target[key])}

    return made


BOXES = v2.ConvertBoundingBoxFormat("CXCYWH")


@pytest.mark.parametrize(
    "transforms",
    [
        v2.ToPureTensor(),
        BOXES,
        v2.Compose([BOXES, v2.ToPureTensor()]),
        v2.Compose([v2.Compose([v2.RandomApply([BOXES], p=1.0)]), v2.ToPureTensor()]),
        v2.Compose([BOXES, v2.Resize((30, 40))]),
        change("boxes", lambda boxes: boxes.as_subclass(torch.Tensor)),
    ],
)
def test_transforms_that_keep_them_give_the_same(tmp_path: Path, transforms: Any) -> None:
    root = folder(tmp_path, "a.png", Image.new("RGB", (40, 30)))
    (root / "b.csv").write_text("image,xmin,ymin,xmax,ymax\ncat/a.png,4,6,14,16\n")
    boxes = ImageFolder(root, root / "b.csv", transforms=transforms)[0][2]["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert boxes.tolist() == [[4, 6, 14, 16]]


@pytest.mark.parametrize(
    "transforms",
    [
        v1.Resize(8),
        v1.AutoAugment(),
        v1.Compose([v1.Resize(8)]),
        v2.Compose([v2.Resize(8), v1.RandomHorizontalFlip()]),
        v2.Compose([v2.RandomApply([v1.RandomCrop(8)])]),
    ],
)
def test_transforms_of_the_first_version_are_named_wherever_they_stand(
    tmp_path: Path, transforms: Any
) -> None:
    root = folder(tmp_path, "a.png", Image.new("RGB", (40, 30)))
    with pytest.raises(
        OptionError, match=r"transforms (is|holds) a torchvision\.transforms\.\w+, which moves"
    ):
        ImageFolder(root, transforms=transforms)
