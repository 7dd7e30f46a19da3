"""A picture of Pillow, given from Python where the command line takes a path -> a file.

The file is in the user's cache, named by its content, because a run's config names its pictures by their paths.
"""

import hashlib
import io
from typing import TYPE_CHECKING, TypeGuard

from tpusd import storage
from tpusd.errors import UserError
from tpusd.storage import os_errors_as_user_errors
from tpusd.storage.cache import cache_folder

if TYPE_CHECKING:
    from PIL import Image


def is_picture(value: object) -> "TypeGuard[Image.Image]":
    """Without importing Pillow, which whoever has a picture has imported."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(value).__mro__)


def picture_file(picture: "Image.Image", field: str) -> str:
    """The path of a PNG file of the picture. Raises UserError. field: as the error names it."""
    data = io.BytesIO()
    try:
        picture.save(data, format="PNG")
        folder = cache_folder("pictures")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{field}: a picture of the mode {picture.mode} cannot be kept as PNG ({error})") from None
    file = folder / f"{hashlib.sha256(data.getvalue()).hexdigest()}.png"
    with os_errors_as_user_errors(folder, "make room, or give the path of a file"):
        folder.mkdir(parents=True, exist_ok=True)
        if storage.file_size(file) != len(data.getvalue()):
            storage.write_file(file, data.getvalue())
    return str(file)
