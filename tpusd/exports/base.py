"""The images of a run or a sweep, to export, and what writes them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tpusd.records.directory import check_folders
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.scores import read_scores
from tpusd.records.sweep import run_directories


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An image to export.

    run: the name of its run in a sweep; empty for a single run's image.
    file: where it is.
    record: its manifest line.
    scores: its scores, by the names that index.jsonl has.
    """

    run: str
    file: Path
    record: ImageRecord
    scores: Mapping[str, float | None]

    def values(self) -> dict[str, Any]:
        """The manifest line and the scores."""
        return self.record.values() | dict(self.scores)

    def to_line(self) -> bytes:
        """`values` as JSON."""
        return json.dumps(self.values(), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True, kw_only=True)
class Options:
    """shard_size: images in one tar file."""

    shard_size: int = 1000


class Exporter(Protocol):
    """Writes images into the empty directory `output`; returns their number. Raises UserError and OSError."""

    def __call__(self, images: Iterator[Exported], output: Path, options: Options, /) -> int: ...


def exported_images(path: Path) -> Iterator[Exported]:
    """Every image of the manifests, by row and copy. path: a run directory or a sweep's. Raises UserError."""
    for name, directory in run_directories(path):
        check_folders(directory)
        records = sorted(read_manifest(directory), key=lambda record: record.key)
        scores = read_scores(directory, records)
        for record in records:
            file = directory / record.file_name
            yield Exported(run=name, file=file, record=record, scores=scores.fields(record))
