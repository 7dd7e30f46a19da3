"""A picture file -> the texts that it carries. Knows nothing of what they say."""

from pathlib import Path

from tpusd.recipes.base import PictureTexts
from tpusd.storage.pictures import open_picture

EXIF_UNICODE = b"UNICODE\0"  # what EXIF's UserComment begins with; A1111 follows it by UTF-16, big end first


def read_texts(path: Path) -> PictureTexts:
    """The texts of any program's picture. Raises PictureError where the file is not a picture."""
    with open_picture(path) as image:
        from PIL import ExifTags

        image.load()  # text chunks may follow the pixels
        chunks = {str(name): str(text) for name, text in getattr(image, "text", {}).items()}
        xmp = image.info.get("xmp")
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    packet = xmp.decode(errors="replace") if isinstance(xmp, bytes) else xmp
    return PictureTexts(
        chunks=chunks, user_comment=_user_comment(comment), xmp=packet if isinstance(packet, str) else None
    )


def _user_comment(comment: object) -> str | None:
    """EXIF does not say which end comes first; a text's first letter does, for most have a code below 256."""
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:8], comment[8:]
    if code == EXIF_UNICODE:
        little = len(text) > 1 and text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if little else "utf-16-be", errors="replace")
    return text.decode(errors="replace").strip("\0") or None
