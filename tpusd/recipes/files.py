"""Pixels -> image files that carry their recipe, and contact sheets. Knows nothing of runs or directories.

A file carries two texts: `parameters`, as A1111 and its readers know it, and `tpusd`, the whole recipe as JSON.

    PNG           text chunks `parameters` (iTXt where it is not Latin-1) and `tpusd` (iTXt)
    JPEG, WebP    EXIF UserComment, and the attribute `recipe` of an XMP packet
"""

import html
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from tpusd.errors import UserError, show, show_path
from tpusd.recipes.infotext import write_infotext

COMPRESS_LEVEL = 1  # at 512x512: 24 ms; level 6 takes 41 ms and saves 11 %
JPEG_QUALITY = 95
SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
# Bytes that a text may take: readers refuse longer PNG chunks, and a JPEG segment holds no more than 65,533.
MAX_TEXT_BYTES = {"png": (1 << 20) - 1, "webp": (1 << 20) - 1, "jpeg": 65_000}
# Characters of a prompt, which is cut until its text fits: JSON may take 12 bytes for one, and there are two prompts.
PROMPT_LIMITS = (80_000, 15_000, 2_500)
EXIF_UNICODE = b"UNICODE\0"  # what EXIF's UserComment begins with; A1111 follows it by UTF-16, big end first
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:tpusd="https://tpusd.invalid/xmp/1/" tpusd:recipe="{}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_XMP_RECIPE = re.compile(r'tpusd:recipe="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a picture says of itself; None where it carries no such text."""

    parameters: str | None
    recipe: dict[str, Any] | None


def encode_image(
    pixels: np.ndarray, recipe: Mapping[str, Any], *, image_format: str = "png", quality: int | None = None
) -> bytes:
    """uint8 (H, W, 3) -> a file's bytes. quality: 1 .. 100; None: WebP without loss, JPEG at 95."""
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, (pixels.dtype, pixels.shape)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    parameters, own = _parameters(recipe, image_format), _recipe_json(recipe, image_format)
    if image_format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", parameters)  # Pillow makes it an iTXt where it is not Latin-1
        info.add_itxt("tpusd", own)
        image.save(buffer, "PNG", compress_level=COMPRESS_LEVEL, pnginfo=info)
        return buffer.getvalue()
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = EXIF_UNICODE + parameters.encode("utf-16-be")
    texts = {"exif": exif.tobytes(), "xmp": _XMP.format(html.escape(own)).encode()}
    if image_format == "webp":
        image.save(buffer, "WEBP", lossless=quality is None, quality=80 if quality is None else quality, **texts)
    else:
        image.save(buffer, "JPEG", quality=quality or JPEG_QUALITY, subsampling="4:4:4", **texts)
    return buffer.getvalue()


def read_metadata(path: Path) -> Metadata:
    """The texts of a picture of ours or of any other program. Raises UserError where the file is not a picture."""
    try:
        with Image.open(path) as image:
            image.load()  # text chunks may stand behind the pixels
            texts, xmp = dict(getattr(image, "text", {})), image.info.get("xmp", b"")
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except OSError as error:
        raise UserError(f"{show_path(path)}: cannot be read: {error.strerror or 'it is not a picture'}") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken files
        raise UserError(f"{show_path(path)}: is a broken or an oversized picture: {show(str(error))}") from None
    found = _XMP_RECIPE.search(xmp.decode(errors="replace") if isinstance(xmp, bytes) else str(xmp))
    own = texts.get("tpusd") or (html.unescape(found[1]) if found else None)
    return Metadata(parameters=texts.get("parameters") or _user_comment(comment), recipe=_read_recipe(own))


def _parameters(recipe: Mapping[str, Any], image_format: str) -> str:
    for limit in PROMPT_LIMITS:
        text = write_infotext(recipe, max_chars=limit)
        if len(text.encode() if image_format == "png" else text.encode("utf-16-be")) <= MAX_TEXT_BYTES[image_format]:
            break
    return text


def _recipe_json(recipe: Mapping[str, Any], image_format: str) -> str:
    """The recipe as JSON; where it would be too long, without its further columns and then the ends of its prompts."""
    without = {name: value for name, value in recipe.items() if name != "extra"}
    for own, limit in [(recipe, PROMPT_LIMITS[0]), *((without, limit) for limit in PROMPT_LIMITS)]:
        cut = {name: value[:limit] if isinstance(value, str) else value for name, value in own.items()}
        text = json.dumps(cut, ensure_ascii=image_format != "png")  # XML knows no control characters
        size = len(text.encode()) if image_format == "png" else len(_XMP) + len(html.escape(text))
        if size <= MAX_TEXT_BYTES[image_format]:
            break
    return text


def _read_recipe(text: str | None) -> dict[str, Any] | None:
    try:
        recipe = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _user_comment(comment: Any) -> str | None:
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
