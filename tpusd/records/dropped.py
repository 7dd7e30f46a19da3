"""dropped.jsonl: a line for each image that a run made and did not write, because its safety checker found it.

    {"row", "copy", "seed", "prompt", "environment", "trace", "safety": {nsfw, concepts, scores, ...}}

Such an image is not in the manifest, which lists files, and is not made again. A line that is not valid says nothing:
its image is made again. All shards of a run write to one file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.schema import SavedConfig
from tpusd.plan.specs import planned
from tpusd.records.layout import CHECK_PERMISSIONS, DROPPED, MAX_LINE_BYTES, MAX_LINE_VALUES
from tpusd.storage import os_errors_as_user_errors
from tpusd.storage.local import LineFile

Key = tuple[int, int]  # (row, copy)


def dropped_line(values: Mapping[str, Any]) -> bytes:
    """A line of the file, without its newline."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode()


def append_dropped(path: Path, line: bytes) -> None:
    """Adds a line, which is on the disk then. path: the run directory. Raises OSError.

    One process and one thread at a time.
    """
    file = LineFile(path / DROPPED)
    try:
        file.append(line)
    finally:
        file.close()


def read_dropped(path: Path, config: SavedConfig) -> frozenset[Key]:
    """The images of the run at `path` that are dropped. config: its saved one. Raises UserError."""
    if not config.safety.is_on:
        return frozenset()
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        return frozenset(key for key, _ in dropped_lines(path, config))


def mend_dropped(path: Path, config: SavedConfig, listed: frozenset[Key]) -> bool:
    """Removes lines that say nothing, and a torn last one; whether there were any. Raises OSError.

    path: a run that no other process has open. listed: images of its manifest.
    """
    if not storage.file_size(path / DROPPED):
        return False
    images = planned(config)
    lines = list(storage.read_lines(path / DROPPED, MAX_LINE_BYTES))
    kept = [line for line in lines if config.safety.is_on and (key := _key(line)) in images and key not in listed]
    if kept == lines and not storage.ends_torn(path / DROPPED):
        return False
    storage.write_chunks(path / DROPPED, (line + b"\n" for line in kept))
    return True


def dropped_lines(path: Path, config: SavedConfig) -> Iterator[tuple[Key, bytes]]:
    """The lines that count, as they are. Raises OSError."""
    if storage.file_size(path / DROPPED):
        images = planned(config)
        for line in storage.read_lines(path / DROPPED, MAX_LINE_BYTES):
            if (key := _key(line)) is not None and key in images:
                yield key, line


def dropped_faults(path: Path, config: SavedConfig, listed: frozenset[Key]) -> list[str]:
    """What is wrong with the file of the run at `path`, a line each. listed: images of its manifest."""
    faults = []
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        size = storage.file_size(path / DROPPED)
        if size is None:
            if storage.exists(path / DROPPED):
                faults.append(f"{DROPPED}: is a link or not a regular file")
            return faults
        images = planned(config)
        for number, line in enumerate(storage.read_lines(path / DROPPED, MAX_LINE_BYTES), 1):
            key = _key(line)
            if key is None:
                faults.append(f"{DROPPED} line {number}: is not a line of an image")
            elif key not in images or not config.safety.is_on:
                faults.append(f"{DROPPED} line {number}: is of no image that config.yaml lets drop")
            elif key in listed:
                faults.append(f"{DROPPED} line {number}: its image is in the manifest too")
        if storage.ends_torn(path / DROPPED):
            faults.append(f"{DROPPED}: its last line is torn")
    return faults


def _key(line: bytes) -> Key | None:
    try:
        values = parse_json(line, max_values=MAX_LINE_VALUES)
    except JsonError:
        return None
    if not isinstance(values, dict):
        return None
    row, copy = values.get("row"), values.get("copy")
    return (row, copy) if type(row) is int and type(copy) is int else None
