"""Paths as users write them. A shell expands `~` where a word begins, and not behind `field=`."""

import re
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol, TypeVar

from tpusd.config.assets import packaged
from tpusd.config.typed import DataclassInstance
from tpusd.errors import UserError, show


class HasPath(DataclassInstance, Protocol):
    """A group of fields that may name a file or a directory."""

    @property
    def path(self) -> str | None: ...


_HasPath = TypeVar("_HasPath", bound=HasPath)
SCHEMES = ("https://", "http://", "s3://", "gs://", "gcs://", "az://", "abfs://", "hf://", "memory://")
_ADDRESS = re.compile(f"({'|'.join(SCHEMES)})[^/\\s]", re.IGNORECASE)
_SCHEME = re.compile(r"\w[\w+.-]+://")
PACKAGED = "asset:"  # in front of the name of a picture that the package holds


def expanded_path(given: str, field: str) -> str:
    """The path with the user's home for a leading `~`. Raises UserError where that home is not known.

    An address such as s3://bucket/run is refused: as a path it would name a folder `s3:` of this machine.
    field: as the error names it.
    """
    if _SCHEME.match(given):
        raise UserError(
            f"{field}={show(given)}: is an address, and must be a path on this machine; copy what it names, or mount it"
        )
    if not given.startswith("~"):
        return given
    try:
        return str(Path(given).expanduser())
    except RuntimeError:
        raise UserError(f"{field}={show(given)}: ~ stands for a home that is not known; write the whole path") from None


def is_address(given: str) -> bool:
    """Whether it is no path: an address of a kind that fsspec opens, or `asset:NAME`, a picture inside the package."""
    return given.startswith(PACKAGED) or _ADDRESS.match(given) is not None


def picture_path(given: str, field: str) -> str:
    """`expanded_path` of a picture's file. An address, or the name of a packaged picture, stays as it is.

    Raises UserError.
    """
    if not is_address(given):
        if _SCHEME.match(given):
            raise UserError(
                f"{field}={show(given)}: is no address that is read; an address begins with "
                f"{', '.join(SCHEMES)} and has a name behind it"
            )
        return expanded_path(given, field)
    if given.startswith(PACKAGED):
        packaged_picture(given, field)
    return given


def packaged_picture(given: str, field: str) -> Path:
    """The file of `asset:NAME`. Raises UserError."""
    return packaged("pictures", given.removeprefix(PACKAGED), f"{field}={show(given)}", "picture")


def with_whole_path(group: _HasPath, field: str) -> _HasPath:
    """The group with the home that a leading ~ of its path stands for. Raises UserError. field: such as `loras[0]`."""
    return group if group.path is None else replace(group, path=expanded_path(group.path, f"{field}.path"))


def path_argument(given: str | PathLike[str]) -> Path:
    """The path of a command's argument or of a call from Python. Raises UserError."""
    return Path(expanded_path(fspath(given), "path"))
