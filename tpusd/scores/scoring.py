"""Scores the images of a run with a metric: only those that have no score of it yet. It can stop at any time.

Each batch of scores is on the disk before the next one is computed. A picture that is missing, broken or another one
than the manifest says is named and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpusd import storage
from tpusd.process.progress import Progress
from tpusd.records.directory import DirectoryLog, check_run_directory, close_quietly
from tpusd.records.layout import CHECK_PERMISSIONS, LOG
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.scores import Score, ScoreColumn, is_number, read_scores
from tpusd.scores.base import Metric, Picture, Scorer
from tpusd.storage import os_errors_as_user_errors
from tpusd.storage.pictures import PictureError, open_picture

NOT_A_NUMBER = "its score is not a number"
NOT_SCORED = "is not scored"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """num_scored: now. num_kept: that had a score before. faults: a line for each picture that was left out."""

    num_scored: int
    num_kept: int
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column to fill: its name, and what fills it. metric: as its lines name it, such as clip_score or `import`."""

    name: str
    metric: str
    weights: str | None

    def lacks(self, record: ImageRecord, score: Score | None) -> bool:
        """Whether the picture of this line has no score, or one of another picture, metric or weights."""
        if score is None:
            return True
        return (score.sha256, score.metric, score.weights) != (record.sha256, self.metric, self.weights)

    def score(self, record: ImageRecord, value: float | None) -> Score:
        return Score(
            metric=self.metric,
            weights=self.weights,
            file_name=record.file_name,
            sha256=record.sha256,
            value=value,
        )


def records_to_score(path: Path, column: Column) -> list[ImageRecord]:
    """The images of the run directory `path` that lack a score, by row and copy. Raises UserError."""
    check_run_directory(path)
    records = sorted(read_manifest(path), key=lambda record: record.key)
    scores = read_scores(path, records).columns.get(column.name, {})
    return [record for record in records if column.lacks(record, scores.get(record.file_name))]


def score_run(path: Path, column: Column, metric: Metric, scorer: Scorer, progress: Progress) -> Outcome:
    """Scores what the run directory `path` lacks. Raises UserError, also where another process works on the run."""
    check_run_directory(path)
    log = _locked(path)
    try:
        records = sorted(read_manifest(path), key=lambda record: record.key)
        opened = ScoreColumn(path, column.name)
        try:
            todo = [record for record in records if column.lacks(record, opened.scores.get(record.file_name))]
            faults: list[str] = []
            for start in range(0, len(todo), metric.batch_size):
                batch = todo[start : start + metric.batch_size]
                progress.start_batch(len(batch))
                scores, unread = _score_batch(path, batch, column, metric, scorer)
                opened.append(scores)
                faults += unread
                progress.end_batch()
        finally:
            opened.close()
        num_scored = len(todo) - len(faults)
        log.write(f"{column.name}: {num_scored} images scored, {len(faults)} left out")
        return Outcome(num_scored=num_scored, num_kept=len(records) - len(todo), faults=tuple(faults))
    finally:
        close_quietly(log)


def write_values(path: Path, column: Column, values: Sequence[tuple[ImageRecord, float | None]]) -> int:
    """Writes scores that are there already, such as imported ones. Returns how many are new. Raises UserError."""
    log = _locked(path)
    try:
        opened = ScoreColumn(path, column.name)
        try:
            scores = [column.score(record, value) for record, value in values]
            new = [score for score in scores if opened.scores.get(score.file_name) != score]
            opened.append(new)
        finally:
            opened.close()
        log.write(f"{column.name}: {len(new)} scores written")
        return len(new)
    finally:
        close_quietly(log)


def _locked(path: Path) -> DirectoryLog:
    """The run's log, with its lock: nobody makes images there meanwhile."""
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS):
        return DirectoryLog(path, LOG, kind="run")


def _score_batch(
    path: Path, batch: Sequence[ImageRecord], column: Column, metric: Metric, scorer: Scorer
) -> tuple[list[Score], list[str]]:
    """(scores, a line for each picture that has none)."""
    pictures, faults = [], []
    for record in batch:
        picture = read_picture(path, record)
        reason = picture if isinstance(picture, str) else metric.refuses_size(*picture.image.size)
        if reason is not None:
            faults.append(f"{record.file_name}: {NOT_SCORED}: {reason}")
        elif not isinstance(picture, str):
            pictures.append(picture)
    values = scorer(pictures) if pictures else ()
    scores = []
    for picture, value in zip(pictures, values, strict=True):
        if value is None or is_number(value):
            scores.append(column.score(picture.record, value))
        else:
            faults.append(f"{picture.record.file_name}: {NOT_SCORED}: {NOT_A_NUMBER}")
    return scores, faults


def read_picture(path: Path, record: ImageRecord) -> Picture | str:
    """The picture of a manifest line, or why it cannot be read."""
    file = path / record.file_name
    try:
        if storage.file_sha256(file) != record.sha256:
            return "its sha256 is not the manifest's"
        with open_picture(file) as image:
            image.load()
            return Picture(image=image.copy(), record=record)
    except PictureError as error:
        return error.reason
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
