"""Pixels -> image files that carry their recipe. Knows nothing of runs or directories.

A file carries two texts: `parameters`, in the form of A1111, and `tpusd`, the whole recipe as JSON.

    PNG           text chunks `parameters` (tEXt, or iTXt if it is not Latin-1) and `tpusd` (iTXt)
    JPEG, WebP    EXIF UserComment, and the attribute `recipe` of an XMP packet
"""

import html
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpusd.recipes import xmp
from tpusd.recipes.base import OWN, PARAMETERS
from tpusd.recipes.infotext import write_infotext
from tpusd.recipes.texts import EXIF_UNICODE

if TYPE_CHECKING:
    import numpy as np

COMPRESS_LEVEL = 1  # at 512x512: 24 ms; level 6 takes 41 ms and saves 11 %
JPEG_QUALITY = 95
SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
# Bytes that a text may take: readers refuse longer PNG chunks, and a JPEG segment holds at most 65,533.
MAX_TEXT_BYTES = {"png": (1 << 20) - 1, "webp": (1 << 20) - 1, "jpeg": 65_000}
# Characters of a prompt. It is cut until its text fits: JSON may take 12 bytes for one, and there are two prompts.
PROMPT_LIMITS = (80_000, 15_000, 2_500)


def encode_image(
    pixels: "np.ndarray", recipe: Mapping[str, Any], *, image_format: str = "png", quality: int | None = None
) -> bytes:
    """The bytes of an image file.

    pixels: uint8 (H, W, 3).
    recipe: the image's manifest fields.
    image_format: png, webp or jpeg.
    quality: 1 to 100; None: WebP without loss, JPEG at 95.
    """
    from PIL import ExifTags, Image, PngImagePlugin

    assert pixels.dtype == "uint8" and pixels.ndim == 3 and pixels.shape[2] == 3, (pixels.dtype, pixels.shape)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    parameters, own = _parameters(recipe, image_format), _recipe_json(recipe, image_format)
    if image_format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text(PARAMETERS, parameters)  # Pillow writes an iTXt if the text is not Latin-1
        info.add_itxt(OWN, own)
        image.save(buffer, "PNG", compress_level=COMPRESS_LEVEL, pnginfo=info)
        return buffer.getvalue()
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = EXIF_UNICODE + parameters.encode("utf-16-be")
    texts: dict[str, Any] = {"exif": exif.tobytes(), "xmp": xmp.write_packet(own).encode()}
    if image_format == "webp":
        image.save(buffer, "WEBP", lossless=quality is None, quality=80 if quality is None else quality, **texts)
    else:
        image.save(buffer, "JPEG", quality=quality or JPEG_QUALITY, subsampling="4:4:4", **texts)
    return buffer.getvalue()


def _parameters(recipe: Mapping[str, Any], image_format: str) -> str:
    text = ""
    for limit in PROMPT_LIMITS:
        text = write_infotext(recipe, max_chars=limit)
        if len(text.encode() if image_format == "png" else text.encode("utf-16-be")) <= MAX_TEXT_BYTES[image_format]:
            break
    return text


def _recipe_json(recipe: Mapping[str, Any], image_format: str) -> str:
    """The recipe as JSON. If it is too long, it loses its further columns, and then the ends of its prompts."""
    without = {name: value for name, value in recipe.items() if name != "extra"}
    text = ""
    for own, limit in [(recipe, PROMPT_LIMITS[0]), *((without, limit) for limit in PROMPT_LIMITS)]:
        cut = {name: value[:limit] if isinstance(value, str) else value for name, value in own.items()}
        text = json.dumps(cut, ensure_ascii=image_format != "png")  # XML has no control characters
        size = len(text.encode()) if image_format == "png" else len(xmp.PACKET) + len(html.escape(text))
        if size <= MAX_TEXT_BYTES[image_format]:
            break
    return text
