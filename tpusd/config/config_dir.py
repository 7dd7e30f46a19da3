"""The files of --config-dir: which there are, and that Hydra can load them in bounded time and from nowhere else.

Hydra opens what a defaults list names, follows links and `..`, and reads whole files, so these are looked at first.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tpusd.config.choices import config_files
from tpusd.config.yaml_files import NotYaml, check_yaml, parse_yaml
from tpusd.errors import UserError, show, show_path

MAX_FILE_BYTES = 16 << 20
MAX_FILE_VALUES = 100_000  # Hydra takes some kilobytes for each of them
MAX_TOTAL_BYTES = 64 << 20
# A name in a defaults list that stays in its directory: no `..`, no second slash in front, nothing that is looked up.
_INSIDE = re.compile(r"(?:(?:override|optional) ++)*+/?+(?!/)(?!.*(?:\.\.|\$)).+", re.DOTALL)


def check_config_dir(root: Path) -> None:
    """Refuses files that Hydra could not load in bounded time and memory, or that name others outside.

    Raises UserError.
    """
    total = 0
    for file in config_files(root):
        where = f"--config-dir: {show_path(file)}"
        data = read_config_file(file, where)
        total += len(data)
        if total > MAX_TOTAL_BYTES:
            raise UserError(f"--config-dir={show_path(root)}: its files hold over {MAX_TOTAL_BYTES >> 20} MiB")
        check_yaml(data, where, MAX_FILE_VALUES)
        with contextlib.suppress(NotYaml):  # Hydra says so, where the file is chosen
            _check_names(parse_yaml(data, where), where)


def read_config_file(file: Path, where: str) -> bytes:
    """A file of bounded size. Raises UserError, whose line begins with `where`."""
    if not file.is_file():
        raise UserError(f"{where}: is not a file; remove it")
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{where}: is over {MAX_FILE_BYTES >> 20} MiB; put long prompt sets in txt files")
    return data


def _check_names(values: object, where: str) -> None:
    """Refuses a defaults list that names a file outside of its directory, and a search path."""
    if not isinstance(values, dict):
        return
    settings = values.get("hydra")
    if isinstance(settings, dict) and "searchpath" in settings:
        raise UserError(f"{where}: hydra.searchpath names further directories; remove it, and copy their files")
    for entry in values["defaults"] if isinstance(values.get("defaults"), list) else ():
        for name in _names(entry):
            if name is not None and not (isinstance(name, str) and _INSIDE.fullmatch(name)):
                raise UserError(
                    f"{where}: defaults: {show(name)}: must be the name of a config in this directory, without its "
                    "suffix, .. and ${}; copy the file into the directory"
                )


def _names(entry: object) -> Iterator[object]:
    """The names in an entry of a defaults list: `x`, `{group: x}` or `{group: [x, y]}`."""
    if not isinstance(entry, dict):
        yield entry
        return
    for group, chosen in entry.items():
        yield group
        yield from chosen if isinstance(chosen, list) else [chosen]
