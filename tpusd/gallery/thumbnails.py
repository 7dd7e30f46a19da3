"""The thumbnails of a run's page: .thumbs/, a WebP for each image that is larger than one."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tpusd import storage
from tpusd.records.layout import THUMBNAILS
from tpusd.records.manifest import ImageRecord
from tpusd.storage.pictures import open_picture

SIZE = 256  # pixels of the longer side; the page shows images up to this size themselves
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


def _needs_one(record: ImageRecord) -> bool:
    return max(record.height, record.width) > SIZE


def _write_thumbnail(path: Path, file: Path) -> None:
    from PIL import Image

    target = path / THUMBNAILS / f"{file.stem}.webp"
    if storage.file_size(target):
        return
    with open_picture(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    storage.write_file(target, buffer.getvalue())
