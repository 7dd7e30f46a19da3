"""`python -m tpusd.export runs/DIR OUT --format webdataset`: a run or a sweep in a layout that other programs read.

webdataset    OUT/00000.tar, 00001.tar, ...: for each image KEY.png, KEY.txt (prompt), KEY.json (manifest line, scores)
parquet       OUT/00000.parquet, ...: a row for each image, with the picture, the manifest line and the scores
geneval       OUT/00003/metadata.jsonl (the prompt's line) and samples/0001.png: row 3, copy 1; of a sweep OUT/RUN/...
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from tpusd.config.paths import path_argument
from tpusd.errors import UserError, show_path
from tpusd.exports.base import Options, exported_images
from tpusd.exports.output import unfinished
from tpusd.exports.registry import EXPORTERS
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.report import say


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.export", description="Writes a run or a sweep in a layout that other programs read."
    )
    parser.add_argument("directory", type=path_argument, help="a run directory or a sweep's")
    parser.add_argument("output", type=path_argument, help="a new or an empty directory")
    parser.add_argument("--format", choices=tuple(EXPORTERS), required=True)
    size = Options.shard_size
    parser.add_argument("--shard-size", type=int, default=size, help=f"images of a tar file (default: {size})")
    with exit_status() as status:
        arguments = parser.parse_args(argv)
        if arguments.shard_size < 1:
            raise UserError(f"--shard-size={arguments.shard_size}: must be 1 or more")
        try:
            options = Options(shard_size=arguments.shard_size)
            count = export(arguments.directory, arguments.output, arguments.format, options)
        except OSError as error:
            raise UserError(f"{show_path(error.filename or arguments.output)}: {error.strerror or error}") from None
        say(f"{arguments.output}: {count} image{'' if count == 1 else 's'}")
    return status[0]


def export(path: Path, output: Path, layout: str, options: Options) -> int:
    """Returns the number of images.

    path: a run directory or a sweep's.
    output: a new or an empty directory.
    layout: one of EXPORTERS.

    Raises UserError if there are no images or `output` is not empty, and OSError.
    """
    images = exported_images(path)
    first = next(images, None)
    if first is None:
        raise UserError(f"{show_path(path)}: holds no images")
    with unfinished(output) as partial:
        return EXPORTERS[layout](itertools.chain([first], images), partial, options)


if __name__ == "__main__":
    sys.exit(main())
