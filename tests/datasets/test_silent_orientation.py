"""No box somewhere else without a word: pictures that a camera turned, against Pillow's own turn."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from explainguide.cli.pictures import read_picture, tell_turned
from explainguide.datasets import VOC, VOC_CLASSES, ImageFolder
from explainguide.datasets.orientation import turn_boxes, turn_mask
from explainguide.datasets.pictures import Header, open_picture, read_header
from explainguide.errors import AnnotationError, DataError, ExplainGuideWarning

if TYPE_CHECKING:
    from conftest import VOCFolder

TURNS = range(2, 9)
STORED = (30, 40)  # (H, W)
BOX = (12, 6, 26, 16)  # XYXY of the stored pixels; in bounds of either frame


def white_box(size: tuple[int, int] = STORED) -> np.ndarray:
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return pixels


def save_turned(path: Path, orientation: int, pixels: np.ndarray | None = None) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = Image.fromarray(white_box() if pixels is None else pixels)
    if path.suffix == ".tif":
        compression = "tiff_lzw" if "lzw" in path.name else None  # libtiff's own way of reading
        picture.save(path, tiffinfo={274: orientation}, compression=compression)
    else:
        picture.save(path, exif=exif, quality=95)


def upright_box(orientation: int, size: tuple[int, int] = STORED) -> list[int]:
    """Where Pillow's own turn puts the white box."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(white_box(size)).save(file, "PNG", exif=exif)
    turned = ImageOps.exif_transpose(Image.open(file))
    return list(turned.getbbox())


def is_white_in(image: torch.Tensor, box: Any) -> bool:
    """Whether an image in [0, 1] is white in the box and nowhere else."""
    x1, y1, x2, y2 = (int(v) for v in box)
    inside = image[:, y1:y2, x1:x2]
    return bool(inside.min() > 0.7) and bool(abs(image.sum() - inside.sum()) < 0.1 * inside.sum())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_turn_as_pillow_turns(orientation: int) -> None:
    mask = turn_mask(white_box()[..., 0], orientation)
    header = Header(STORED, orientation)
    assert mask.shape == header.upright
    boxes = turn_boxes(np.array([BOX, BOX], np.float32), header)
    assert boxes.tolist() == [upright_box(orientation)] * 2
    assert list(Image.fromarray(mask).getbbox()) == upright_box(orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "lzw.tif", "webp"])
def test_every_format_is_read_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    save_turned(path, orientation)
    header = read_header(path)
    assert header == Header(STORED, orientation)
    picture = open_picture(path, told=set())
    assert (picture.height, picture.width) == header.upright
    assert is_white_in(
        torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255, upright_box(orientation)
    )


def coco(root: Path, size: tuple[int, int] | None, box: Any, segmentation: Any = None) -> Path:
    image: dict[str, Any] = {"id": 1, "file_name": "a.jpg"}
    if size is not None:
        image |= {"height": size[0], "width": size[1]}
    x1, y1, x2, y2 = box
    annotation = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    content = {
        "images": [image],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [annotation],
    }
    path = root / "boxes.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    return tmp_path / "photos"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_sizes_in_coco_tell_the_frame(root: Path, orientation: int, frame: str) -> None:
    pytest.importorskip("pycocotools")
    save_turned(root / "cat" / "a.jpg", orientation)
    expected = upright_box(orientation)
    size, box = (STORED, BOX) if frame == "stored" else (STORED[::-1], expected)
    x1, y1, x2, y2 = box
    polygon = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    data = ImageFolder(root, coco(root, size, box, polygon), masks=True)
    image, _, annotation = data[0]
    assert annotation["boxes"].tolist() == [expected]
    assert is_white_in(image, expected)
    mask = np.asarray(annotation["masks"][0]).astype(np.uint8)
    assert list(Image.fromarray(mask).getbbox()) == expected


def test_run_lengths_tell_the_frame_and_are_turned(root: Path) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    save_turned(root / "cat" / "a.jpg", 6)
    encoded = mask.encode(np.asfortranarray(white_box()[..., 0] > 0).astype(np.uint8))
    encoded["counts"] = encoded["counts"].decode()
    data = ImageFolder(root, coco(root, None, BOX, encoded), masks=True)
    annotation = data[0][2]
    assert annotation["boxes"].tolist() == [upright_box(6)]
    found = Image.fromarray(annotation["masks"][0].numpy().astype(np.uint8))
    assert list(found.getbbox()) == upright_box(6)


def csv(root: Path, **boxes: Any) -> Path:
    lines = [f"{name}.jpg,{','.join(map(str, box))}" for name, box in boxes.items()]
    (root / "boxes.csv").write_text("\n".join(["image,xmin,ymin,xmax,ymax", *lines]))
    return root / "boxes.csv"


SAID = (
    r"^ImageFolder: 1 annotated picture is turned by its EXIF orientation \('.*a\.jpg'\), and "
    r".* cannot tell whether .* They are taken to be those of the turned picture, as viewers"
)


@pytest.mark.parametrize("orientation", TURNS)
def test_where_nothing_tells_it_is_said_once(root: Path, orientation: int) -> None:
    save_turned(root / "cat" / "a.jpg", orientation)
    save_turned(root / "cat" / "plain.jpg", 1)
    expected = upright_box(orientation)
    file = csv(root, a=expected, plain=BOX)
    with pytest.warns(ExplainGuideWarning, match=SAID) as caught:
        data = ImageFolder(root, file)
    assert [w.filename for w in caught] == [__file__]
    assert data[0][2]["boxes"].tolist() == [expected]
    assert is_white_in(data[0][0], expected)
    assert data[1][2]["boxes"].tolist() == [list(BOX)]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_half_turn_is_not_told_by_the_size(root: Path, orientation: int) -> None:
    pytest.importorskip("pycocotools")
    save_turned(root / "cat" / "a.jpg", orientation)
    with pytest.warns(ExplainGuideWarning, match=SAID):
        ImageFolder(root, coco(root, STORED, upright_box(orientation)))


def test_boxes_that_fit_one_frame_only_tell_it_and_that_of_others(root: Path) -> None:
    wide = np.zeros((30, 80, 3), np.uint8)
    wide[5:10, 50:70] = 255
    save_turned(root / "cat" / "a.jpg", 6, wide)
    file = csv(root, a=(50, 5, 70, 10))  # no box of a picture that is 30 wide
    data = ImageFolder(root, file)
    expected = [20, 50, 25, 70]
    assert data[0][2]["boxes"].tolist() == [expected]
    assert is_white_in(data[0][0], expected)
    save_turned(root / "cat" / "b.jpg", 6)
    said = r"turned by .*b\.jpg'\).* taken to be those of the stored pixels, as those of the other"
    with pytest.warns(ExplainGuideWarning, match=said):
        data = ImageFolder(root, csv(root, a=(50, 5, 70, 10), b=BOX))
    assert data[1][2]["boxes"].tolist() == [upright_box(6)]


def test_sizes_and_boxes_of_neither_frame_are_refused(root: Path) -> None:
    pytest.importorskip("pycocotools")
    save_turned(root / "cat" / "a.jpg", 6)
    text = r"'a\.jpg' is given as \(50, 60\) and the image is \(40, 30\) or \(30, 40\)"
    with pytest.raises(DataError, match=text):
        ImageFolder(root, coco(root, (50, 60), BOX))
    with pytest.raises(AnnotationError, match=r"outside 'a\.jpg', which is 30 wide and 40 high"):
        ImageFolder(root, csv(root, a=(0, 0, 60, 60)))


def test_nothing_is_said_where_no_box_is_concerned(root: Path) -> None:
    save_turned(root / "cat" / "a.jpg", 6)
    save_turned(root / "cat" / "b.jpg", 1)
    save_turned(root / "cat" / "c.jpg", 0)  # no orientation of the standard
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageFolder(root, csv(root, b=BOX, c=BOX))
    assert data[0][0].shape == (3, 40, 30)


DOG = VOC_CLASSES.index("dog")


def turned_voc(voc: VOCFolder, orientation: int, size: tuple[int, int] | None, box: Any) -> None:
    x1, y1, x2, y2 = box
    segmentation = np.zeros(STORED, np.uint8)
    segmentation[BOX[1] : BOX[3], BOX[0] : BOX[2]] = DOG + 1
    voc.add("1", [("dog", (x1 + 1, y1 + 1, x2, y2))], size=(40, 30), segmentation=segmentation)
    if size is None:
        xml = (voc.folder / "Annotations" / "1.xml").read_text()
        voc.xml("1", xml[: xml.index("<size>")] + xml[xml.index("</size>") + 7 :])
    elif size != STORED:
        xml = (voc.folder / "Annotations" / "1.xml").read_text()
        voc.xml("1", xml.replace("<width>40", "<width>30").replace("<height>30", "<height>40"))
    save_turned(voc.folder / "JPEGImages" / "1.jpg", orientation)
    voc.split("train", "1")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_the_size_in_voc_tells_the_frame(voc: VOCFolder, orientation: int, frame: str) -> None:
    expected = upright_box(orientation)
    size, box = (STORED, BOX) if frame == "stored" else (STORED[::-1], expected)
    turned_voc(voc, orientation, size, box)
    image, _, annotation = VOC(voc.folder, "train", masks=True)[0]
    assert annotation["boxes"].tolist() == [expected]
    assert is_white_in(image, expected)
    mask = annotation["masks"][0].numpy().astype(np.uint8)  # a file of the stored pixels
    assert list(Image.fromarray(mask).getbbox()) == expected
    assert VOC(voc.folder, "train", annotated=0)[0][2] is None


@pytest.mark.parametrize("orientation", TURNS)
def test_voc_without_a_size_says_it_once(voc: VOCFolder, orientation: int) -> None:
    expected = upright_box(orientation)
    turned_voc(voc, orientation, None, expected)
    said = r"^VOC: 1 annotated picture is turned .*1\.jpg'\), and the XML files cannot tell"
    with pytest.warns(ExplainGuideWarning, match=said) as caught:
        data = VOC(voc.folder, "train")
    assert [w.filename for w in caught] == [__file__]
    assert data[0][2]["boxes"].tolist() == [expected]
    assert is_white_in(data[0][0], expected)


def test_voc_with_the_stored_size_and_no_object_is_read(voc: VOCFolder) -> None:
    voc.add("1", []).split("train", "1")
    save_turned(voc.folder / "JPEGImages" / "1.jpg", 6)
    item = VOC(voc.folder, "train")[0]
    assert item is not None
    assert item[2]["boxes"].shape == (0, 4)


def test_explain_turns_as_the_data_sets_and_says_whose_boxes(root: Path) -> None:
    path = root / "cat" / "a.jpg"
    save_turned(path, 6)
    explained = np.asarray(read_picture(str(path), told=set()))
    image = ImageFolder(root)[0][0]
    assert np.array_equal((image * 255).round().permute(1, 2, 0).numpy(), explained)
    said = r"^'.*a\.jpg' \(40 x 30, height x width\) is turned upright by the EXIF .*; --boxes are taken"
    with pytest.warns(ExplainGuideWarning, match=said):
        tell_turned([str(path)], [torch.ones(1, 4)])
    tell_turned([str(path)], [torch.ones(0, 4)])
