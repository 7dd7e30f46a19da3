"""WebDataset: tar files of images with their texts."""

import io
import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.exports.base import Exported, Options


def write_webdataset(images: Iterator[Exported], output: Path, options: Options) -> int:
    """OUT/00000.tar, 00001.tar, ...: of each image KEY.png, KEY.txt (the prompt) and KEY.json (its line and scores)."""
    count = 0
    for number, shard in enumerate(_shards(images, options.shard_size)):
        with tarfile.open(output / f"{number:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for image in shard:
                _add(tar, image)
                count += 1
    return count


def _shards(images: Iterator[Exported], size: int) -> Iterator[Iterator[Exported]]:
    """Each shard is read to its end before the next one."""
    for first in images:
        yield itertools.chain([first], itertools.islice(images, size - 1))


def _add(tar: tarfile.TarFile, image: Exported) -> None:
    key = _key(image)
    for suffix, data in (
        (image.file.suffix, storage.read_file(image.file)),
        (".txt", image.record.prompt.encode()),
        (".json", image.to_line()),
    ):
        entry = tarfile.TarInfo(key + suffix)  # without a time, so that the same images give the same bytes
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def _key(image: Exported) -> str:
    """A reader of shards ends a key at its first point, so it has none."""
    return re.sub(r"[^\w-]", "_", f"{image.run}{'_' if image.run else ''}{image.file.stem}", flags=re.ASCII)
