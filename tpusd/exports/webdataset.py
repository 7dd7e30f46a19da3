"""WebDataset: tar files of images with their texts."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.exports.base import Exported

SHARD_SIZE = 1000  # images


def write_webdataset(images: Iterator[Exported], output: Path, shard_size: int) -> int:
    """A key holds no point, for there a reader of shards cuts it off."""
    count, shard = 0, None
    try:
        for count, image in enumerate(images, 1):
            if (count - 1) % shard_size == 0:
                if shard is not None:
                    shard.close()
                shard = tarfile.open(output / f"{(count - 1) // shard_size:05d}.tar", "w", format=tarfile.PAX_FORMAT)
            key = re.sub(r"[^\w-]", "_", f"{image.run}{'_' if image.run else ''}{image.file.stem}", flags=re.ASCII)
            for suffix, data in (
                (image.file.suffix, storage.read_file(image.file)),
                (".txt", image.record.prompt.encode()),
                (".json", image.record.to_line()),
            ):
                entry = tarfile.TarInfo(key + suffix)  # without a time, so that the same images give the same bytes
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    finally:
        if shard is not None:
            shard.close()
    return count
