"""What `python -m tpusd.score` does: reads its words, scores each run with each metric, says what came out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tpusd.config.paths import expanded_path
from tpusd.errors import UserError, show, show_path, suggest
from tpusd.process.progress import Progress
from tpusd.process.report import report, say
from tpusd.process.waiting import waiting
from tpusd.records.directory import check_run_directory
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.scores import check_column, has_broken_lines, read_scores
from tpusd.records.set_scores import write_set_score
from tpusd.records.sweep import run_directories
from tpusd.scores.base import Metric, Place
from tpusd.scores.imported import IMPORT, read_scores_file
from tpusd.scores.registry import metric_named, metrics
from tpusd.scores.scoring import Column, records_to_score, score_run, write_values
from tpusd.scores.sets import SET_METRICS, Known, SetMetric, check_reference, score_set

MAX_FAULTS = 20  # that are listed
MAX_RUNS = 40  # of a sweep, whose means are listed
_WORDS = ("metric", "import", "columns", "column", "reference", "features")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the words ask for.

    metrics: column -> metric. sets: those of a whole run against `reference`.
    reference, features: as `score_set` takes them.
    places: of the weights that the words name, by their names.
    imported: a file of scores. columns: those of the file to read; None: all that hold numbers.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    sets: Sequence[SetMetric] = ()
    reference: Path | None = None
    features: Path | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    imported: Path | None = None
    columns: tuple[str, ...] | None = None


def parse_words(words: Sequence[str]) -> Request:
    """`metric=clip_score,attributes clip.path=DIR import=FILE.csv columns=a,b column=NAME`. Raises UserError."""
    given: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        known = [*_WORDS, *_place_words()]
        if not sign:
            metric = f"; write metric={name}" if name in metrics() else suggest(name, known)
            raise UserError(f"{show(word)}: is not field=value{metric or '; --help lists the fields'}")
        if name not in known:
            raise UserError(f"{show(word)}: no such field{suggest(name, known) or '; --help lists the fields'}")
        if name in given:
            raise UserError(f"{show(word)}: {show(name)} is given twice; remove one")
        if not value:
            raise UserError(f"{show(word)}: has no value; --help lists the fields")
        given[name] = value
    if "metric" not in given and "import" not in given:
        raise UserError(f"give metric=NAME or import=FILE; the metrics: {', '.join(metrics())}")
    if "columns" in given and "import" not in given:
        raise UserError(f"columns={show(given['columns'])}: names columns of import=FILE; give the file too")
    names = _names(given.get("metric", ""))
    sets = [SET_METRICS[name] for name in names if name in SET_METRICS]
    chosen = [metric_named(name, SET_METRICS) for name in names if name not in SET_METRICS]
    if sets and "reference" not in given:
        raise UserError(
            f"metric={sets[0].name}: give reference=, what the run is compared with; it needs {sets[0].needs}"
        )
    for word in ("reference", "features") if not sets else ():
        if word in given:
            raise UserError(f"{word}: has no effect without metric={' or '.join(SET_METRICS)}; add one, or remove it")
    return Request(
        metrics=_by_column(chosen, given.get("column")),
        sets=sets,
        reference=_path(given, "reference") if "reference" in given else None,
        features=_path(given, "features") if "features" in given else None,
        places=_places(given, [*chosen, *sets]),
        imported=_path(given, "import") if "import" in given else None,
        columns=_names(given["columns"]) if "columns" in given else None,
    )


def carry_out(path: Path, request: Request) -> tuple[str, ...]:
    """Scores the run or the sweep at `path`. Returns a line for each picture that was left out. Raises UserError."""
    runs = run_directories(path)
    for _, directory in runs:
        check_run_directory(directory)
    faults: list[str] = []
    columns: list[str] = []
    for set_metric in request.sets:
        if request.reference is not None:
            check_reference(request.reference, set_metric)
    if request.imported is not None:
        imported, unknown = _import(runs, request)
        columns += imported
        faults += unknown
    return score_runs(path, runs, request, columns, faults)


def score_runs(
    path: Path,
    runs: Sequence[tuple[str, Path]],
    request: Request,
    columns: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> tuple[str, ...]:
    """Scores runs, and says what came out. Returns a line for each picture that was left out. Raises UserError.

    path: as the summary names what is scored.
    runs: name (empty for a run alone) and directory of each.
    columns, faults: of what is there already.
    """
    found = list(faults)
    for column, metric in request.metrics.items():
        found += _score(runs, column, metric, request.places)
    known: Known = {}
    for set_metric in request.sets:
        found += _score_sets(runs, set_metric, request, known)
    for column in (*columns, *request.metrics):
        for line in _summary(path, runs, column):
            say(line)
    for fault in found[:MAX_FAULTS]:
        report(fault)
    if len(found) > MAX_FAULTS:
        report(f"and {len(found) - MAX_FAULTS} more")
    return tuple(found)


def _score(runs: Sequence[tuple[str, Path]], name: str, metric: Metric, given: Mapping[str, Place]) -> list[str]:
    with waiting(f"loading what {metric.name} needs"):
        scorer = metric.open({place: given.get(place, default) for place, default in metric.places.items()})
    column = Column(name=name, metric=metric.name, weights=scorer.weights)
    num_images = sum(len(_records(directory)) for _, directory in runs)
    todo = [(run, directory, len(records_to_score(directory, column))) for run, directory in runs]
    faults: list[str] = []
    with _progress(num_images, num_images - sum(number for _, _, number in todo)) as progress:
        for run, directory, number in todo:
            if number or has_broken_lines(directory, name):
                faults += _faults(run, score_run(directory, column, metric, scorer, progress).faults)
    return faults


def _score_sets(runs: Sequence[tuple[str, Path]], metric: SetMetric, request: Request, known: Known) -> list[str]:
    assert request.reference is not None
    if request.features is not None and (not metric.takes_features or len(runs) != 1):
        raise UserError("features=: has the features of one run's images, for fid and kid; give that run's directory")
    places = {name: request.places.get(name, default) for name, default in metric.places.items()}
    faults: list[str] = []
    with waiting(f"computing {metric.name}"):
        embed = metric.embed(places) if request.features is None else None
        for run, directory in runs:
            score, own = score_set(directory, metric, embed, request.features, request.reference, known)
            write_set_score(directory, score)
            faults += _faults(run, own)
            against = f"against {show_path(request.reference)}"
            say(f"{show_path(directory)}: {metric.name} of {score.num_images} images {against}: {score.value:.5g}")
    return faults


def _faults(run: str, faults: Sequence[str]) -> list[str]:
    return [f"{run}/{fault}" if run else fault for fault in faults]


@contextmanager
def _progress(total: int, done: int) -> Iterator[Progress]:
    progress = Progress(total, done)
    try:
        yield progress
    finally:
        progress.close()


def _import(runs: Sequence[tuple[str, Path]], request: Request) -> tuple[list[str], tuple[str, ...]]:
    """(columns that were written, a line for each line or column of the file that is left out)."""
    assert request.imported is not None
    records = {name: _records(directory) for name, directory in runs}
    found = read_scores_file(request.imported, records, request.columns)
    for name, values in found.values.items():
        column = Column(name=name, metric=IMPORT, weights=found.sha256)
        for run, directory in runs:
            own = [
                (record, values[run, record.file_name]) for record in records[run] if (run, record.file_name) in values
            ]
            if own:
                write_values(directory, column, own)
    return list(found.values), found.left_out


def _summary(path: Path, runs: Sequence[tuple[str, Path]], column: str) -> Iterator[str]:
    """The mean of each run, and of all."""
    means: list[tuple[str, list[float]]] = []
    num_images = 0
    for name, directory in runs:
        records = _records(directory)
        num_images += len(records)
        scores = read_scores(directory, records)
        values = [value for record in records if (value := scores.of(record).get(column)) is not None]
        means.append((name, values))
    every = [value for _, values in means for value in values]
    if len(means) > 1:
        for name, values in means[:MAX_RUNS]:
            yield f"  {name}: {column} {_mean(values)}"
        if len(means) > MAX_RUNS:
            yield f"  and {len(means) - MAX_RUNS} more runs"
    spread = f", from {min(every):.4g} to {max(every):.4g}" if every else ""
    yield f"{show_path(path)}: {column} of {len(every)} of {num_images} images: mean {_mean(every)}{spread}"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else "of no image"


def _records(directory: Path) -> list[ImageRecord]:
    return list(read_manifest(directory))


def _names(text: str) -> tuple[str, ...]:
    """`a,b` or `[a,b]` -> names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.strip("[]").split(",") if name.strip()))


def _by_column(chosen: Sequence[Metric], column: str | None) -> dict[str, Metric]:
    if column is None:
        return {metric.name: metric for metric in chosen}
    check_column(column, f"column={column}")
    if len(chosen) != 1:
        raise UserError(f"column={show(column)}: names the column of one metric; give one metric")
    return {column: chosen[0]}


def _place_words() -> list[str]:
    names = dict.fromkeys(place for metric in _all_metrics() for place in metric.places)
    return [f"{name}.{part}" for name in names for part in ("path", "repo", "revision")]


def _all_metrics() -> list[Metric | SetMetric]:
    return [*metrics().values(), *SET_METRICS.values()]


def _places(given: Mapping[str, str], chosen: Sequence[Metric | SetMetric]) -> dict[str, Place]:
    """Name -> where its weights are, for the names that the words have. Raises UserError."""
    needed = {name: default for metric in chosen for name, default in metric.places.items()}
    found: dict[str, Place] = {}
    for word in given:
        name, point, part = word.partition(".")
        if not point:
            continue
        if name not in needed:
            users = [metric.name for metric in _all_metrics() if name in metric.places]
            raise UserError(f"{word}: has no effect without metric={' or '.join(users)}; add one, or remove it")
        if part == "path":
            others = [other for other in ("repo", "revision") if f"{name}.{other}" in given]
            if others:
                raise UserError(f"{word}: is given beside {name}.{others[0]}; remove one of them")
            found[name] = Place(path=_path(given, word))
        elif f"{name}.repo" in given:
            found[name] = Place(repo=given[f"{name}.repo"], revision=given.get(f"{name}.revision"))
        else:
            found[name] = Place(repo=needed[name].repo, revision=given[word])
    return found


def _path(given: Mapping[str, str], name: str) -> Path:
    return Path(expanded_path(given[name], name))
