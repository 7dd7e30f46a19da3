"""The thumbnails of a run's page, WebP files in .thumbs/: of each image that is larger than one, and of each input.

An input is shown as its image got it, cut and resized, so that the page can lay one over the other.
"""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd import storage
from tpusd.config.rows import CONTROL_IMAGE
from tpusd.config.schema import Resize
from tpusd.inputs.pictures import read_as_it_was, resized
from tpusd.plan.specs import ImageSize
from tpusd.records.layout import THUMBNAILS
from tpusd.records.manifest import ImageRecord
from tpusd.storage.pictures import open_picture

if TYPE_CHECKING:
    from PIL import Image

SIZE = 256  # pixels of the longer side; the page shows images up to this size themselves
INPUT_SIZE = 512  # of an input, which the page lays over its image
QUALITY = 80
NUM_ENCODERS = 4


def has_thumbnails(records: Iterable[ImageRecord]) -> bool:
    """Whether a run with this manifest has any: small images need none."""
    return any(map(_needs_one, records))


def write_thumbnails(path: Path, records: Iterable[ImageRecord]) -> None:
    """Makes those that are missing in the run directory `path`. Raises OSError."""
    records = [record for record in records if _needs_one(record)]
    if not records:
        return
    directory = path / THUMBNAILS
    if not storage.exists(directory):
        storage.make_directory(directory)
    with ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="thumbnails") as pool:
        for _ in pool.map(lambda record: _write_thumbnail(path, path / record.file_name), records):
            pass


def write_input_thumbnails(path: Path, records: Iterable[ImageRecord], resize: Resize) -> None:
    """Makes those of the pictures, masks and control images of images. One that is gone or changed is left out.

    resize: how the run gave its inputs the sizes of their images. Raises OSError.
    """
    inputs: dict[tuple[str, ImageSize], tuple[str, str]] = {}  # (sha256, size of its image) -> the file, what it is
    for record in records:
        own = [(record.image, record.image_sha256, "image"), (record.mask, record.mask_sha256, "mask")]
        controls = zip(record.control_images or (), record.control_images_sha256 or (), strict=False)
        own += [(file, sha256, CONTROL_IMAGE) for file, sha256 in controls]
        for file, sha256, column in own:
            if file is not None and sha256 is not None:
                inputs.setdefault((sha256, (record.height, record.width)), (file, column))
    if not inputs:
        return
    directory = path / THUMBNAILS
    if not storage.exists(directory):
        storage.make_directory(directory)

    def write(item: tuple[tuple[str, ImageSize], tuple[str, str]]) -> None:
        (sha256, size), (file, column) = item
        target = directory / f"input-{sha256[:16]}-{size[1]}x{size[0]}.webp"
        image = None if storage.file_size(target) else read_as_it_was(file, column, sha256)
        if image is not None:
            _write(target, resized(image, size, resize).convert("RGB"), INPUT_SIZE)

    with ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="thumbnails") as pool:
        for _ in pool.map(write, inputs.items()):
            pass


def _needs_one(record: ImageRecord) -> bool:
    return max(record.height, record.width) > SIZE


def _write_thumbnail(path: Path, file: Path) -> None:
    target = path / THUMBNAILS / f"{file.stem}.webp"
    if storage.file_size(target):
        return
    with open_picture(file) as opened:
        image = opened.convert("RGB")
    _write(target, image, SIZE)


def _write(target: Path, image: "Image.Image", size: int) -> None:
    from PIL import Image

    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    storage.write_file(target, buffer.getvalue())
