"""Scores of a run as a whole against a reference, such as CMMD: RUN/scores/sets.json, a list.

A score is of the pictures whose sha256 it was computed from. Knows nothing of how it is computed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.typed import read
from tpusd.errors import UserError
from tpusd.records.layout import MAKE_ROOM, SCORES
from tpusd.records.manifest import ImageRecord
from tpusd.storage import os_errors_as_user_errors

FILE = f"{SCORES}/sets.json"
MAX_BYTES = 1 << 20
MAX_SCORES = 1000
Count = Annotated[int, Interval(ge=0, le=2**32)]


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """metric: such as cmmd. weights: their sha256. reference: its name, as the user gave it.

    reference_sha256: of its features or pictures. num_images, num_reference: pictures.
    images: `digest_of` the run's pictures.
    """

    metric: str
    weights: str | None
    reference: str
    reference_sha256: str
    num_images: Count
    num_reference: Count
    images: str
    value: float


def digest_of(records: Iterable[ImageRecord]) -> str:
    """One sha256 of the sha256 of all pictures, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(record.sha256 for record in records)).encode()).hexdigest()


def set_score_faults(path: Path) -> Iterator[str]:
    """A line where the file is there and holds something else."""
    if storage.exists(path / FILE):
        try:
            values: Any = parse_json(storage.read_file(path / FILE, MAX_BYTES))
            whole = isinstance(values, list) and len(values) == len(read_set_scores(path))
        except (OSError, JsonError):
            whole = False
        if not whole:
            yield f"{FILE}: holds something that is not a score; python -m tpusd.score removes it"


def read_set_scores(path: Path) -> list[SetScore]:
    """Of the run directory `path`. A file that is not valid counts as empty: the next scoring replaces it."""
    try:
        values: Any = parse_json(storage.read_file(path / FILE, MAX_BYTES))
    except (OSError, JsonError):
        return []
    found = []
    for one in values[:MAX_SCORES] if isinstance(values, list) else ():
        try:
            found.append(read(SetScore, one))
        except UserError:
            continue
    return found


def write_set_score(path: Path, score: SetScore) -> None:
    """Adds it, in place of an earlier one against the same reference. Raises UserError."""

    def is_other(one: SetScore) -> bool:
        return (one.metric, one.reference_sha256) != (score.metric, score.reference_sha256)

    scores: Sequence[SetScore] = [*filter(is_other, read_set_scores(path)), score][-MAX_SCORES:]
    data = json.dumps([dataclasses.asdict(one) for one in scores], indent=1, ensure_ascii=False, allow_nan=False)
    with os_errors_as_user_errors(path, MAKE_ROOM):
        if not storage.exists(path / SCORES):
            storage.make_directory(path / SCORES)
        storage.write_file(path / FILE, data.encode())
