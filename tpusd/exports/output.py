"""The output directory of an export: what is in it under its own name is whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.errors import UserError, show_path

PARTIAL = ".unfinished"  # a folder in the output while an export is written


@contextlib.contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder to write into; when the block ends without an error, all of it moves to `output`.

    output: a new or an empty directory, or one that an export was writing when it was stopped; that begins anew.

    Raises UserError for a directory with anything else in it, and OSError.
    """
    output.mkdir(parents=True, exist_ok=True)
    taken = storage.list_directory(output)
    if PARTIAL in taken and storage.is_plain_directory(output / PARTIAL):
        for name in sorted(taken, key=PARTIAL.__eq__):  # the mark goes last
            _remove(output / name)
    elif taken:
        raise UserError(f"{show_path(output)}: is not empty; name a new directory")
    partial = output / PARTIAL
    partial.mkdir()
    yield partial
    for name in storage.list_directory(partial):
        os.rename(partial / name, output / name)
    partial.rmdir()


def _remove(path: Path) -> None:
    if storage.is_plain_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink()
