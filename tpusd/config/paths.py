"""Paths as users write them. A shell expands `~` where a word begins, and not behind `field=`."""

from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol, TypeVar

from tpusd.config.typed import DataclassInstance
from tpusd.errors import UserError, show


class HasPath(DataclassInstance, Protocol):
    """A group of fields that may name a file or a directory."""

    @property
    def path(self) -> str | None: ...


_HasPath = TypeVar("_HasPath", bound=HasPath)


def expanded_path(given: str, field: str) -> str:
    """The path with the user's home for a leading `~`. Raises UserError where that home is not known.

    field: as the error names it.
    """
    if not given.startswith("~"):
        return given
    try:
        return str(Path(given).expanduser())
    except RuntimeError:
        raise UserError(f"{field}={show(given)}: ~ stands for a home that is not known; write the whole path") from None


def with_whole_path(group: _HasPath, field: str) -> _HasPath:
    """The group with the home that a leading ~ of its path stands for. Raises UserError. field: such as `loras[0]`."""
    return group if group.path is None else replace(group, path=expanded_path(group.path, f"{field}.path"))


def path_argument(given: str | PathLike[str]) -> Path:
    """The path of a command's argument or of a call from Python. Raises UserError."""
    return Path(expanded_path(fspath(given), "path"))
