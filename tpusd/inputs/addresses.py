"""Pictures at addresses that fsspec opens, such as https://, s3:// and gs://: each is fetched once by a process.

An address is read when a run is checked, before anything runs. The folder goes with the process.
"""

import contextlib
import functools
import hashlib
import tempfile
import threading
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tpusd.config.paths import PACKAGED, is_address, packaged_picture
from tpusd.errors import UserError, show, show_path

MAX_BYTES = 1 << 30
BLOCK = 1 << 20
_LIBRARIES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs",
              "abfs": "adlfs"}  # fmt: skip
_fetched: dict[str, Path] = {}
_locks: dict[str, threading.Lock] = {}
_lock = threading.Lock()


def local_file(path: str, column: str) -> Path:
    """The file on this machine that has the bytes of a path or an address. Raises UserError and OSError.

    column: for the error.
    """
    if path.startswith(PACKAGED):
        return packaged_picture(path, column)
    if not is_address(path):
        return Path(path).resolve()
    with _lock:
        own, folder = _locks.setdefault(path, threading.Lock()), Path(_folder().name)
    with own:
        if path not in _fetched:
            _fetched[path] = _fetch(path, folder, column)
        return _fetched[path]


def local_file_if_fetched(path: str) -> Path | None:
    """`local_file` without reaching any network: None where this process has not read the address."""
    if path.startswith(PACKAGED):
        return packaged_picture(path, "image")
    return _fetched.get(path) if is_address(path) else Path(path).resolve()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """One for the process. Called with the lock: of two threads both would make one, and a forgotten one goes."""
    return tempfile.TemporaryDirectory(prefix="tpusd-inputs-")


def shown(path: str) -> str:
    """A path or an address, as a message names it."""
    return show(path) if is_address(path) else show_path(Path(path))


def _fetch(address: str, folder: Path, column: str) -> Path:
    scheme = urlsplit(address).scheme
    where = f"{column}={show(address)}"
    name = hashlib.sha256(address.encode()).hexdigest()[:32] + PurePosixPath(urlsplit(address).path).suffix[:8]
    target = folder / name
    try:
        import fsspec  # with its kinds of file system, tenths of a second

        total = 0
        with fsspec.open(address, "rb") as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                total += len(block)
                if total > MAX_BYTES:
                    raise UserError(f"{where}: is over {MAX_BYTES >> 20} MiB; save it smaller")
                file.write(block)
        return target
    except BaseException as error:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(f"{where}: {_reason(error, scheme)}") from None


def _reason(error: Exception, scheme: str) -> str:
    """Why it could not be read: the libraries share no base class."""
    if isinstance(error, ImportError | ValueError) and (library := _LIBRARIES.get(scheme)) and library in str(error):
        extra = " (the extra http)" if scheme.startswith("http") else ""
        return f"needs a library{extra}; pip install {library}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read with these credentials"
    return f"cannot be fetched ({type(error).__name__}: {show(str(error), 160)})"
