"""Text and XML in whatever encoding a file tells."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

from explainguide.errors import DataError

__all__ = ["read_text", "read_xml"]

_MARKS = (  # UTF-32's first, since UTF-16's is its beginning
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
# What programs write under a name, where it is more than the standard of that name has.
_WIDER = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
}


def read_text(path: Path, *, kind: str = "text") -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, without byte order marks.

    Args:
        path: The file.
        kind: What the file should be, for the message.

    Raises:
        DataError: If it is in another encoding, which nothing in the file could tell.
    """
    try:
        return _decode(path.read_bytes(), None)
    except UnicodeError as error:
        raise DataError(
            f"'{path}' is not {kind} in UTF-8 ({error}). Save it as UTF-8. UTF-16 is allowed too."
        ) from None


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file in the encoding that it declares; expat itself knows only a few.

    Raises:
        DataError: If it is in another encoding than it declares, or is no XML.
    """
    raw = path.read_bytes()
    match = _DECLARED.match(raw)
    declared = match[1].decode("ascii") if match else None
    try:
        text = _decode(raw, declared)
    except (UnicodeError, LookupError) as error:
        statement = f"declares the encoding {declared!r}" if declared else "declares no encoding"
        raise DataError(
            f"'{path}' {statement} and cannot be decoded ({error}). Save it as UTF-8, or "
            'declare its encoding in the first line, such as <?xml version="1.0" '
            'encoding="gbk"?>. Every encoding that Python knows is allowed.'
        ) from None
    try:
        return ElementTree.fromstring(text.strip())  # in a str the declaration is not heeded
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"'{path}' is not a VOC annotation ({error}).") from None


def _decode(raw: bytes, declared: str | None) -> str:
    """Decode by the byte order mark, else by where zeros stand, else as declared, else as UTF-8."""
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    encoding = encoding or _by_zeros(raw) or codecs.lookup(declared or "utf-8").name
    if declared and b"\0" not in raw and encoding.startswith(("utf-16", "utf-32")):
        encoding = "utf-8"  # the declaration itself was read byte by byte
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        if encoding not in _WIDER:
            raise
        text = raw.decode(_WIDER[encoding])
    if "\0" in text:
        raise UnicodeError(f"as {encoding} it holds zero bytes")
    return text.replace("\ufeff", "")  # at the start, and inside where marked files were joined


def _by_zeros(raw: bytes) -> str | None:
    """UTF-16 without a mark: one byte of line ends, digits and Latin letters is 0."""
    if b"\0" not in raw:
        return None
    even, odd = raw[0::2].count(0), raw[1::2].count(0)
    return "utf-16-be" if even > odd else "utf-16-le"
