"""GenEval's layout: a directory a prompt."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.exports.base import Exported


def write_geneval(images: Iterator[Exported], output: Path) -> int:
    """metadata.jsonl is the line of evaluation_metadata.jsonl that the row came from: its columns and its prompt."""
    count = 0
    for count, image in enumerate(images, 1):  # noqa: B007
        record = image.record
        directory = output / image.run / f"{record.row:05d}"
        samples = directory / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        line = dict(record.extra) | {"prompt": record.prompt}
        (directory / "metadata.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
        (samples / f"{record.copy:04d}.png").write_bytes(_png(image.file))
    return count


def _png(file: Path) -> bytes:
    """GenEval looks at PNG files alone."""
    data = storage.read_file(file)
    if file.suffix == ".png":
        return data
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(buffer, "PNG")
    return buffer.getvalue()
