"""What `resume=` repairs: a run directory that another process left, brought back to what its manifest promises.

Contract: an image is in the manifest if and only if its file is complete. Repaired: a torn last line, leftover
temporary files, a line without its image, an image of another size or sha256 than its line says, a line that is there
twice, a line that is not a manifest line. An image without a line is made again, over the old file. Refused: lines that
another config made.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import image_name, planned
from tpusd.records.directory import RunWriter
from tpusd.records.layout import CHECK_PERMISSIONS, CONFIG, MAKE_ROOM, MANIFEST
from tpusd.records.manifest import manifest_lines, parse_line, value_faults
from tpusd.records.recipes import Recipes
from tpusd.storage import os_errors_as_user_errors

# Images, the newest first, whose sha256 is checked too; `validate` checks all of them.
HASHED_BYTES, HASHED_IMAGES = 256 << 20, 20_000


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """done: (row, copy) of the images that are whole. notes: a line for each kind of thing that was repaired."""

    done: frozenset[tuple[int, int]]
    notes: tuple[str, ...]


def repair(run_dir: RunWriter, config: SavedConfig) -> Repaired:
    """Reads every manifest line, looks at the size of every file, and repairs what is wrong. Raises UserError.

    config: the saved one of the run.
    """
    notes = _Notes()
    _remove_waste(run_dir, notes)
    found = _whole_lines(run_dir.path, run_dir.lines(), config, notes)
    for entry in _wrong_hashes(run_dir, found.newest):
        notes.add("its sha256 is wrong", image_name(*entry.key))
        found.whole.remove(entry.key)
        found.others.add((entry.file, entry.number))
    if found.others:
        run_dir.rewrite_manifest(line for file, number, line in run_dir.lines() if (file, number) not in found.others)
    return Repaired(done=frozenset(found.whole), notes=notes.lines())


def whole_images(path: Path, config: SavedConfig) -> frozenset[tuple[int, int]]:
    """(row, copy) of the images that `repair` would keep, by their sizes. Changes nothing. Raises UserError.

    path: a run directory.
    config: its saved one.
    """
    return frozenset(_whole_lines(path, manifest_lines(path), config, _Notes()).whole)


@dataclass(frozen=True, slots=True)
class _Entry:
    key: tuple[int, int]  # (row, copy)
    file: str  # that has its line
    number: int  # of its line, from 1
    file_name: str
    sha256: str
    num_bytes: int


class _Lines:
    """What is kept of a manifest of any length.

    whole: (row, copy) of the images of the lines that stay. newest: the last of these lines.
    others: (file, number) of the lines to remove.
    """

    def __init__(self) -> None:
        self.whole: set[tuple[int, int]] = set()
        self.others: set[tuple[str, int]] = set()
        self.newest: deque[_Entry] = deque()
        self._num_bytes = 0

    def add(self, entry: _Entry) -> None:
        self.whole.add(entry.key)
        self.newest.append(entry)
        self._num_bytes += entry.num_bytes
        while self._num_bytes > HASHED_BYTES or len(self.newest) > HASHED_IMAGES:
            self._num_bytes -= self.newest.popleft().num_bytes


class _Notes:
    """What was found, by kind: the number, and the first one."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, what: str) -> None:
        number, first = self._found.get(kind, (0, what))
        self._found[kind] = (number + 1, first)

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{first}{f' and {number - 1} more' if number > 1 else ''}: {kind}"
            for kind, (number, first) in self._found.items()
        )


def _remove_waste(run_dir: RunWriter, notes: _Notes) -> None:
    """Removes temporary files of a process that ended while it wrote them."""
    with os_errors_as_user_errors(run_dir.path, MAKE_ROOM):
        for file in run_dir.waste():
            storage.remove_file(file)
            notes.add("half a file of an interrupted write, removed", file.name)


def _whole_lines(path: Path, lines: Iterable[tuple[str, int, bytes]], config: SavedConfig, notes: _Notes) -> _Lines:
    """The lines whose image has the size that they say.

    path: the run directory.
    lines: of its manifest, or of a part of it.
    config: its saved one.
    notes: gets what is wrong.
    """
    found = _Lines()
    images, recipes = planned(config), Recipes(config)
    for file, number, line in lines:
        values = parse_line(line)
        if values is None or next(value_faults(values), None) is not None:
            notes.add(f"is not a line of {MANIFEST}, removed", f"line {number}")
            found.others.add((file, number))
            continue
        key = values["row"], values["copy"]
        name = image_name(*key)
        if key not in images:
            raise UserError(
                f"{show_path(path / file)} line {number}: {name} is not in the run that {CONFIG} describes; restore "
                f"the {CONFIG} that it was made from"
            )
        _check_recipe(path, file, number, recipes.difference(values, *key))
        if key in found.whole:
            notes.add("is listed twice in the manifest, the second line removed", name)
            found.others.add((file, number))
            continue
        with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
            size = storage.file_size(path / values["file_name"])
        if not size or size != values["num_bytes"]:
            kind = "its file is missing" if size is None else "its file is not as long as it was"
            notes.add(kind, name)
            found.others.add((file, number))
            continue
        found.add(_Entry(key, file, number, values["file_name"], values["sha256"], size))
    return found


def _check_recipe(path: Path, file: str, number: int, difference: tuple[str, object, object] | None) -> None:
    """The config that made the lines must be the one that will make the rest."""
    if difference is not None:
        name, own, wanted = difference
        raise UserError(
            f"{show_path(path / file)} line {number}: {name}={show(own)}, and {CONFIG} says {show(wanted)}; "
            f"restore the {CONFIG} that it was made from"
        )


def _wrong_hashes(run_dir: RunWriter, newest: Iterable[_Entry]) -> list[_Entry]:
    """The lines whose image has other bytes."""
    wrong = []
    for entry in newest:
        with os_errors_as_user_errors(run_dir.path, CHECK_PERMISSIONS, operation="read"):
            if storage.file_sha256(run_dir.path / entry.file_name) != entry.sha256:
                wrong.append(entry)
    return wrong
