"""What `resume=` repairs: a run directory that another process left, brought back to what its manifest promises.

Contract: an image is in the manifest if and only if its file is complete. Repaired: a torn last line, leftover
temporary files, a line without its image, an image of another size or sha256 than its line says, a line that is there
twice, a line that is not a manifest line. An image without a line is made again, over the old file. Refused: lines that
another config made.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import image_name, make_spec, planned
from tpusd.records.directory import RunWriter
from tpusd.records.layout import (
    CHECK_PERMISSIONS,
    CONFIG,
    CONTACT_SHEET,
    HYDRA,
    IMAGES,
    MAKE_ROOM,
    MANIFEST,
    METADATA,
    PAGE,
    RUN,
    THUMBNAILS,
)
from tpusd.records.manifest import DECIDED_BY_CONFIG, ImageRecord, manifest_lines, recipe_values
from tpusd.storage import os_errors_as_user_errors

HASHED_BYTES = 256 << 20  # of images, the newest first, whose sha256 is checked too; `validate` checks all of them
_TEMPORARY_IMAGE = re.compile(r"\d{5,7}-\d{3,4}\.\w+" + re.escape(storage.TEMPORARY))


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
    whole, num_lines = _whole_lines(run_dir.path, config, notes)
    for key in _wrong_hashes(run_dir, whole):
        notes.add("its sha256 is wrong", image_name(*key))
        del whole[key]
    if len(whole) < num_lines:
        kept = {entry.number for entry in whole.values()}
        lines = enumerate(manifest_lines(run_dir.path), 1)
        run_dir.rewrite_manifest(line for number, line in lines if number in kept)
    return Repaired(done=frozenset(whole), notes=notes.lines())


def whole_images(path: Path, config: SavedConfig) -> frozenset[tuple[int, int]]:
    """(row, copy) of the images that `repair` would keep, by their sizes. Changes nothing. Raises UserError.

    path: a run directory.
    config: its saved one.
    """
    whole, _ = _whole_lines(path, config, _Notes())
    return frozenset(whole)


@dataclass(frozen=True, slots=True)
class _Entry:
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
    ours: dict[Path, set[str] | None] = {
        run_dir.path: {name + storage.TEMPORARY for name in (CONFIG, RUN, MANIFEST, CONTACT_SHEET, PAGE, METADATA)},
        run_dir.path / HYDRA: {f"{name}.yaml{storage.TEMPORARY}" for name in ("overrides", "config", "hydra")},
        run_dir.path / IMAGES: None,
        run_dir.path / THUMBNAILS: None,
    }
    with os_errors_as_user_errors(run_dir.path, MAKE_ROOM):
        for directory, names in ours.items():
            if not storage.exists(directory):
                continue
            for name in storage.list_directory(directory):
                if name in names if names is not None else _TEMPORARY_IMAGE.fullmatch(name):
                    storage.remove_file(directory / name)
                    notes.add("half a file of an interrupted write, removed", name)


def _whole_lines(path: Path, config: SavedConfig, notes: _Notes) -> tuple[dict[tuple[int, int], _Entry], int]:
    """(row, copy) -> its line, for lines whose image has the size that they say; and the number of lines."""
    whole: dict[tuple[int, int], _Entry] = {}
    images = planned(config)
    number = 0
    for number, line in enumerate(manifest_lines(path), 1):
        record = ImageRecord.from_line(line)
        if record is None:
            notes.add(f"is not a line of {MANIFEST}, removed", f"line {number}")
            continue
        if record.key not in images:
            raise UserError(
                f"{show_path(path / MANIFEST)} line {number}: {record.name} is not in the run that "
                f"{CONFIG} describes; restore the {CONFIG} that it was made from"
            )
        _check_recipe(path, config, number, record)
        if record.key in whole:
            notes.add("is listed twice in the manifest, the second line removed", record.name)
            continue
        with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
            size = storage.file_size(path / record.file_name)
        if not size or size != record.num_bytes:
            kind = "its file is missing" if size is None else "its file is not as long as it was"
            notes.add(kind, record.name)
            continue
        whole[record.key] = _Entry(number, record.file_name, record.sha256, size)
    return whole, number


def _check_recipe(path: Path, config: SavedConfig, number: int, record: ImageRecord) -> None:
    """The config that made the lines must be the one that will make the rest."""
    recipe = recipe_values(config, make_spec(config, *record.key))
    for name in DECIDED_BY_CONFIG:
        value = recipe.get(name)
        if getattr(record, name) != value:
            where = f"{show_path(path / MANIFEST)} line {number}"
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
