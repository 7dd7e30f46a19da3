"""The output directory of an export: what is in it under its own name is whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.errors import UserError, show, show_path
from tpusd.storage.local import sync_directory, sync_tree

PARTIAL = ".unfinished"  # a folder in the output while an export is written
MOVED = ".moved"  # a file in it with the names that move to the output, a line each


@contextlib.contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder to write into; when the block ends without an error, all of it moves to `output`.

    output: a new or an empty directory, or one where an export was stopped, which then starts over.

    Raises UserError for a directory with anything else in it, and OSError.
    """
    output.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(output)
    partial = output / PARTIAL
    partial.mkdir()
    yield partial
    names = storage.list_directory(partial)
    sync_tree(partial)
    storage.write_file(partial / MOVED, "\n".join(names).encode())
    for name in names:
        os.rename(partial / name, output / name)
    sync_directory(output)
    shutil.rmtree(partial)


def _remove_unfinished(output: Path) -> None:
    """Removes what a stopped export left, and nothing else."""
    taken = set(storage.list_directory(output))
    moved: set[str] = set()
    if storage.is_plain_directory(output / PARTIAL):
        with contextlib.suppress(FileNotFoundError):
            moved = taken & set(storage.read_file(output / PARTIAL / MOVED).decode().split("\n"))
        moved.add(PARTIAL)
    for name in sorted(taken - moved):
        besides = f" besides an unfinished export: {show(name)}" if moved else ""
        raise UserError(f"{show_path(output)}: is not empty{besides}; name a new directory")
    for name in sorted(moved, key=PARTIAL.__eq__):  # the folder goes last, because it has the list
        path = output / name
        shutil.rmtree(path) if storage.is_plain_directory(path) else path.unlink()
