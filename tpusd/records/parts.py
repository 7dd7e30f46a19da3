"""The manifest of a run directory, which may be in parts: one for each shard that works on it.

    manifest.jsonl  shards/lock  shards/1-of-3.jsonl  shards/1-of-3.json  shards/1-of-3.log  shards/2-of-3.jsonl  ...

A shard's lines and its run.json are files of its own, until they are joined with the run's (tpusd.records.shards).
Where two lines are of one image, the part's line counts, because it is the newer one.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.shards import MAX_SHARDS, Shard
from tpusd.records.layout import MANIFEST, MAX_LINE_BYTES, MAX_LINE_VALUES, SHARDS

_NAME = re.compile(r"([1-9]\d{0,5})-of-([1-9]\d{0,5})")
LINES, FACTS, LOG = ".jsonl", ".json", ".log"  # suffixes of a shard's files


def part_name(shard: Shard, suffix: str) -> str:
    """A file of a shard, within the run directory."""
    return f"{SHARDS}/{shard.index}-of-{shard.count}{suffix}"


def shards_of(path: Path, suffix: str = LINES) -> list[Shard]:
    """The shards that have a file with this suffix in the run directory `path`. Raises OSError."""
    if not storage.is_plain_directory(path / SHARDS):
        return []
    found = []
    for name in storage.list_directory(path / SHARDS):
        match = _NAME.fullmatch(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if match is not None and int(match[1]) <= int(match[2]) <= MAX_SHARDS:
            found.append(Shard(index=int(match[1]), count=int(match[2])))
    return sorted(found, key=lambda shard: (shard.count, shard.index))


def has_lines(path: Path) -> bool:
    """Whether the run at `path` has a manifest line. Raises OSError."""
    names = (MANIFEST, *(part_name(shard, LINES) for shard in shards_of(path)))
    return any(storage.file_size(path / name) for name in names)


def numbered_lines(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(file, number, line) of the whole lines of a run's manifest, one at a time. Raises OSError.

    Of a run in parts, only the line that counts of each image.
    """
    parts = [part_name(shard, LINES) for shard in shards_of(path)]
    if not parts:
        yield from lines_of(path, MANIFEST)
        return
    seen: set[str] = set()
    for name in (*parts, MANIFEST):
        own: set[str] = set()
        for file, number, line in lines_of(path, name):
            image = _image_of(line)
            if image is None or image not in seen:
                yield file, number, line
            if image is not None:
                own.add(image)
        seen |= own


def lines_of(path: Path, name: str) -> Iterator[tuple[str, int, bytes]]:
    """(file, number, line) of one file of lines. Raises OSError."""
    for number, line in enumerate(storage.read_lines(path / name, MAX_LINE_BYTES), 1):
        yield name, number, line


def _image_of(line: bytes) -> str | None:
    try:
        values = parse_json(line, max_values=MAX_LINE_VALUES)
    except JsonError:
        return None
    name = values.get("file_name") if isinstance(values, dict) else None
    return name if isinstance(name, str) else None
