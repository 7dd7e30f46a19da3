"""Taking up a run directory that some other process left: what in it is whole, and the rest put right.

Contract: an image is in the manifest if and only if its file is complete. Found and mended: a torn last line, leftover
temporary files, a line without its image, an image of another size or sha256 than its line says, a line twice, a line
that is none. An image without a line is made again, over the old file. Refused: lines that another config made.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import image_name, make_spec, planned
from tpusd.records.directory import RunDir
from tpusd.records.layout import CONFIG, CONTACT_SHEET, HYDRA, IMAGES, MANIFEST, MEND, METADATA, PAGE, RUN, THUMBNAILS
from tpusd.records.manifest import line_key, manifest_lines, parse_line, recipe
from tpusd.storage import local as storage
from tpusd.storage.local import told_as_user_error

HASHED_BYTES = 256 << 20  # of images, the newest first, whose sha256 is checked too; `validate` checks all of them
_TEMPORARY_IMAGE = re.compile(r"\d{5,7}-\d{3,4}\.\w+" + re.escape(storage.TEMPORARY))


@dataclass(frozen=True, kw_only=True)
class Healed:
    """done: (row, copy) of the images that are whole. notes: a line for each kind of thing that was put right."""

    done: frozenset[tuple[int, int]]
    notes: tuple[str, ...]


def heal(run_dir: RunDir, config: RunConfig, rows: Sequence[Row]) -> Healed:
    """config: the run's saved one. Reads every line, and looks at every file's size. Raises UserError."""
    notes = _Notes()
    _remove_waste(run_dir, notes)
    whole, num_lines = _whole_lines(run_dir, config, rows, notes)
    for key in _wrong_hashes(run_dir, whole):
        notes.add("its sha256 is wrong", image_name(*key))
        del whole[key]
    if len(whole) < num_lines:
        kept = {entry.number for entry in whole.values()}
        lines = enumerate(manifest_lines(run_dir.path), 1)
        run_dir.rewrite_manifest(line for number, line in lines if number in kept)
    return Healed(done=frozenset(whole), notes=notes.lines())


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int  # of its line, from 1
    file_name: str
    sha256: str
    num_bytes: int


class _Notes:
    """What was found, by kind: how many, and the first of them."""

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


def _remove_waste(run_dir: RunDir, notes: _Notes) -> None:
    """Temporary files of a process that ended while it wrote them."""
    ours = {
        run_dir.path: {name + storage.TEMPORARY for name in (CONFIG, RUN, MANIFEST, CONTACT_SHEET, PAGE, METADATA)},
        run_dir.path / HYDRA: {f"{name}.yaml{storage.TEMPORARY}" for name in ("overrides", "config", "hydra")},
        run_dir.path / IMAGES: None,
        run_dir.path / THUMBNAILS: None,
    }
    with told_as_user_error(run_dir.path, MEND):
        for directory, names in ours.items():
            if not storage.exists(directory):
                continue
            for name in storage.list_directory(directory):
                if name in names if names is not None else _TEMPORARY_IMAGE.fullmatch(name):
                    storage.remove_file(directory / name)
                    notes.add("half a file of an interrupted write, removed", name)


def _whole_lines(
    run_dir: RunDir, config: RunConfig, rows: Sequence[Row], notes: _Notes
) -> tuple[dict[tuple[int, int], _Entry], int]:
    """(row, copy) -> its line, for lines whose image has the size that they say; and how many lines there are."""
    whole: dict[tuple[int, int], _Entry] = {}
    chosen = None if config.images is None else set(planned(config, len(rows)))
    numbers = range(config.first_row, config.first_row + len(rows))
    copies = range(config.first_copy, config.first_copy + config.num_images_per_prompt)
    number = 0
    for number, line in enumerate(manifest_lines(run_dir.path), 1):
        record = parse_line(line)
        key = None if record is None else line_key(record)
        if key is None:
            notes.add(f"is no line of {MANIFEST}, left out", f"line {number}")
            continue
        row, copy = key
        if row not in numbers or copy not in copies or not (chosen is None or key in chosen):
            raise UserError(
                f"{show_path(run_dir.path / MANIFEST)} line {number}: {image_name(row, copy)} is not in the run that "
                f"{CONFIG} describes; restore the {CONFIG} that it was made from"
            )
        _check_recipe(run_dir, config, rows, number, key, record)
        if key in whole:
            notes.add("stands twice in the manifest, once left out", image_name(row, copy))
            continue
        with told_as_user_error(run_dir.path, "check the directory's permissions", "read"):
            size = storage.file_size(run_dir.path / record["file_name"])
        if not size or size != record.get("num_bytes"):
            kind = "its file is missing" if size is None else "its file is not as long as it was"
            notes.add(kind, image_name(row, copy))
            continue
        whole[key] = _Entry(number, record["file_name"], record.get("sha256"), size)
    return whole, number


def _check_recipe(
    run_dir: RunDir,
    config: RunConfig,
    rows: Sequence[Row],
    number: int,
    key: tuple[int, int],
    record: Mapping[str, Any],
) -> None:
    """The config that the lines were made from is the one that the rest will be made from."""
    spec = make_spec(config, rows, *key, height=config.height, width=config.width)
    for name, value in recipe(config, spec).items():
        if record.get(name) != value:
            raise UserError(
                f"{show_path(run_dir.path / MANIFEST)} line {number}: {name}={show(record.get(name))}, and {CONFIG} "
                f"says {show(value)}; restore the {CONFIG} that it was made from"
            )


def _wrong_hashes(run_dir: RunDir, whole: Mapping[tuple[int, int], _Entry]) -> Iterator[tuple[int, int]]:
    """Images whose bytes are not those of their line, among the newest HASHED_BYTES of them."""
    budget = HASHED_BYTES
    wrong = []
    for key, entry in reversed(whole.items()):
        budget -= entry.num_bytes
        if budget < 0:
            break
        with told_as_user_error(run_dir.path, "check the directory's permissions", "read"):
            if storage.file_sha256(run_dir.path / entry.file_name) != entry.sha256:
                wrong.append(key)
    yield from wrong
