"""Text and XML of any encoding that a file tells."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

from explainguide.errors import DataError

__all__ = ["decode_text", "read_text", "read_xml"]

_MARKS = (  # UTF-32's first, since UTF-16's is its beginning
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
# What programs write under a name, where it is more than the name's own standard has.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "big5": "cp950"}


def decode_text(raw: bytes, *, declared: str | None = None) -> str:
    """Text of bytes: by their byte order mark, else as `declared`, else as UTF-8.

    UTF-16 without a mark is known by the 0 among the first two bytes.

    Raises:
        UnicodeDecodeError: If they are not in that encoding.
        LookupError: If `declared` is no encoding.
    """
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return raw.decode(name)
    if b"\0" in raw[:2]:
        return raw.decode("utf-16-be" if raw[:1] == b"\0" else "utf-16-le")
    name = codecs.lookup(declared or "utf-8").name
    if name.startswith(("utf-16", "utf-32")):  # it could not have been read so far
        name = "utf-8"
    try:
        return raw.decode(name)
    except UnicodeDecodeError:
        if name not in _WIDER:
            raise
        return raw.decode(_WIDER[name])


def read_text(path: Path, *, caller: str, what: str = "text") -> str:
    """The text of a file in UTF-8 or UTF-16, without its byte order mark; errors say `what` it is not.

    Raises:
        DataError: If it is in another encoding.
    """
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{caller}: '{path}' is not {what} in UTF-8 ({error}). Save it as UTF-8. UTF-16 with a "
            "byte order mark is allowed too."
        ) from None


def read_xml(path: Path, *, caller: str) -> ElementTree.Element:
    """The root of an XML file in whatever encoding it declares; expat itself knows only a few.

    Raises:
        DataError: If it is in another encoding than it declares, or no XML.
    """
    raw = path.read_bytes()
    found = _DECLARED.match(raw.removeprefix(codecs.BOM_UTF8))
    declared = found[1].decode("ascii") if found else None
    try:
        text = decode_text(raw, declared=declared)
    except (UnicodeDecodeError, LookupError) as error:
        said = f"declares encoding {declared!r}" if declared else "declares no encoding"
        raise DataError(
            f"{caller}: '{path}' {said} and cannot be decoded ({error}). Save it as UTF-8, or name "
            'its encoding in the first line, such as <?xml version="1.0" encoding="gbk"?>. Every '
            "encoding of Python's is allowed."
        ) from None
    try:
        return ElementTree.fromstring(text.lstrip())  # of a str the declaration is not heeded
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{caller}: '{path}' is not a VOC annotation ({error}).") from None
