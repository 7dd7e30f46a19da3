"""Where files are kept. Everything above works on paths with these functions, and does not know what store has them.

A further kind of store is a module like `local` that does what `base.Store` says, and a line in `store_of`.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tpusd.errors import UserError, show_path
from tpusd.storage import local
from tpusd.storage.base import Store
from tpusd.storage.local import TEMPORARY

__all__ = [
    "TEMPORARY",
    "check_writable",
    "ends_torn",
    "exists",
    "file_sha256",
    "file_size",
    "is_plain_directory",
    "list_directory",
    "make_directory",
    "make_parents",
    "modified",
    "open_file",
    "os_errors_as_user_errors",
    "read_file",
    "read_lines",
    "remove_directory",
    "remove_file",
    "store_of",
    "write_chunks",
    "write_file",
    "write_new_file",
]


def store_of(path: Path) -> Store:
    """The store that keeps `path`."""
    return local


def write_file(path: Path, data: bytes) -> None:
    store_of(path).write_file(path, data)


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    store_of(path).write_chunks(path, chunks)


def write_new_file(path: Path, data: bytes) -> None:
    store_of(path).write_new_file(path, data)


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    return store_of(path).read_file(path, max_bytes)


def open_file(path: Path) -> BinaryIO:
    return store_of(path).open_file(path)


def read_lines(path: Path, max_bytes: int) -> Iterator[bytes]:
    return store_of(path).read_lines(path, max_bytes)


def ends_torn(path: Path) -> bool:
    return store_of(path).ends_torn(path)


def file_sha256(path: Path) -> str:
    return store_of(path).file_sha256(path)


def file_size(path: Path) -> int | None:
    return store_of(path).file_size(path)


def modified(path: Path) -> float | None:
    return store_of(path).modified(path)


def exists(path: Path) -> bool:
    return store_of(path).exists(path)


def is_plain_directory(path: Path) -> bool:
    return store_of(path).is_plain_directory(path)


def list_directory(path: Path) -> list[str]:
    return store_of(path).list_directory(path)


def make_directory(path: Path) -> None:
    store_of(path).make_directory(path)


def make_parents(path: Path, made: list[Path]) -> None:
    store_of(path).make_parents(path, made)


def check_writable(path: Path) -> None:
    store_of(path).check_writable(path)


def remove_file(path: Path) -> None:
    store_of(path).remove_file(path)


def remove_directory(path: Path) -> None:
    store_of(path).remove_directory(path)


@contextlib.contextmanager
def os_errors_as_user_errors(path: Path, advice: str, *, operation: str = "written") -> Iterator[None]:
    """OSErrors of the block, as a UserError of one line about the directory `path`.

    advice: what the user can do.
    operation: what failed, as in "cannot be written".
    """
    try:
        yield
    except OSError as error:
        what = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise UserError(
            f"output={show_path(path)}: cannot be {operation}: {error.strerror or error}{what}; {advice}"
        ) from None
