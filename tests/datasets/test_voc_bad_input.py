"""VOC: folders, files and arguments that are not as they should be."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from explainguide.datasets import VOC
from explainguide.errors import DataError, OptionError

if TYPE_CHECKING:
    from conftest import VOCFolder


@pytest.mark.parametrize("part", ["Annotations", "ImageSets", "JPEGImages"])
def test_incomplete_folder(voc: VOCFolder, part: str) -> None:
    shutil.rmtree(voc.small().folder / part)
    with pytest.raises(
        DataError, match=rf"^VOC: .*VOC2007' has no {part} folder\. Unpack .*Found: "
    ):
        VOC(voc.folder, "train")


def test_no_folder(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"^VOC: root '.*nowhere' does not exist\.$"):
        VOC(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no folder VOC.*Give the year folder"):
        VOC(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"is a file, not a folder"):
        VOC(tmp_path / "file")


def test_missing_files_are_counted_and_left_out(voc: VOCFolder) -> None:
    voc.small().split("train", "000001", "a", "b", "c", "d", "000002", "000003")
    (voc.folder / "Annotations" / "000002.xml").unlink()
    expected = r"lists 7 images, 4 without a file in JPEGImages \('a', 'b', 'c' and 1 more\) and 1"
    with pytest.warns(UserWarning, match=expected) as caught:
        data = VOC(voc.folder, "train")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert data.ids == ["000001", "000003"]
    assert data.missing == ["a", "b", "c", "d", "000002"]
    voc.split("gone", "a", "b")
    with pytest.raises(DataError, match=r"2 without a file in JPEGImages.*complete\?"):
        VOC(voc.folder, "gone")


def test_corrupt_image_is_named_and_skipped(voc: VOCFolder) -> None:
    path = voc.small().folder / "JPEGImages" / "000002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    data = VOC(voc.folder, "train")
    with pytest.warns(UserWarning, match=r"^VOC: '.*000002\.jpg' cannot be read as an image"):
        assert data[1] is None
    assert data[0] is not None


def test_image_resized_without_its_boxes(voc: VOCFolder, paint: Any) -> None:
    voc.small()
    paint(voc.folder / "JPEGImages" / "000002.jpg", (20, 15))
    data = VOC(voc.folder, "train")
    with pytest.warns(UserWarning, match=r"000002.jpg' is \(15, 20\) and its XML file says"):
        assert data[1] is None
    paint(voc.folder / "JPEGImages" / "000001.jpg", (20, 15))
    with pytest.raises(DataError, match=r"000001.jpg' is \(15, 20\).*Resize images by transforms"):
        VOC(voc.folder, "train")


def test_bad_masks(voc: VOCFolder) -> None:
    path = voc.small().folder / "SegmentationClass" / "000001.png"
    path.write_bytes(b"no png")
    data = VOC(voc.folder, "train", masks=True)
    with pytest.warns(UserWarning, match=r"000001\.png' cannot be read as a mask"):
        assert data[0] is None
    Image.new("P", (10, 10)).save(path)
    with pytest.warns(UserWarning, match=r"is \(10, 10\) and its image \(30, 40\)"):
        assert data[0] is None
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(DataError, match=r"is a RGB image\. A mask file holds class indices"):
        data[0]
    path.unlink()
    with pytest.raises(DataError, match=r"no image of split 'train' has a file in"):
        VOC(voc.folder, "train", only_masked=True)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object>", r"is not a VOC annotation"),
        (
            "<other/>",
            r"is not a VOC annotation \(its root is <other>.*root is <annotation> is allowed",
        ),
        (
            "<annotation><object><name>cat</name></object></annotation>",
            r"readable bndbox .* Complete it",
        ),
        ("BOX 1 2 x 4", r"readable bndbox .*'x'"),
        (
            "BOX 9 2 3 4",
            r"inverted or non-finite box of 'cat', xmin=9, ymin=2, xmax=3, ymax=4\. Correct",
        ),
        ("BOX nan 2 3 4", r"inverted or non-finite"),
        ("BOX 1 2 inf 4", r"inverted or non-finite"),
        ("BOX 50 2 60 4", r"lies outside the image.*\(30, 40\).*\. Correct it"),
    ],
)
def test_bad_xml(voc: VOCFolder, xml: str, message: str) -> None:
    voc.small()
    if xml.startswith("BOX"):
        corners = zip(("xmin", "ymin", "xmax", "ymax"), xml.split()[1:], strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        xml = (
            "<annotation><size><width>40</width><height>30</height></size>"
            f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        )
    voc.xml("000002", xml)
    with pytest.raises(DataError, match=rf"^VOC: '.*000002\.xml' .*{message}"):
        VOC(voc.folder, "train")


def test_bad_arguments(voc: VOCFolder) -> None:
    with pytest.raises(OptionError, match=r"unknown difficult 'ignored'\. Did you mean 'ignore'"):
        VOC(voc.small().folder, "train", difficult="ignored")
