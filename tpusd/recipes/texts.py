"""A picture file -> the texts that it carries. Knows nothing of what they say."""

import codecs
from pathlib import Path

from tpusd.recipes.base import PictureTexts
from tpusd.storage.pictures import open_picture

EXIF_UNICODE = b"UNICODE\0"  # what EXIF's UserComment begins with; A1111 follows it by UTF-16, big end first
_CODE_BYTES = 8  # that say how a UserComment is written (Exif 2.32, table 10)
_JAPANESE = ("iso2022_jp", "utf-8", "cp932", "euc_jp")  # what programs write as JIS
_BYTE_ORDERS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_texts(path: Path) -> PictureTexts:
    """The texts of any program's picture. Raises PictureError where the file is not a picture."""
    with open_picture(path) as image:
        from PIL import ExifTags

        image.load()  # text chunks may follow the pixels
        chunks = {str(name): str(text) for name, text in getattr(image, "text", {}).items()}
        xmp = image.info.get("xmp")
        exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        little = getattr(exif, "endian", None) == "<"
    packet = xmp.decode(errors="replace") if isinstance(xmp, bytes) else xmp
    return PictureTexts(
        chunks=chunks, user_comment=_user_comment(comment, little), xmp=packet if isinstance(packet, str) else None
    )


def _user_comment(comment: object, little: bool) -> str | None:
    """The text of a UserComment, which begins with a code, or, where a program leaves the code out, with the text.

    comment: as Pillow reads it.
    little: whether the numbers of the file's EXIF have the little end first.
    """
    if isinstance(comment, str):  # a field of another type than the rules ask for, whose bytes Pillow takes as Latin-1
        comment = comment.encode("latin-1", errors="replace")
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:_CODE_BYTES].rstrip(b"\0 ").upper(), comment[_CODE_BYTES:]
    if code == b"UNICODE":
        found = _utf_16_or_8(text, little)
    elif code == b"JIS":
        found = _first(text.rstrip(b"\0"), _JAPANESE)
    elif code in (b"ASCII", b""):
        found = _of_any_kind(text, little)
    else:
        found = _of_any_kind(comment, little)
    return found.strip("\0") or None


def _of_any_kind(text: bytes, little: bool) -> str:
    """Text whose code says nothing, or not the truth. In UTF-16 every ASCII letter has a byte that is 0."""
    if text[:2] in _BYTE_ORDERS or text.rstrip(b"\0").count(0) * 16 > len(text):
        return _utf_16(text, little)
    return _first(text.rstrip(b"\0"), ("utf-8", "cp1252", "latin-1"))


def _utf_16_or_8(text: bytes, little: bool) -> str:
    """Some programs write UTF-8 behind the code of UTF-16. A recipe has ASCII letters, so its UTF-16 has zeros."""
    bare = text.rstrip(b"\0")
    if bare and 0 not in bare and text[:2] not in _BYTE_ORDERS:
        try:
            return bare.decode()
        except UnicodeDecodeError:
            pass
    return _utf_16(text, little)


def _utf_16(text: bytes, little: bool) -> str:
    """EXIF does not say which end comes first; a byte order mark does, or most letters, whose codes are below 256.

    little: which end comes first where neither of them says so.
    """
    if text[:2] in _BYTE_ORDERS:
        return text[2:].decode(_BYTE_ORDERS[text[:2]], errors="replace")
    first, second = text[::2].count(0), text[1::2].count(0)
    if first != second:
        little = second > first
    return text[: len(text) // 2 * 2].decode("utf-16-le" if little else "utf-16-be", errors="replace")


def _first(text: bytes, encodings: tuple[str, ...]) -> str:
    """Decoded by the first encoding that fits; by the last one with signs in place of what does not fit."""
    for encoding in encodings:
        try:
            return text.decode(encoding)
        except UnicodeDecodeError:
            continue
    return text.decode(encodings[-1], errors="replace")
