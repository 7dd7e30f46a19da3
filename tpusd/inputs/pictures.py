"""A picture's file -> pixels of an image's size. What a file must be, and how it is resized.

Raises UserError, whose line begins with the column and the file: `image`, `mask` or `control_image`. Every picture may
come from a stranger: its size is bounded before its pixels are decoded.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from tpusd import storage
from tpusd.config.rows import CONTROL_IMAGE
from tpusd.config.schema import Resize
from tpusd.errors import UserError, show_path
from tpusd.inputs.addresses import local_file, local_file_if_fetched, shown
from tpusd.inputs.arrays import Input
from tpusd.plan.specs import ControlInput, ImageSize, PictureInput
from tpusd.storage.pictures import PictureError, open_picture

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 64 << 20  # as many as the largest image that tpusd makes; 256 MiB while they are decoded
BUCKET_STEP = 64  # pixels between the sides of two buckets
MAX_RATIO = 4  # of a bucket's sides
# Modes of Pillow whose values are 8 bits of brightness, or of red, green and blue, after a palette or transparency.
_MODES = ("1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ANIMATED = ("PNG", "WEBP")  # a JPEG of several frames is a photo and its previews, of which the first is the photo


def check_picture(path: str, column: str) -> ImageSize:
    """Decodes the picture; returns height and width as it is shown. column: for the error."""
    image = _decoded(path, column)
    return image.height, image.width


def read_as_it_was(path: str, column: str, sha256: str | None) -> "Image.Image | None":
    """The picture that has this sha256; None where its file is gone, broken or another one by now."""
    try:
        file = local_file_if_fetched(path)
        size = None if file is None else storage.file_size(file)
        if file is None or size is None or size > MAX_FILE_BYTES or storage.file_sha256(file) != sha256:
            return None
        return _decoded(path, column)
    except (UserError, OSError, ValueError, RuntimeError):  # a NUL in the name; a circle of links
        return None


def read_input(picture: PictureInput, size: ImageSize) -> Input:
    """The arrays of an image of this size (height, width). Raises UserError where a file is not that of its sha256."""
    image = _decoded(picture.image, "image")
    _check_sha256(picture.image, "image", picture.image_sha256)
    pixels = np.asarray(resized(image, size, picture.resize))
    if picture.mask is None:
        return Input(pixels)
    mask = _decoded(picture.mask, "mask")
    _check_sha256(picture.mask, "mask", picture.mask_sha256)
    if mask.size != image.size:
        raise UserError(
            f"mask={show_path(Path(picture.mask))}: has {mask.width}x{mask.height} pixels and its image has "
            f"{image.width}x{image.height}; both must be of one size"
        )
    masked = np.asarray(resized(mask, size, picture.resize)) >= 128
    paste = _paste(masked, picture.mask_feather) if picture.paste_back else None
    return Input(pixels, masked, paste)


def read_control(control: ControlInput, size: ImageSize) -> np.ndarray:
    """The control image (H,W,3) uint8 for an image of this size (height, width). Otherwise as `read_input`."""
    image = _decoded(control.image, CONTROL_IMAGE)
    _check_sha256(control.image, CONTROL_IMAGE, control.image_sha256)
    return np.asarray(resized(image, size, control.resize))


def fitted_size(picture: ImageSize, box: ImageSize, multiple: int) -> ImageSize:
    """The largest size of the picture's shape within the box, in multiples: height and width."""
    scale = min(own / most for own, most in zip(box, picture, strict=True))
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in picture)
    return height, width


def bucket_size(picture: ImageSize, box: ImageSize, multiple: int) -> ImageSize:
    """Of the sizes with about as many pixels as the box, the one whose shape is nearest to the picture's.

    For a box of 1024x1024 they are sizes of SDXL's own training (Podell et al. 2023, appendix I): multiples of 64 with
    at most that many pixels, and one side up to four times the other. Smaller boxes have smaller steps.
    """
    step = max(multiple, min(BUCKET_STEP, int(math.sqrt(box[0] * box[1]) / 16) // multiple * multiple))
    sizes = [(height, box[0] * box[1] // height // step * step) for height in range(step, 2 * sum(box), step)]
    sizes = [(height, width) for height, width in sizes if width and max(height / width, width / height) <= MAX_RATIO]
    shape = math.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1]))


def _decoded(path: str, column: str) -> "Image.Image":
    """RGB, or L for a mask: upright, 8 bits, opaque."""
    from PIL import ImageOps

    try:
        with open_picture(local_file(path, column)) as image:
            if image.width * image.height > MAX_PIXELS:
                _refuse(path, column, f"has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
            frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
            if frames > 1:
                _refuse(path, column, f"has {frames} frames; save one of them as a picture")
            if image.mode not in (*_MODES, *_SIXTEEN_BITS):
                _refuse(path, column, f"has colours of the kind {image.mode}; save it as RGB")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _opaque(_eight_bits(upright), column)
    except PictureError as error:
        raise UserError(f"{column}={shown(path)}: {error.reason}") from None


def _check_sha256(path: str, column: str, sha256: str | None) -> None:
    if sha256 is not None and storage.file_sha256(local_file(path, column)) != sha256:
        _refuse(path, column, "has changed since the run began; restore it")


def _refuse(path: str, column: str, rule: str) -> NoReturn:
    raise UserError(f"{column}={shown(path)}: {rule}")


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """16 bits of brightness as 8. Pillow itself would cut them off at 255."""
    from PIL import Image

    if image.mode not in _SIXTEEN_BITS:
        return image
    values = np.asarray(image).astype(np.float64).clip(0, 65535)
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _opaque(image: "Image.Image", column: str) -> "Image.Image":
    """A picture on white; a mask and a control image on black, which is nothing in both."""
    from PIL import Image

    mode = "L" if column == "mask" else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white" if column == "image" else "black")
    return Image.alpha_composite(ground, image).convert(mode)


def resized(image: "Image.Image", size: ImageSize, resize: Resize) -> "Image.Image":
    """The image at this height and width, as `resize` says. An image of that size stays as it is."""
    from PIL import Image, ImageOps

    height, width = size
    if image.size == (width, height):
        return image
    if resize in ("fill", "bucket"):
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if resize == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color="black")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _paste(masked: np.ndarray, feather: int) -> np.ndarray:
    """The share of the made image, which grows from 0 at the mask's edge to 1 within `feather` pixels of it."""
    from PIL import Image, ImageFilter

    if not feather:
        return masked.astype(np.float32)
    picture = Image.fromarray(masked.astype(np.uint8) * 255)
    blurred = np.asarray(picture.filter(ImageFilter.BoxBlur(feather)), np.float32) / 255
    return np.where(masked, np.clip(2 * blurred - 1, 0, 1), 0).astype(np.float32)
