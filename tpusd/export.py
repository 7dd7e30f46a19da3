"""`python -m tpusd.export runs/DIR OUT --format webdataset`: a run or a sweep in a layout that other programs read.

webdataset    OUT/00000.tar, 00001.tar, ...: KEY.png, KEY.txt (the prompt) and KEY.json (the manifest line) an image
geneval       OUT/00003/metadata.jsonl (the prompt's line) and samples/0001.png: row 3, copy 1; of a sweep OUT/RUN/...
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpusd.errors import UserError, show_path
from tpusd.exports.base import Exported, exported_images
from tpusd.exports.geneval import write_geneval
from tpusd.exports.webdataset import SHARD_SIZE, write_webdataset
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.storage import local as storage


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.export", description="Writes a run or a sweep in a layout that other programs read."
    )
    parser.add_argument("directory", type=Path, help="a run directory or a sweep's")
    parser.add_argument("output", type=Path, help="a new or an empty directory")
    parser.add_argument("--format", choices=("webdataset", "geneval"), required=True)
    parser.add_argument(
        "--shard-size", type=int, default=SHARD_SIZE, help=f"images of a tar file (default: {SHARD_SIZE})"
    )
    with exit_status() as status:
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


if __name__ == "__main__":
    sys.exit(main())
