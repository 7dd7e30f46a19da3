"""The images of a run or a sweep, to export."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tpusd.records.manifest import ImageRecord, read_manifest


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An image to export. `run`: the name of its run in a sweep, else empty."""

    run: str
    file: Path
    record: ImageRecord


def exported_images(path: Path) -> Iterator[Exported]:
    """Every image of the manifests, row by row and copy by copy."""
    from tpusd.records.sweep import run_directories

    for name, directory in run_directories(path):
        records = sorted(read_manifest(directory), key=lambda record: record.key)
        for record in records:
            yield Exported(run=name, file=directory / record.file_name, record=record)
