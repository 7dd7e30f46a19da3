"""Paths as users write them. A shell expands `~` where a word begins, and not behind `field=`."""

import re
from dataclasses import replace
from importlib import resources
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
_ADDRESS = re.compile(r"(https?|s3|gs|gcs|az|abfs|hf|memory)://[^/\s]", re.IGNORECASE)
PACKAGED = "asset:"  # in front of the name of a picture that the package holds


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


def is_address(given: str) -> bool:
    """Whether it is an address of a kind that fsspec opens, and not a path."""
    return _ADDRESS.match(given) is not None


def picture_path(given: str, field: str) -> str:
    """`expanded_path` of a picture's file, or the file of one inside the package: `asset:NAME`. Raises UserError.

    An address stays as it is.
    """
    if is_address(given):
        return given
    if not given.startswith(PACKAGED):
        return expanded_path(given, field)
    folder = Path(str(resources.files("tpusd"))) / "assets" / "pictures"
    files = {file.stem: file for file in sorted(folder.glob("*.png"))}
    name = given.removeprefix(PACKAGED)
    if name not in files:
        raise UserError(f"{field}={show(given)}: the package holds no such picture; it holds {', '.join(files)}")
    return str(files[name])


def with_whole_path(group: _HasPath, field: str) -> _HasPath:
    """The group with the home that a leading ~ of its path stands for. Raises UserError. field: such as `loras[0]`."""
    return group if group.path is None else replace(group, path=expanded_path(group.path, f"{field}.path"))


def path_argument(given: str | PathLike[str]) -> Path:
    """The path of a command's argument or of a call from Python. Raises UserError."""
    return Path(expanded_path(fspath(given), "path"))
