"""Every disk operation of a run, and the only module that makes one.

Each function is a short sequence of `os` calls, so that replacing `storage.os` sees, fails or stops each of them.
Knows nothing of what the bytes mean. Everything raises OSError as the system gave it.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp"  # suffix of files in the making; what carries it after a crash is waste


def make_directory(path: Path) -> None:
    """Makes `path`, whose parent exists. Raises FileExistsError: of two processes exactly one makes it."""
    os.mkdir(path)
    sync_directory(path.parent)


def make_parents(path: Path, made: list[Path]) -> None:
    """Makes the missing parents of `path`; adds those it made to `made`, outermost first, also when it then fails."""
    missing = []
    parent = path.parent
    while not exists(parent):
        missing.append(parent)
        parent = parent.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process may be making the same parents
            os.mkdir(directory)
            made.append(directory)


def write_file(path: Path, data: bytes) -> None:
    """The whole file or nothing: temporary file, fsync, rename, fsync of the directory. Replaces an older file."""
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def create_file(path: Path) -> None:
    """Makes an empty file. Raises FileExistsError: of two processes exactly one makes it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


class LineFile:
    """A file that grows by whole lines. Opening cuts off a torn last line: what follows one would be lost with it."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self.num_torn_bytes = self._cut_torn_line()
        except OSError:
            os.close(self._descriptor)
            raise

    def append(self, line: bytes, *, sync: bool = True) -> None:
        """One write() of `line` and its newline. A line that does not fit on the disk is taken back whole."""
        size = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, line + b"\n")
            if sync:
                os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def _cut_torn_line(self) -> int:
        end = size = os.fstat(self._descriptor).st_size
        while end > 0:
            start = max(0, end - 65536)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
        return size - end


def read_lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, one at a time; a torn last line is left out. A missing file has no lines."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def read_file(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def file_size(path: Path) -> int | None:
    """Bytes, or None where there is no such file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def exists(path: Path) -> bool:
    """A link that leads nowhere exists too."""
    return os.path.lexists(path)


def check_writable(path: Path) -> None:
    """Raises what making something in the directory `path` would raise, as far as its permissions tell."""
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def list_directory(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def remove_file(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_directory(path: Path) -> None:
    """Removes an empty directory; one that holds anything raises OSError and stays."""
    os.rmdir(path)


def sync_directory(path: Path) -> None:
    """Makes renames and new names in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write may take less than it is given, and then says why at the next call."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
