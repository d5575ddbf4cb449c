"""No silent wrong annotation: what people's VOC folders hold, and how it is encoded."""

from __future__ import annotations

import codecs
import warnings
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from explainguide.datasets import VOC, VOC_CLASSES
from explainguide.errors import DataError

if TYPE_CHECKING:
    from conftest import VOCFolder


XML = (
    "<annotation><folder>{folder}</folder><size><width>40</width><height>30</height></size>"
    "<object><name>{name}</name>{difficult}<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>14</xmax>"
    "<ymax>15</ymax></bndbox></object></annotation>"
)


def voc_xml(voc: VOCFolder, raw: bytes) -> None:
    voc.small().split("train", "000001")
    (voc.folder / "Annotations" / "000001.xml").write_bytes(raw)


@pytest.mark.parametrize(
    ("declared", "encoding", "folder"),
    [
        ("gb2312", "gb2312", "图片"),
        ("gb2312", "gbk", "鎔鎔"),  # written by programs under the narrower name
        ("GBK", "gbk", "图片"),
        ("gb18030", "gb18030", "图片"),
        ("big5", "big5", "圖片"),
        ("Shift_JIS", "shift_jis", "写真"),
        ("euc-kr", "euc-kr", "사진"),
        ("ISO-8859-1", "latin-1", "Höhe"),
        ("windows-1251", "cp1251", "фото"),
        ("utf8", "utf-8", "图片"),
        ("UTF-8", "utf-8-sig", "图片"),
        ("UTF-16", "utf-16", "图片"),
        ("utf-16", "utf-16-le", "图片"),
        ("utf-16", "utf-8", "图片"),  # by programs that wrote the text of a string
        ("utf-8", "utf-16", "图片"),  # the byte order mark knows better
        (None, "utf-8", "图片"),
        (None, "utf-16", "图片"),
        (None, "utf-8-sig", "图片"),
    ],
)
def test_voc_xml_in_any_declared_encoding(
    voc: VOCFolder, declared: str | None, encoding: str, folder: str
) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    text = head + XML.format(folder=folder, name=folder, difficult="")
    voc_xml(voc, text.encode(encoding))
    data = VOC(voc.folder, "train", classes=["dog", folder])
    assert data.labels.tolist() == [[0, 1]]
    assert data[0][2]["boxes"].tolist() == [[4, 5, 14, 15]]


@pytest.mark.parametrize(
    ("head", "encoding", "message"),
    [
        ("", "gb18030", r"declares no encoding and cannot be decoded"),
        (
            '<?xml version="1.0" encoding="utf-8"?>',
            "latin-1",
            r"declares (the )?encoding 'utf-8' and",
        ),
        (
            '<?xml version="1.0" encoding="big5"?>',
            "utf-8",
            r"declares (the )?encoding 'big5' and cannot",
        ),
        (
            '<?xml version="1.0" encoding="foo-8"?>',
            "utf-8",
            r"declares (the )?encoding 'foo-8' .*unknown encoding",
        ),
        (
            '<?xml version="1.0" encoding="hex"?>',
            "utf-8",
            r"declares (the )?encoding 'hex' .*not a text encoding",
        ),
    ],
)
def test_voc_xml_in_another_encoding_is_refused_by_name(
    voc: VOCFolder, head: str, encoding: str, message: str
) -> None:
    voc_xml(voc, (head + XML.format(folder="ÄÖÜäé", name="dog", difficult="")).encode(encoding))
    with pytest.raises(DataError, match=rf"^VOC: '.*000001\.xml' {message}"):
        VOC(voc.folder, "train")


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_voc_split_files_with_a_mark(voc: VOCFolder, mark: bytes, encoding: str) -> None:
    raw = "000001\r\n000002\r\n".encode(encoding)
    path = voc.small().folder / "ImageSets" / "Main" / "train.txt"
    path.write_bytes((mark if encoding == "utf-8" else b"") + raw)
    assert VOC(voc.folder, "train").ids == ["000001", "000002"]


def test_voc_split_file_in_another_encoding_is_refused_by_name(voc: VOCFolder) -> None:
    voc.small()
    (voc.folder / "ImageSets" / "Main" / "train.txt").write_bytes("Höhe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"^VOC: '.*train\.txt' is not text in UTF-8 .*Save it as"):
        VOC(voc.folder, "train")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("1", True),
        (" 1 ", True),
        ("true", True),
        ("True", True),
        ("0", False),
        ("", False),
        ("false", False),
        ("Unspecified", False),
    ],
)
def test_voc_difficult_in_any_spelling(voc: VOCFolder, said: str, expected: bool) -> None:
    difficult = f"<difficult>{said}</difficult>"
    voc_xml(voc, XML.format(folder="", name="dog", difficult=difficult).encode())
    data = VOC(voc.folder, "train")
    assert data.difficult_only.any() == expected
    assert data.labels.any() == (not expected)


def test_voc_difficult_that_is_neither_is_refused(voc: VOCFolder) -> None:
    voc_xml(voc, XML.format(folder="", name="dog", difficult="<difficult>2</difficult>").encode())
    with pytest.raises(DataError, match=r"000001\.xml' has an object with difficult '2'\. Write 0"):
        VOC(voc.folder, "train")


@pytest.mark.parametrize("name", ["DOG", "Dog", "dogs", "tv monitor", "TV_Monitor"])
def test_voc_class_in_another_spelling_is_hinted_at(voc: VOCFolder, name: str) -> None:
    voc_xml(voc, XML.format(folder="", name=name, difficult="").encode())
    meant = "dog" if "o" in name.lower()[:2] else "tvmonitor"
    with pytest.raises(DataError, match=rf"of class '{name}'\. Did you mean '{meant}'"):
        VOC(voc.folder, "train")


def test_voc_size_with_a_point_is_a_size(voc: VOCFolder) -> None:
    raw = XML.format(folder="", name="dog", difficult="").replace(">40<", ">20.0<")
    voc_xml(voc, raw.encode())
    with pytest.raises(DataError, match=r"is \(30, 40\) and its XML file says \(30, 20\)"):
        VOC(voc.folder, "train")


def test_voc_images_of_other_kinds_are_found_and_two_of_one_id_refused(voc: VOCFolder) -> None:
    folder = voc.small().folder / "JPEGImages"
    for ending in ("bmp", "webp", "tif"):
        with Image.open(next(folder.glob("000001.*"))) as file:
            picture = file.convert("RGB")
        next(folder.glob("000001.*")).unlink()
        picture.save(folder / f"000001.{ending}")
        assert VOC(voc.folder, "train")[0][1][VOC_CLASSES.index("dog")] == 1
    picture.save(folder / "000001.png")
    with pytest.raises(DataError, match=r"two images of one id, '000001\.png' and '000001\.tif'"):
        VOC(voc.folder, "train")
    picture.save(folder / "000009.png")
    picture.save(folder / "000009.jpg")  # not listed
    (folder / "000001.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(VOC(voc.folder, "train")) == 3
