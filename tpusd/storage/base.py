"""What a place that keeps files can do (contract 9). Whole objects only: nothing is renamed, and nothing is overwritten
in part. A local directory can do more: see `tpusd.storage.local` for files that grow by lines, and locks.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol


class Store(Protocol):
    """A kind of place, such as local disks. Paths name objects in it. Every function raises OSError.

    A run directory may come from a stranger, so no store follows a link, or opens what is not a regular file.
    """

    def write_file(self, path: Path, data: bytes) -> None:
        """Writes the whole object or nothing. Replaces an older one."""

    def write_chunks(self, path: Path, chunks: Iterable[bytes]) -> None:
        """`write_file` of more than should be in memory at once."""

    def write_new_file(self, path: Path, data: bytes) -> None:
        """Writes the whole object or nothing. Raises FileExistsError where the object exists, which stays as it is."""

    def read_file(self, path: Path, max_bytes: int | None = None) -> bytes:
        """The whole object. Raises OSError (EFBIG) where it holds more than `max_bytes`."""
        ...

    def open_file(self, path: Path) -> BinaryIO:
        """The object, opened for reading."""
        ...

    def read_lines(self, path: Path, max_bytes: int) -> Iterator[bytes]:
        """The whole lines of an object, one at a time, each cut to `max_bytes`. A torn last line is left out."""
        ...

    def ends_torn(self, path: Path) -> bool:
        """Whether the object's last byte is not a newline."""
        ...

    def file_sha256(self, path: Path) -> str:
        """The object's sha256, in hexadecimal digits."""
        ...

    def file_size(self, path: Path) -> int | None:
        """Bytes; None where no object has this name."""
        ...

    def modified(self, path: Path) -> float | None:
        """When the object was written, in seconds since 1970; None where no object has this name."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether anything has this name."""
        ...

    def is_plain_directory(self, path: Path) -> bool:
        """Whether the name is that of a directory, and not of a link to one."""
        ...

    def list_directory(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def make_directory(self, path: Path) -> None:
        """Makes a directory whose parent exists. Raises FileExistsError: of two processes exactly one makes it."""

    def make_parents(self, path: Path, made: list[Path]) -> None:
        """Makes the missing parents of `path`. Adds them to `made`, outermost first, also when it then fails."""

    def check_writable(self, path: Path) -> None:
        """Raises what making something in the directory `path` would raise, as far as its permissions tell."""

    def remove_file(self, path: Path) -> None:
        """Removes an object; none need be there."""

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory; one that holds anything raises OSError and stays."""
