"""What `resume=` repairs: a run directory that another process left, brought back to what its manifest promises.

Contract: an image is in the manifest if and only if its file is complete. Repaired: a torn last line, leftover
temporary files, a line without its image, an image of another size or sha256 than its line says, a line that is there
twice, a line that is not a manifest line. An image without a line is made again, over the old file. Refused: lines that
another config made.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import image_name, make_spec, planned
from tpusd.records.directory import RunWriter
from tpusd.records.layout import CHECK_PERMISSIONS, CONFIG, MAKE_ROOM, MANIFEST
from tpusd.records.manifest import DECIDED_BY_CONFIG, ImageRecord, manifest_lines, recipe_values
from tpusd.storage import os_errors_as_user_errors

HASHED_BYTES = 256 << 20  # of images, the newest first, whose sha256 is checked too; `validate` checks all of them


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
    whole, num_lines = _whole_lines(run_dir.path, run_dir.lines(), config, notes)
    for key in _wrong_hashes(run_dir, whole):
        notes.add("its sha256 is wrong", image_name(*key))
        del whole[key]
    if len(whole) < num_lines:
        kept = {(entry.file, entry.number) for entry in whole.values()}
        run_dir.rewrite_manifest(line for file, number, line in run_dir.lines() if (file, number) in kept)
    return Repaired(done=frozenset(whole), notes=notes.lines())


def whole_images(path: Path, config: SavedConfig) -> frozenset[tuple[int, int]]:
    """(row, copy) of the images that `repair` would keep, by their sizes. Changes nothing. Raises UserError.

    path: a run directory.
    config: its saved one.
    """
    whole, _ = _whole_lines(path, manifest_lines(path), config, _Notes())
    return frozenset(whole)


@dataclass(frozen=True, slots=True)
class _Entry:
    file: str  # that has its line
    number: int  # of its line, from 1
    file_name: str
    sha256: str
    num_bytes: int


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


def _whole_lines(
    path: Path, lines: Iterable[tuple[str, int, bytes]], config: SavedConfig, notes: _Notes
) -> tuple[dict[tuple[int, int], _Entry], int]:
    """(row, copy) -> its line, for lines whose image has the size that they say; and the number of lines.

    path: the run directory.
    lines: of its manifest, or of a part of it.
    config: its saved one.
    notes: gets what is wrong.
    """
    whole: dict[tuple[int, int], _Entry] = {}
    images = planned(config)
    num_lines = 0
    for file, number, line in lines:
        num_lines += 1
        record = ImageRecord.from_line(line)
        if record is None:
            notes.add(f"is not a line of {MANIFEST}, removed", f"line {number}")
            continue
        where = f"{show_path(path / file)} line {number}"
        if record.key not in images:
            raise UserError(
                f"{where}: {record.name} is not in the run that {CONFIG} describes; restore the {CONFIG} that it was "
                "made from"
            )
        _check_recipe(where, config, record)
        if record.key in whole:
            notes.add("is listed twice in the manifest, the second line removed", record.name)
            continue
        with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
            size = storage.file_size(path / record.file_name)
        if not size or size != record.num_bytes:
            kind = "its file is missing" if size is None else "its file is not as long as it was"
            notes.add(kind, record.name)
            continue
        whole[record.key] = _Entry(file, number, record.file_name, record.sha256, size)
    return whole, num_lines


def _check_recipe(where: str, config: SavedConfig, record: ImageRecord) -> None:
    """The config that made the lines must be the one that will make the rest."""
    recipe = recipe_values(config, make_spec(config, *record.key))
    for name in DECIDED_BY_CONFIG:
        value = recipe.get(name)
        if getattr(record, name) != value:
            raise UserError(
                f"{where}: {name}={show(getattr(record, name))}, and {CONFIG} says {show(value)}; "
                f"restore the {CONFIG} that it was made from"
            )


def _wrong_hashes(run_dir: RunWriter, whole: dict[tuple[int, int], _Entry]) -> list[tuple[int, int]]:
    """Images whose bytes are not those of their line, among the newest HASHED_BYTES of them."""
    budget = HASHED_BYTES
    wrong = []
    for key in reversed(whole):
        entry = whole[key]
        budget -= entry.num_bytes
        if budget < 0:
            break
        with os_errors_as_user_errors(run_dir.path, CHECK_PERMISSIONS, operation="read"):
            if storage.file_sha256(run_dir.path / entry.file_name) != entry.sha256:
                wrong.append(key)
    return wrong
