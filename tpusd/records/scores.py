"""Scores of a run's images: numbers beside the manifest, which stays as it is. A file for each column.

    RUN/scores/clip_score.jsonl    {"metric", "weights", "file_name", "sha256", "value"}, a line for each image

A score counts for the picture whose sha256 it names: an image that is made again has no score until it is scored again.
Of two lines of one picture the later one counts. Lines that are not valid are left out where scores are shown;
`validate` names them, and the next scoring removes them. Knows nothing of how a score is computed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.errors import UserError, show
from tpusd.records.layout import CHECK_PERMISSIONS, IMAGES, MAKE_ROOM, SCORES
from tpusd.records.manifest import ImageRecord
from tpusd.storage import os_errors_as_user_errors
from tpusd.storage.local import LineFile

PREFIX = "scores."  # of a column's name in index.jsonl, metadata.jsonl and exports
MAX_COLUMNS = 100  # of a run
MAX_SCORE_BYTES = 4096  # of a line
MAX_VALUE = 1e15
_SUFFIX = ".jsonl"
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(re.escape(IMAGES) + r"/[-0-9]{1,40}\.\w{1,10}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A line.

    metric: what computed it, such as clip_score, or `import`.
    weights: the sha256 of its weights, or of the imported file; None: the metric has none.
    file_name, sha256: of the picture.
    value: None: the metric says nothing of this picture.
    """

    metric: str
    weights: str | None
    file_name: str
    sha256: str
    value: float | None

    def to_line(self) -> bytes:
        return json.dumps(asdict(self), allow_nan=False).encode()


_FIELDS = frozenset(field.name for field in fields(Score))


def parse_score(line: bytes) -> Score | None:
    """None where the line is not a score."""
    try:
        values = parse_json(line, max_values=20)
    except JsonError:
        return None
    if not isinstance(values, dict) or values.keys() != _FIELDS:
        return None
    value = values["value"]
    is_valid = (
        _matches(_COLUMN, values["metric"])
        and (values["weights"] is None or _matches(_SHA256, values["weights"]))
        and _matches(_FILE_NAME, values["file_name"])
        and _matches(_SHA256, values["sha256"])
        and (value is None or is_number(value))
    )
    return Score(**(values | {"value": None if value is None else float(value)})) if is_valid else None


def is_number(value: object) -> bool:
    """Whether a value can be a score: a finite number, not so large that means and plots of it fail."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_VALUE


def check_column(name: str, field: str) -> None:
    """Raises UserError where a column cannot have this name. field: how the user gave it, as in `columns=x`."""
    if not _matches(_COLUMN, name):
        raise UserError(
            f"{field}: {show(name)} cannot be the name of a score: it must begin with a letter and have up to 63 "
            "letters, digits and underscores; rename the column"
        )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Column -> file name -> the score of that picture, for the pictures of one manifest."""

    columns: Mapping[str, Mapping[str, Score]]

    def of(self, record: ImageRecord, columns: Iterable[str] | None = None) -> dict[str, float | None]:
        """Column -> value; None where the picture has no score. columns: default: all of the run."""
        names = self.columns if columns is None else columns
        found = {name: self.columns.get(name, {}).get(record.file_name) for name in names}
        return {name: None if score is None else score.value for name, score in found.items()}

    def fields(self, record: ImageRecord, columns: Iterable[str] | None = None) -> dict[str, float | None]:
        """As `of`, with the names that index.jsonl, metadata.jsonl and exports have."""
        return {f"{PREFIX}{name}": value for name, value in self.of(record, columns).items()}


NO_SCORES = Scores(columns={})


def read_scores(path: Path, records: Iterable[ImageRecord]) -> Scores:
    """The scores of `records`, which are of the run directory `path`. Raises UserError.

    A column in which none of the pictures has a score is left out.
    """
    found: dict[str, Mapping[str, Score]] = {}
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        names = column_names(path)
        sha256 = {record.file_name: record.sha256 for record in records} if names else {}
        for name in names:
            own = {
                score.file_name: score
                for _, score in _lines(path, name)
                if score is not None and sha256.get(score.file_name) == score.sha256
            }
            if own:
                found[name] = own
    return Scores(columns=found)


def column_names(path: Path) -> list[str]:
    """The columns of the run directory `path`, in alphabetical order; MAX_COLUMNS at most. Raises OSError."""
    if not storage.is_plain_directory(path / SCORES):
        return []
    names = [name.removesuffix(_SUFFIX) for name in storage.list_directory(path / SCORES) if name.endswith(_SUFFIX)]
    is_column = (name for name in names if _matches(_COLUMN, name) and storage.file_size(_file(path, name)) is not None)
    return sorted(is_column)[:MAX_COLUMNS]


def score_faults(path: Path) -> Iterator[str]:
    """A line for each line of a column that is not a score. Raises UserError."""
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        for name in column_names(path):
            for number, score in _lines(path, name):
                if score is None:
                    yield f"{SCORES}/{name}{_SUFFIX} line {number}: is not a score; python -m tpusd.score removes it"


def scores_by_line(path: Path) -> Iterator[tuple[str, Score]]:
    """(where it is, score) of all columns, without the lines that are no scores. Raises UserError."""
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        for name in column_names(path):
            for number, score in _lines(path, name):
                if score is not None:
                    yield f"{SCORES}/{name}{_SUFFIX} line {number}", score


def has_broken_lines(path: Path, name: str) -> bool:
    """Whether a line of a column is not a score. Raises UserError."""
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        return name in column_names(path) and any(score is None for _, score in _lines(path, name))


class ScoreColumn:
    """A column of a run directory, open for writing. Opening it removes lines that do not count any more.

    scores: file name -> score, of all pictures that have one.
    removed: the number of lines that were no scores.
    """

    def __init__(self, path: Path, name: str):
        """path: the run directory, which the caller has locked. Raises UserError."""
        self._path = path
        with os_errors_as_user_errors(path, MAKE_ROOM):
            if not storage.exists(path / SCORES):
                storage.make_directory(path / SCORES)
            elif name not in (names := column_names(path)) and len(names) >= MAX_COLUMNS:
                raise UserError(f"{SCORES}/{name}: the run has {MAX_COLUMNS} columns of scores; remove one of them")
            self.scores: dict[str, Score] = {}
            self.removed = num_lines = 0
            for _, score in _lines(path, name):
                num_lines += 1
                if score is None:
                    self.removed += 1
                else:
                    self.scores[score.file_name] = score
            if len(self.scores) < num_lines:
                lines = (score.to_line() + b"\n" for score in self.scores.values())
                storage.write_chunks(_file(path, name), lines)
            self._file = LineFile(_file(path, name))

    def append(self, scores: Sequence[Score]) -> None:
        """All of them are on the disk when it returns. Raises UserError."""
        with os_errors_as_user_errors(self._path, MAKE_ROOM):
            self._file.append(*(score.to_line() for score in scores))
        self.scores |= {score.file_name: score for score in scores}

    def close(self) -> None:
        self._file.close()


def join_scores(path: Path, source: Path, records: Iterable[ImageRecord]) -> None:
    """Adds the scores that `source` has of pictures of the run directory `path`, and `path` has not. Raises UserError.

    records: the manifest of `path`.
    """
    known = list(records)
    here, there = read_scores(path, known), read_scores(source, known)
    for name, scores in there.columns.items():
        new = [score for file_name, score in scores.items() if file_name not in here.columns.get(name, {})]
        if new:
            column = ScoreColumn(path, name)
            try:
                column.append(new)
            finally:
                column.close()


def _lines(path: Path, name: str) -> Iterator[tuple[int, Score | None]]:
    """(number, score) of each whole line of a column. Raises OSError."""
    for number, line in enumerate(storage.read_lines(_file(path, name), MAX_SCORE_BYTES), 1):
        yield number, parse_score(line)


def _file(path: Path, name: str) -> Path:
    return path / SCORES / f"{name}{_SUFFIX}"


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
