"""What a logger is, and what it gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tpusd.records.manifest import ImageRecord

PROJECT = "tpusd"


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A finished run.

    path: its directory.
    parameters: its config, by dotted names.
    metrics: numbers, by name: seconds, images, images per second.
    images: manifest lines of its first images.
    """

    name: str
    path: Path
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    images: Sequence[ImageRecord]


class Log(Protocol):
    """Reports a run to a tracker. May raise what the tracker's package raises."""

    def __call__(self, run: LoggedRun, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Logger:
    """package: the module that it needs, which is also the name of tpusd's extra."""

    package: str
    log: Log
