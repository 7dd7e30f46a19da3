"""Paths as users write them. A shell expands `~` where a word begins, and not behind `field=`."""

from os import PathLike, fspath
from pathlib import Path

from tpusd.errors import UserError, show


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


def path_argument(given: str | PathLike[str]) -> Path:
    """The path of a command's argument or of a call from Python. Raises UserError."""
    return Path(expanded_path(fspath(given), "path"))
