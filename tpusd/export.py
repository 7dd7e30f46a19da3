"""`python -m tpusd.export runs/DIR OUT --format webdataset`: a run or a sweep in a layout that other programs read.

webdataset    OUT/00000.tar, 00001.tar, ...: KEY.png, KEY.txt (the prompt) and KEY.json (the manifest line) an image
geneval       OUT/00003/metadata.jsonl (the prompt's line) and samples/0001.png: row 3, copy 1; of a sweep OUT/RUN/...
"""

import argparse
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd.config.schema import show_path
from tpusd.errors import UserError
from tpusd.process.exit import exit_status, refuse_arguments
from tpusd.prompts.rows import MANIFEST_FIELDS
from tpusd.storage import local as storage

SHARD_SIZE = 1000  # images


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An image to export. `run`: the name of its run in a sweep, else empty."""

    run: str
    file: Path
    record: Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tpusd.export", description="Writes a run or a sweep in a layout that other programs read."
    )
    parser.add_argument("directory", type=Path, help="a run directory or a sweep's")
    parser.add_argument("output", type=Path, help="a new or an empty directory")
    parser.add_argument("--format", choices=("webdataset", "geneval"), required=True)
    parser.add_argument(
        "--shard-size", type=int, default=SHARD_SIZE, help=f"images of a tar file (default: {SHARD_SIZE})"
    )
    with exit_status() as status:
        parser.error = refuse_arguments
        arguments = parser.parse_args(argv)
        if arguments.shard_size < 1:
            raise UserError(f"--shard-size={arguments.shard_size}: must be 1 or more")
        try:
            count = export(arguments.directory, arguments.output, arguments.format, shard_size=arguments.shard_size)
        except OSError as error:
            raise UserError(f"{show_path(error.filename or arguments.output)}: {error.strerror or error}") from None
        print(f"{arguments.output}: {count} images")
    return status[0]


def export(path: Path, output: Path, layout: str, *, shard_size: int = SHARD_SIZE) -> int:
    """Returns the number of images. Raises UserError where there are none or `output` is taken, and OSError."""
    images = exported_images(path)
    first = next(images, None)
    if first is None:
        raise UserError(f"{show_path(path)}: holds no images")
    output.mkdir(parents=True, exist_ok=True)
    if storage.list_directory(output):
        raise UserError(f"{show_path(output)}: is not empty; name a new directory")

    def every() -> Iterator[Exported]:
        yield first
        yield from images

    return write_geneval(every(), output) if layout == "geneval" else write_webdataset(every(), output, shard_size)


def exported_images(path: Path) -> Iterator[Exported]:
    """Every image of the manifests, row by row and copy by copy."""
    from tpusd.records.directory import IMAGES, read_manifest
    from tpusd.records.sweep import run_directories

    for name, directory in run_directories(path):
        records = sorted(read_manifest(directory), key=lambda record: (record["row"], record["copy"]))
        for record in records:
            yield Exported(run=name, file=directory / IMAGES / Path(record["file_name"]).name, record=record)


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
            line = json.dumps(image.record, ensure_ascii=False)
            for suffix, data in (
                (image.file.suffix, storage.read_file(image.file)),
                (".txt", image.record["prompt"].encode()),
                (".json", line.encode()),
            ):
                entry = tarfile.TarInfo(key + suffix)  # without a time, so that the same images give the same bytes
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    finally:
        if shard is not None:
            shard.close()
    return count


def write_geneval(images: Iterator[Exported], output: Path) -> int:
    """metadata.jsonl is the line of evaluation_metadata.jsonl that the row came from: its columns and its prompt."""
    count = 0
    for count, image in enumerate(images, 1):  # noqa: B007
        record = image.record
        directory = output / image.run / f"{record['row']:05d}"
        samples = directory / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        line = {name: value for name, value in record.items() if name not in MANIFEST_FIELDS} | {
            "prompt": record["prompt"]
        }
        (directory / "metadata.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
        (samples / f"{record['copy']:04d}.png").write_bytes(_png(image.file))
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


if __name__ == "__main__":
    sys.exit(main())
