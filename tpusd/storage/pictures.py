"""Opens pictures, and is the only module that does: a picture may come from a stranger.

Pillow knows some forty formats and chooses by a file's first bytes, whatever its name; for PostScript it starts another
program. Here a picture is a PNG, JPEG or WebP file. Knows nothing of what a picture shows or says.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd import storage
from tpusd.errors import UserError, show, show_path

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2 * 8192**2  # twice the largest picture that tpusd makes, and less than Pillow's own limit


class PictureError(UserError):
    """A picture that cannot be read. `reason`: the message without the file's name."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{show_path(path)}: {reason}")
        self.reason = reason


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator["Image.Image"]:
    """Opens the PNG, JPEG or WebP file `path`; Pillow decodes its pixels when they are first asked for.

    The block holds only what reads the picture: each of its errors becomes a PictureError. Raises PictureError also for
    a missing file, a link, a pipe, another format, and more than MAX_PIXELS pixels.
    """
    from PIL import Image, UnidentifiedImageError

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS decides
    try:
        with storage.open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(path, f"has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
            yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise PictureError(path, "is not a PNG, JPEG or WebP picture") from None
    except OSError as error:
        raise PictureError(path, f"cannot be read: {error.strerror or show(str(error))}") from None
    except Exception as error:  # Pillow's decoders raise errors of many types for a broken file
        raise PictureError(path, f"is a broken or an oversized picture: {show(str(error))}") from None
