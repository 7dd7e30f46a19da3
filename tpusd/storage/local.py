"""The local disk: every disk operation of a run, and no other module makes one.

Each function is a short sequence of `os` calls, so that a test can replace `local.os` and see, fail or stop each call.
A run directory may come from a stranger: no function opens a link, a pipe or a device.
Knows nothing of what the bytes mean. Every function raises OSError as the system gave it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # suffix of an unfinished file; after a crash such a file is waste


def make_directory(path: Path) -> None:
    """Makes `path`, whose parent exists. Of two processes exactly one succeeds; the other gets FileExistsError."""
    os.mkdir(path)
    try:
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise


def make_parents(path: Path, made: list[Path]) -> None:
    """Makes the missing parents of `path`, outermost first, and adds each to `made` at once, also before a failure."""
    missing = []
    parent = path.parent
    while not exists(parent) and parent != parent.parent:  # a disk that fails may deny even the root
        missing.append(parent)
        parent = parent.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process may be making the same parents
            os.mkdir(directory)
            made.append(directory)
            sync_directory(directory.parent)  # else a power cut may take the whole run away


def write_file(path: Path, data: bytes) -> None:
    """Writes the whole file or nothing: temporary file, fsync, rename, fsync of the directory. Replaces an old file."""
    write_chunks(path, (data,))


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Like `write_file`, for data that should not be in memory at once."""
    _write_chunks(path, chunks)
    sync_directory(path.parent)


def write_unsynced_name(path: Path, data: bytes) -> None:
    """Like `write_file`, but the name survives a power failure only after a `sync_directory`, one for many files."""
    _write_chunks(path, (data,))


def _write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    remove_file(temporary)  # a crash left it, or somebody placed a link here
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            for chunk in chunks:
                _write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_new_file(path: Path, data: bytes) -> None:
    """The whole file or nothing. Raises FileExistsError where `path` exists."""
    temporary = path.with_name(path.name + TEMPORARY)
    remove_file(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(temporary, path)  # unlike a rename, it fails where the name is taken
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    sync_directory(path.parent)


class LineFile:
    """A file that grows by whole lines. Opening it cuts off a torn last line, because the next line would join it."""

    def __init__(self, path: Path):
        self._descriptor = _open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._cut_torn_line()
        except OSError:
            os.close(self._descriptor)
            raise

    def append(self, *lines: bytes, sync: bool = True) -> None:
        """Appends lines, each with a newline, in one write(). If the disk is full, no part of them stays."""
        size = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, b"".join(line + b"\n" for line in lines))
            if sync:
                os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def lock(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Locks the file until it is closed or the process ends. Returns False if another process holds the lock.

        shared: with others that share it. wait: until the others have ended, and then return True.
        On a file system without locks it returns True.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        return True

    def is_at(self, path: Path) -> bool:
        """Whether `path` still names this file: another process may have removed it before the lock was taken."""
        own = os.fstat(self._descriptor)
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            return False
        return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)

    def close(self) -> None:
        os.close(self._descriptor)

    def _cut_torn_line(self) -> None:
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


def read_lines(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Yields the whole lines of a file, without a torn last line. A missing file has no lines.

    A line of more than `max_bytes` is cut to that length.
    """
    try:
        file = os.fdopen(_open_regular(path, os.O_RDONLY), "rb")
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(max_bytes + 1):
            rest = line
            while len(rest) > max_bytes and not rest.endswith(b"\n"):
                rest = file.readline(max_bytes + 1)
            if rest.endswith(b"\n"):
                yield line.removesuffix(b"\n")[:max_bytes]


def ends_torn(path: Path) -> bool:
    """True if the file's last byte is not a newline. A missing or empty file is not torn."""
    try:
        with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
    except FileNotFoundError:
        return False


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Returns the whole file. Raises OSError (EFBIG) if it holds more than `max_bytes`."""
    with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
        data = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError for a link, a pipe and a device too."""
    return os.fdopen(_open_regular(path, os.O_RDONLY), "rb")


def file_sha256(path: Path) -> str:
    with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_size(path: Path) -> int | None:
    """The size in bytes. None if there is no such file, or if it is a link, a directory or the like."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def modified(path: Path) -> float | None:
    """When the file was last written, in seconds since 1970. None if there is no such file."""
    try:
        return os.lstat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_plain_directory(path: Path) -> bool:
    """True for a directory, and False for a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def exists(path: Path) -> bool:
    """True if the name exists, even as a link to nothing."""
    try:
        os.lstat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def check_writable(path: Path) -> None:
    """Raises OSError if `path` is not a directory, or if its permissions forbid to make files in it."""
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
    """Removes an empty directory. Raises OSError if it is not empty."""
    os.rmdir(path)


def sync_directory(path: Path) -> None:
    """Makes renames and new names in `path` survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Makes everything in the directory `path` survive a power failure."""
    for directory, _, names in os.walk(path):
        for name in names:
            sync_directory(Path(directory, name))  # fsync is the same for a file
        sync_directory(Path(directory))


def _open_regular(path: Path, flags: int) -> int:
    """Opens a regular file that is not a link. O_NONBLOCK: without it, opening a pipe would never return."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, and links are not followed here", str(path)) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write may write a part only. The next call then raises the reason."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
