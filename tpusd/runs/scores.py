"""Scores that a run's config asks for: checked before anything is made, computed when its images are there.

The same columns as those of `python -m tpusd.score`, computed in the same way: only what has no score is scored.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.config.scores import FIELD
from tpusd.errors import IncompleteRun, UserError, show_path
from tpusd.gallery.run import write_scored_page
from tpusd.plan.specs import image_sizes
from tpusd.process.report import report
from tpusd.records.directory import BusyDirectory
from tpusd.records.layout import MAKE_ROOM
from tpusd.records.manifest import read_manifest
from tpusd.records.scores import read_scores
from tpusd.scores.base import Metric, Place
from tpusd.scores.command import Request, score_runs
from tpusd.scores.registry import metric_named
from tpusd.storage import os_errors_as_user_errors


def check_scores(config: SavedConfig) -> None:
    """Raises UserError where a metric cannot be computed: its weights are not there, or no image has its size."""
    chosen = [metric_named(name) for name in config.scores]
    given = config.score_weights.given()
    for name in given:
        if not any(name in metric.places for metric in chosen):
            part = next(part for part, value in vars(given[name]).items() if value is not None)
            raise UserError(
                f"{FIELD}.{name}.{part}: no metric of `scores` needs it; add one to scores=[...], or remove it"
            )
    sizes = image_sizes(config)
    for metric in chosen:
        reasons = [metric.refuses_size(width, height) for height, width in sizes]
        if all(reasons):
            raise UserError(f"scores=[{metric.name}]: {reasons[0]}; leave it out, or make images of that size")
        _places_checked(metric, config)


def _places_checked(metric: Metric, config: RunConfig) -> None:
    try:
        metric.check(_places(metric, config))
    except UserError as error:
        raise UserError(f"scores=[{metric.name}]: {str(error).removeprefix(f'metric={metric.name}: ')}") from None


def _places(metric: Metric, config: RunConfig) -> dict[str, Place]:
    """Where the weights of a metric are: what the user gives, or what is published."""
    given = config.score_weights.given()
    places = {}
    for name, default in metric.places.items():
        own = given.get(name)
        path = None if own is None or own.path is None else Path(own.path)
        repo, revision = default.repo, default.revision
        if own is not None and own.repo is not None:
            repo, revision = own.repo, own.revision
        elif own is not None and own.revision is not None:
            revision = own.revision
        if path is not None:
            repo = revision = None
        places[name] = Place(path=path, repo=repo, revision=revision, prefix=f"{FIELD}.")
    return places


def score_finished(path: Path, runs: Sequence[tuple[str, Path, RunConfig]]) -> list[str]:
    """Scores what finished runs lack of the columns that they ask for, and makes their pages again.

    path: of the run or of the sweep.
    runs: (name in messages, directory, config as asked for now); the caller holds no lock of theirs.

    Returns a line for each picture that was left out. Raises UserError.
    """
    faults: list[str] = []
    for config, group in _alike(runs):
        lacking = [directory for _, directory in group if lacks_scores(directory, config)]
        if not lacking:
            continue
        chosen: dict[str, Metric] = {name: metric_named(name) for name in config.scores}
        places: Mapping[str, Place] = {k: v for metric in chosen.values() for k, v in _places(metric, config).items()}
        faults += score_runs(path, group, Request(metrics=chosen, places=places))
        for directory in lacking:
            with os_errors_as_user_errors(directory, MAKE_ROOM):
                write_scored_page(directory)
    return faults


def _alike(
    runs: Sequence[tuple[str, Path, RunConfig]],
) -> Iterator[tuple[RunConfig, list[tuple[str, Path]]]]:
    """Runs that ask for the same metrics with the same weights, with the config of the first."""
    groups: dict[object, tuple[RunConfig, list[tuple[str, Path]]]] = {}
    for name, directory, config in runs:
        if config.scores:
            _, group = groups.setdefault((config.scores, config.score_weights), (config, []))
            group.append((name, directory))
    yield from groups.values()


@contextlib.contextmanager
def leaving_to_another_shard() -> Iterator[None]:
    """Of shards that end at the same time, one scores the run, and the others leave it to that one."""
    try:
        yield
    except BusyDirectory as error:
        report(f"{str(error).partition('; ')[0]}, perhaps another shard that scores it")


def lacks_scores(path: Path, config: RunConfig) -> bool:
    """Whether an image of the run directory `path` has no score of a metric that `config` names. Raises UserError."""
    records = list(read_manifest(path))
    columns = read_scores(path, records).columns
    return any(record.file_name not in columns.get(name, {}) for name in config.scores for record in records)


def score_alone(path: Path, config: SavedConfig) -> None:
    """Scores the finished run at `path` as `config` asks for. Raises UserError, and IncompleteRun after faults."""
    if not config.scores or not lacks_scores(path, config):
        return
    check_scores(config)
    if faults := score_finished(path, [("", path, config)]):
        number = len(faults)
        raise IncompleteRun(
            f"{show_path(path)}: {number} of its scores {'is' if number == 1 else 'are'} missing, as named above; the "
            "images are whole"
        )
