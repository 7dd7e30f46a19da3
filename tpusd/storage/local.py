"""Local disks: every disk operation of a run, and the only module that makes one.

Each function is a short sequence of `os` calls, so that replacing `storage.os` sees, fails or stops each of them.
A run directory may come from a stranger: no file is opened through a link, and none that is a pipe or a device.
Knows nothing of what the bytes mean. Everything raises OSError as the system gave it.
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

TEMPORARY = ".tmp"  # suffix of files in the making; what carries it after a crash is waste


def make_directory(path: Path) -> None:
    """Makes `path`, whose parent exists. Raises FileExistsError: of two processes exactly one makes it."""
    os.mkdir(path)
    try:
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise


def make_parents(path: Path, made: list[Path]) -> None:
    """Makes the missing parents of `path`; adds those it made to `made`, outermost first, also when it then fails."""
    missing = []
    parent = path.parent
    while not exists(parent) and parent != parent.parent:  # a disk that fails may deny even the root
        missing.append(parent)
        parent = parent.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process may be making the same parents
            os.mkdir(directory)
            made.append(directory)


def write_file(path: Path, data: bytes) -> None:
    """The whole file or nothing: temporary file, fsync, rename, fsync of the directory. Replaces an older file."""
    write_chunks(path, (data,))


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """`write_file` of more than should be in memory at once."""
    temporary = path.with_name(path.name + TEMPORARY)
    remove_file(temporary)  # of a crash, or a link that somebody laid here
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
    sync_directory(path.parent)


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
    """A file that grows by whole lines. Opening cuts off a torn last line: what follows one would be lost with it."""

    def __init__(self, path: Path):
        self._descriptor = _open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
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

    def lock(self) -> bool:
        """Holds the file until it is closed or the process ends, however it ends; False: another process holds it.

        On a file system that has no locks it is held by nobody, and everybody may go on.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def read_lines(path: Path, max_bytes: int) -> Iterator[bytes]:
    """The whole lines of a file, one at a time; a torn last line is left out. A missing file has no lines.

    A line of more than `max_bytes` comes out cut to that length.
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
    """Whether the file's last byte is not a newline. A missing or empty file is not torn."""
    try:
        with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
    except FileNotFoundError:
        return False


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """The whole file. Raises OSError (EFBIG) where it holds more than `max_bytes`."""
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
    """Bytes; None where there is no such file, or something else (a link, a directory) has its name."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def is_plain_directory(path: Path) -> bool:
    """A directory, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def exists(path: Path) -> bool:
    """A link that leads nowhere exists too."""
    try:
        os.lstat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


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


def _open_regular(path: Path, flags: int) -> int:
    """A descriptor of a regular file that is no link. Without O_NONBLOCK, opening a pipe would wait for ever."""
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
    """os.write may take less than it is given, and then says why at the next call."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
