"""GenEval's layout: a directory for each prompt."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.exports.base import Exported, Options
from tpusd.storage.pictures import open_picture


def write_geneval(images: Iterator[Exported], output: Path, _: Options) -> int:
    """OUT/00003/metadata.jsonl and samples/0001.png: row 3, copy 1.

    metadata.jsonl is the line of evaluation_metadata.jsonl that the row came from: its columns and its prompt.
    """
    count = 0
    for count, image in enumerate(images, 1):  # noqa: B007
        record = image.record
        directory = output / image.run / f"{record.row:05d}"
        samples = directory / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        line = json.dumps(dict(record.extra) | {"prompt": record.prompt}, ensure_ascii=False)
        (directory / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
        (samples / f"{record.copy:04d}.png").write_bytes(_png(image.file))
    return count


def _png(file: Path) -> bytes:
    """GenEval reads PNG files only."""
    if file.suffix == ".png":
        return storage.read_file(file)
    buffer = io.BytesIO()
    with open_picture(file) as image:
        image.save(buffer, "PNG")
    return buffer.getvalue()
