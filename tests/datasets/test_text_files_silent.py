"""Encodings of XML files, split files and files of boxes, against Python's own codecs."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from explainguide.datasets import VOC, ImageFolder
from explainguide.errors import DataError

if TYPE_CHECKING:
    from conftest import VOCFolder

CSV = "image,xmin,ymin,xmax,ymax,label\ncat/a.png,4,6,14,16,cat\ndog/c.png,0,0,8,8,dog\n"
MARKS = {
    "utf-8-sig": b"",  # the codec writes it itself
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def write_xml(
    voc: VOCFolder, name: str, *, codec: str, declared: str | None = None, mark: bytes = b""
) -> VOC:
    """A data set whose one image shows an object of the class ``name``."""
    voc.small().split("train", "000001")
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    box = "<xmin>5</xmin><ymin>6</ymin><xmax>14</xmax><ymax>15</ymax>"
    text = (
        f"{head}<annotation><folder>{name}</folder>"
        "<size><width>40</width><height>30</height></size>"
        f"<object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
    )
    (voc.folder / "Annotations" / "000001.xml").write_bytes(mark + text.encode(codec))
    return VOC(voc.folder, "train", classes=["other", name])


@pytest.mark.parametrize(
    ("codec", "declared", "name"),
    [
        ("gb2312", "gb2312", "狗"),
        ("gb2312", "GB2312", "图片"),
        ("gbk", "gbk", "犬貓"),
        ("gbk", "gb2312", "犬貓"),  # labelling programs declare less than they write
        ("gb18030", "gbk", "㐀狗"),
        ("gb18030", "gb18030", "㐀"),
        ("big5", "big5", "貓"),
        ("big5hkscs", "big5", "貓𨋢"),
        ("shift_jis", "shift_jis", "犬ソ表"),  # with the byte of a backslash inside
        ("cp932", "Shift_JIS", "①犬"),
        ("euc_jp", "EUC-JP", "猫"),
        ("iso2022_jp", "ISO-2022-JP", "猫"),
        ("euc_kr", "euc-kr", "개"),
        ("cp949", "euc-kr", "똠"),
        ("koi8-r", "koi8-r", "собака"),
        ("cp1251", "windows-1251", "собака"),
        ("latin-1", "ISO-8859-1", "Bär"),
        ("cp1252", "windows-1252", "chien\u2019s"),
        ("utf-8", "utf8", "狗"),
        ("utf-8", "utf-8", "狗"),
        ("utf-8", "utf-16", "狗"),  # an UTF-16 file saved anew, its first line kept
        ("utf-8", None, "狗"),
        ("utf-16", "utf-16", "狗"),
        ("utf-16-le", "utf-16", "狗"),
        ("utf-16-be", "UTF-16", "Bär"),
        ("utf-16-le", None, "dog"),
    ],
)
def test_silent_xml_in_the_encoding_it_declares(
    voc: VOCFolder, codec: str, declared: str | None, name: str
) -> None:
    data = write_xml(voc, name, codec=codec, declared=declared)
    item = data[0]
    assert item is not None
    assert data.labels.tolist() == [[0, 1]]
    assert item[2] is not None
    assert item[2]["boxes"].tolist() == [[4, 5, 14, 15]]


@pytest.mark.parametrize("declared", [None, "utf-8", "gbk"])
@pytest.mark.parametrize("codec", MARKS)
def test_silent_xml_with_a_byte_order_mark(
    voc: VOCFolder, codec: str, declared: str | None
) -> None:
    data = write_xml(voc, "狗", codec=codec, declared=declared, mark=MARKS[codec])
    assert data.labels.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("codec", "declared", "message"),
    [
        ("gbk", "utf-8", r"declares the encoding 'utf-8' and cannot be decoded \(.*Save it as"),
        ("gbk", None, r"declares no encoding and cannot be decoded \(.*encoding=\"gbk\""),
        ("gbk", "ascii", r"declares the encoding 'ascii' and cannot be decoded"),
        ("gbk", "utf-16", r"declares the encoding 'utf-16' and cannot be decoded"),
        ("utf-8", "foo-8", r"declares the encoding 'foo-8' and .*unknown encoding: foo-8"),
        ("utf-8", "hex", r"declares the encoding 'hex' and .*not a text encoding"),
        ("utf-8", "shift_jis", r"000001\.xml' "),  # undecodable, or an object of no class
        ("utf-32-le", None, r"declares no encoding and .*zero bytes"),
    ],
)
def test_silent_xml_in_another_encoding_names_the_file(
    voc: VOCFolder, codec: str, declared: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=r"^VOC: '.*000001\.xml' ") as caught:
        write_xml(voc, "狗图片", codec=codec, declared=declared)
    assert caught.match(message)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("codec", [*MARKS, "utf-8"])
def test_silent_split_keeps_its_first_image(voc: VOCFolder, codec: str, newline: str) -> None:
    text = newline.join(["000001", "000002  1", "000003 -1", ""])
    path = voc.small().folder / "ImageSets" / "Main" / "cat_train.txt"
    path.write_bytes(MARKS.get(codec, b"") + text.encode(codec))
    assert VOC(voc.folder, "cat_train").ids == ["000001", "000002"]


def test_silent_split_without_mark_or_of_joined_files(voc: VOCFolder) -> None:
    path = voc.small().folder / "ImageSets" / "Main" / "train.txt"
    for codec in ("utf-16-le", "utf-16-be"):
        path.write_bytes("000001\n000003\n".encode(codec))
        assert VOC(voc.folder, "train").ids == ["000001", "000003"]
    path.write_bytes(b"".join(i.encode("utf-8-sig") for i in ("000001\n", "000003\n")))
    assert VOC(voc.folder, "train").ids == ["000001", "000003"]
    path.write_bytes("000001\nBär\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"^VOC: '.*train\.txt' is not text in UTF-8 \(.*Save it"):
        VOC(voc.folder, "train")


@pytest.mark.parametrize("codec", [*MARKS, "utf-8"])
def test_silent_csv_in_unicode(photos: Path, codec: str) -> None:
    path = photos / "boxes.csv"
    path.write_bytes(MARKS.get(codec, b"") + CSV.encode(codec))
    data = ImageFolder(photos, path)
    assert data.annotated.tolist() == [True, False, True]
    assert data[0][2]["boxes"].tolist() == [[4, 6, 14, 16]]
    assert data[2][2]["labels"].tolist() == [1]


@pytest.mark.parametrize("codec", ["latin-1", "gbk", "utf-32-le"])
def test_silent_csv_in_another_encoding_names_the_file(photos: Path, codec: str) -> None:
    name = "Bär" if codec == "latin-1" else "狗"
    (photos / "boxes.csv").write_bytes(CSV.replace("c.png", f"{name}.png").encode(codec))
    message = r"^ImageFolder: '.*boxes\.csv' is not a CSV file in UTF-8 \(.*Save it as UTF-8\."
    with pytest.raises(DataError, match=message):
        ImageFolder(photos, photos / "boxes.csv")


@pytest.mark.parametrize("written", ["1", " 1 ", "true", "True", "0", "false", "Unspecified", ""])
def test_silent_difficult_in_words(voc: VOCFolder, written: str) -> None:
    path = voc.small().folder / "Annotations" / "000003.xml"
    tag = "<difficult>{}</difficult>"
    path.write_text(path.read_text().replace(tag.format(1), tag.format(written)))
    expected = written.strip().lower() in ("1", "true")
    assert bool(VOC(voc.folder, "train").difficult_only[2].any()) == expected
