"""`-m`: a sweep, all of its runs in one process and one directory.

    command line -> requests -> each prepared -> grouped by program -> made in batches across runs -> page and table

A checkpoint is loaded once, and a program compiled once, for all runs that share them. A sweep continues with
`resume=DIR`; fields given with it replace those of its command line, and only runs that are not there yet are made,
from the files of those that are there.
"""

import contextlib
import dataclasses
import functools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tpusd import storage
from tpusd.config.compose import compose_jobs, refuse_shows, sweep_words
from tpusd.config.shards import Shard
from tpusd.config.words import with_whole_paths
from tpusd.errors import ChangedFile, UserError, show
from tpusd.gallery.sweep import write_sweep_results
from tpusd.plan.specs import planned
from tpusd.process.progress import Progress
from tpusd.process.report import report, say
from tpusd.process.waiting import waiting
from tpusd.records.directory import (
    Claim,
    DirectoryLog,
    RunDir,
    claim_directory,
    close_quietly,
    discard_sweep,
    make_claim,
)
from tpusd.records.layout import CHOOSE_ANOTHER, CONFIG, MAKE_ROOM, SWEEP_LOG
from tpusd.records.run_json import images_per_second, read_run_if_valid
from tpusd.records.saved import CHANGEABLE_ON_RESUME, read_saved
from tpusd.records.shards import ShardDir, join_sweep, locked_shard, shared_files
from tpusd.records.sweep import Sweep, is_sweep, read_sweep, write_sweep
from tpusd.runs.dry_run import RunToShow, count, show_plan
from tpusd.runs.embeddings import open_embeddings_once
from tpusd.runs.executors.local import LoadPipeline, load_pipeline
from tpusd.runs.executors.place import check_place, opened
from tpusd.runs.loras import open_loras_once
from tpusd.runs.make import make_runs
from tpusd.runs.prepare import Prepare, open_model, prepare_run
from tpusd.runs.requests import RunRequest, extended_overrides, plan_sweep
from tpusd.runs.safety import open_safety_once
from tpusd.runs.same_files import JoinRuns, joining
from tpusd.runs.scores import leaving_to_another_shard, score_finished
from tpusd.runs.session import RunSession
from tpusd.runs.start import advising, advising_scores, how_to_continue, shared_output
from tpusd.runs.stripes import stripe_of
from tpusd.runs.take_up import CompleteRun, take_up
from tpusd.storage import os_errors_as_user_errors

EXIT_FAILED_RUNS = 1
MAX_TABLE_ROWS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of one run of a sweep. rate: images/s, without start-up."""

    name: str
    num_images: int = 0  # that it has
    num_made: int = 0
    num_missing: int = 0
    rate: float | None = None
    error: str | None = None


def start_sweep(argv: Sequence[str], *, prepare: Prepare | None = None, load: LoadPipeline = load_pipeline) -> int:
    """Makes a new sweep. Returns the exit status: 1 where a run failed. Raises UserError.

    argv: the command line, with `-m`.
    prepare: None: `prepare_run` with each checkpoint opened once.
    load: see `load_pipeline`.
    """
    words = with_whole_paths(argv)
    jobs = compose_jobs(words)
    if jobs is None:
        return 0
    sweep, requests = plan_sweep(jobs, sweep_words(words))
    prepare = prepare or prepare_with_shared_checkpoints()
    if requests[0].config.dry_run:
        show_plan([_to_show(request) for request in requests], prepare)
        return 0
    check_place(requests[0].config.executor)
    output = jobs[0].values["output"]
    shard = _shard_of(requests)
    if shard is None:
        path, made = claim_sweep(output, sweep)
    else:
        path, made = join_sweep(shared_output(output, shard), sweep), None
    return make_sweep(path, sweep, requests, prepare=prepare, load=load, made=made)


def resume_sweep(
    path: Path, argv: Sequence[str], *, prepare: Prepare | None = None, load: LoadPipeline = load_pipeline
) -> int:
    """Continues the sweep at `path`, with the fields of `argv` in place of its own. Otherwise as `start_sweep`."""
    refuse_shows(argv, "resume=")
    before = read_sweep(path)
    new = [word for word in argv if word not in ("-m", "--multirun")]
    new = [word if word in before.overrides else whole for word, whole in zip(new, with_whole_paths(new), strict=True)]
    words = extended_overrides(before.overrides, new)
    jobs = compose_jobs(["-m", *words])
    assert jobs is not None, words
    sweep, requests = plan_sweep(jobs, words, before)
    prepare = prepare or prepare_with_shared_checkpoints()
    if requests[0].config.dry_run:
        show_plan([_to_show(request, path) for request in requests], prepare, joining(_paths(path, sweep)))
        return 0
    return make_sweep(path, sweep, requests, prepare=prepare, load=load)


def claim_sweep(output: str | None, sweep: Sweep) -> tuple[Path, list[Path]]:
    """A new directory for a sweep, or an empty one that the user named; and the directories made for that, outermost
    first. Raises UserError.
    """
    fields = "_".join(["sweep", *(key.rsplit(".", 1)[-1] for key in sweep.axes)])
    claim = make_claim(output, fields, datetime.now().astimezone(), max_chars=60)
    with os_errors_as_user_errors(claim.path, CHOOSE_ANOTHER):
        made: list[Path] = []
        return claim_directory(claim, made, _refuse_taken), made


def make_sweep(
    path: Path,
    sweep: Sweep,
    requests: Sequence[RunRequest],
    *,
    prepare: Prepare,
    load: LoadPipeline,
    made: Sequence[Path] | None = None,
) -> int:
    """Makes what is missing of the sweep at `path`, and its page. Returns the exit status. Raises UserError.

    made: the directories that were made for this sweep; a fault before its first run removes them. None: they stay.
    """
    started = time.monotonic()
    shard = _shard_of(requests)
    with (
        _locked(path) if shard is None else locked_shard(path, shard) as log,
        contextlib.nullcontext() if made is None else _discarding(path, made),
        _advising(path, shard),
    ):
        with _sweep_files(path, shard), os_errors_as_user_errors(path, MAKE_ROOM):
            if not is_sweep(path):  # from here on it can be resumed
                write_sweep(path, sweep)
        join = joining(_paths(path, sweep) if made is None else ())  # nothing is there of a sweep that was made now
        found = _take_up_all(path, requests, prepare, join, log)
        with _sweep_files(path, shard), os_errors_as_user_errors(path, MAKE_ROOM):
            if shard is None or {run.name for run in sweep.runs} != {run.name for run in read_sweep(path).runs}:
                write_sweep(path, sweep)
        results = _make_requests(requests, found, load, log)
        num_faults = _score(path, requests, shard, log)
        with waiting("writing the sweep's page"), _sweep_files(path, shard), os_errors_as_user_errors(path, MAKE_ROOM):
            sweep, unfinished = _with_errors(sweep, results), 0
            if shard is not None:
                sweep, unfinished = _of_all_shards(path, results)
            write_sweep(path, sweep)
            see = f"{count(unfinished, 'run')} of other shards not finished"
            if not unfinished:  # else other shards may be at work on the thumbnails of its runs
                see = f"see {write_sweep_results(path, sweep)}"
    for line in _table(results):
        say(line)
    num_failed = sum(result.error is not None for result in results)
    num_made, seconds = sum(result.num_made for result in results), time.monotonic() - started
    say(
        f"{path}: {'' if shard is None else f'shard {shard}: '}{count(len(results), 'run')}, "
        f"{count(num_made, 'image')} in {seconds:.1f} s"
        f"{f', {num_failed} failed' if num_failed else ''}; {see}"
    )
    if num_failed:
        report(how_to_continue(path, shard))
    return EXIT_FAILED_RUNS if num_failed or num_faults else 0


def _take_up_all(
    path: Path, requests: Sequence[RunRequest], prepare: Prepare, join: JoinRuns, log: Callable[[str], None]
) -> dict[str, RunSession | RunResult]:
    """Run -> what there is to do, or what became of it.

    Raises, before anything is made, ChangedFile, and the UserError of the first run where no run can be made.
    """
    found: dict[str, RunSession | RunResult] = {}
    failures: dict[str, Exception] = {}
    warnings: dict[str, None] = {}
    for request in requests:
        name = request.run.name
        try:
            run = _take_up(request, path, prepare, join)
        except ChangedFile:
            raise
        except Exception as error:  # of this run alone, as a failure while it is made
            found[name] = RunResult(name=name, error=_line(error))
            failures[name] = error
            if requests[0].config.on_error == "stop":
                break
            continue
        if isinstance(run, CompleteRun):
            found[name] = RunResult(name=name, num_images=run.num_images)
        else:
            found[name] = run
            warnings |= dict.fromkeys(run.prepared.warnings)
    first = next(iter(failures.values()), None)
    if isinstance(first, UserError) and failures.keys() == found.keys():
        raise UserError(f"{first}{f' (all {len(failures)} runs fail)' if len(failures) > 1 else ''}") from None
    for name, failure in failures.items():
        report(f"{name}: failed: {_line(failure)}")
        log(_failure(name, failure))
    for warning in warnings:
        report(warning)
        log(warning)
    return found


def _make_requests(
    requests: Sequence[RunRequest],
    found: Mapping[str, RunSession | RunResult],
    load: LoadPipeline,
    log: Callable[[str], None],
) -> list[RunResult]:
    """What became of every request, made as far as it could be. found: as `_take_up_all` gives it."""
    stop_on_error = requests[0].config.on_error == "stop"
    sessions = {name: run for name, run in found.items() if isinstance(run, RunSession)}
    results = {name: run for name, run in found.items() if isinstance(run, RunResult)}
    failed = any(result.error is not None for result in results.values())

    def on_failure(run: RunSession, error: BaseException) -> None:
        report(f"{run.name}: failed: {_line(error)}")
        log(_failure(run.name, error))

    if sessions and not (failed and stop_on_error):
        total = sum(session.num_images for session in sessions.values())
        there = sum(result.num_images for result in results.values())
        done = sum(len(session.done) + len(session.dropped) for session in sessions.values())
        with (
            opened(requests[0].config.executor, load) as executor_for,
            contextlib.closing(Progress(there + total, there + done)) as progress,
        ):
            runs = list(sessions.values())
            make_runs(runs, executor_for(progress), stop_on_error=stop_on_error, on_failure=on_failure)
    results |= {name: _result(session) for name, session in sessions.items()}
    return [results[request.run.name] for request in requests if request.run.name in results]


def _score(path: Path, requests: Sequence[RunRequest], shard: Shard | None, log: Callable[[str], None]) -> int:
    """Scores the finished runs as their configs ask for. Returns the number of faults, which are reported."""
    runs = [
        (request.run.name, path / request.run.name, request.config)
        for request in requests
        if request.config.scores and read_run_if_valid(path / request.run.name).get("state") == "finished"
    ]
    try:
        with advising_scores(path), contextlib.nullcontext() if shard is None else leaving_to_another_shard():
            return len(score_finished(path, runs))
    except UserError as error:  # the images are there, and the sweep's page shows them
        report(f"scores: failed: {error}")
        log(f"scores: failed: {error}")
        return 1
    return 0


def _take_up(request: RunRequest, sweep: Path, prepare: Prepare, join: JoinRuns) -> RunSession | CompleteRun:
    """What is there of a run, repaired, and the rest prepared. Its directory is closed again. Raises UserError."""
    path = sweep / request.run.name
    stripe = stripe_of(request.config, request.run.name)
    if storage.file_size(path / CONFIG) is None:
        prepared = prepare(request.config)
        if not planned(prepared.config, stripe):
            return CompleteRun(path=path, num_images=0)
        return RunSession(
            join(prepared),
            Claim(output=path) if stripe is None else path,
            name=request.run.name,
            hydra_files=request.job.hydra_files(),
            keep_empty=False,
            stripe=stripe,
        )
    if stripe is not None and not planned(read_saved(path), stripe):
        return CompleteRun(path=path, num_images=0)
    run_dir = RunDir.open(path) if stripe is None else ShardDir.join(path, stripe)
    try:
        saved = read_saved(path)
        changed = {name: getattr(request.config, name) for name in CHANGEABLE_ON_RESUME}
        found = take_up(run_dir, saved, dataclasses.replace(saved, **changed), prepare, name=request.run.name)
        if isinstance(found, RunSession):
            dropped = frozenset(found.dropped)
            return RunSession(found.prepared, path, name=found.name, done=found.done, dropped=dropped, stripe=stripe)
        return found
    finally:
        close_quietly(run_dir)


def _paths(sweep: Path, of: Sweep) -> list[Path]:
    return [sweep / run.name for run in of.runs]


def _result(session: RunSession) -> RunResult:
    return RunResult(
        name=session.name,
        num_images=len(session.done) + session.num_made,
        num_made=session.num_made,
        num_missing=session.num_missing,
        rate=images_per_second(session.num_made, session.timing.seconds),
        error=None if session.error is None else _line(session.error),
    )


def prepare_with_shared_checkpoints() -> Prepare:
    return functools.partial(
        prepare_run,
        open_model=functools.cache(open_model),
        open_loras=open_loras_once(),
        open_safety=open_safety_once(),
        open_embeddings=open_embeddings_once(),
    )


def _refuse_taken(path: Path) -> None:
    """Raises UserError unless the directory that the user named is empty."""
    if is_sweep(path):
        shown = show(str(path))
        raise UserError(f"output={shown}: holds a sweep; continue it with resume={shown}, or name a new directory")
    if not path.is_dir() or storage.list_directory(path):
        raise UserError(f"output={show(str(path))}: exists and is not empty; name a new directory")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Callable[[str], None]]:
    """Holds the lock of the sweep directory, and yields what writes a line of its log."""
    with os_errors_as_user_errors(path, MAKE_ROOM):
        log = DirectoryLog(path, SWEEP_LOG, kind="sweep")
    try:
        yield log.write
    finally:
        with contextlib.suppress(OSError):
            log.close()


@contextlib.contextmanager
def _discarding(path: Path, made: Sequence[Path]) -> Iterator[None]:
    """Takes a claim back where the sweep is impossible, as on a cluster without what it asks for."""
    try:
        yield
    except UserError:
        discard_sweep(path, made)
        raise


def _advising(path: Path, shard: Shard | None) -> contextlib.AbstractContextManager[None]:
    return advising(lambda: path, lambda: False, manifest="a manifest", shard=shard)


def _shard_of(requests: Sequence[RunRequest]) -> Shard | None:
    """Of this process; None: it makes all. Raises UserError."""
    stripe = stripe_of(requests[0].config)
    return None if stripe is None else stripe.shard


def _sweep_files(path: Path, shard: Shard | None) -> contextlib.AbstractContextManager[None]:
    """For what all shards of a sweep write."""
    return contextlib.nullcontext() if shard is None else shared_files(path)


def _to_show(request: RunRequest, sweep: Path | None = None) -> RunToShow:
    name = request.run.name
    path = None if sweep is None else sweep / name
    return RunToShow(name=name, config=request.config, path=path, stripe=stripe_of(request.config, name))


def _with_errors(sweep: Sweep, results: Sequence[RunResult]) -> Sweep:
    errors = {result.name: result.error for result in results}
    runs = tuple(dataclasses.replace(run, error=errors.get(run.name, run.error)) for run in sweep.runs)
    return dataclasses.replace(sweep, runs=runs)


def _of_all_shards(path: Path, results: Sequence[RunResult]) -> tuple[Sweep, int]:
    """The sweep with the errors of all shards, of runs that are not finished; and how many those are."""
    sweep = read_sweep(path)
    unfinished = {run.name for run in sweep.runs if read_run_if_valid(path / run.name).get("state") != "finished"}
    errors = {run.name: run.error for run in sweep.runs if run.name in unfinished}
    errors |= {result.name: result.error for result in results if result.error is not None}
    runs = tuple(dataclasses.replace(run, error=errors.get(run.name)) for run in sweep.runs)
    return dataclasses.replace(sweep, runs=runs), len(unfinished)


def _table(results: Sequence[RunResult]) -> list[str]:
    """A line a run: name, images that it has, images/s, and what became of it. Of many runs, those that failed."""
    shown = results if len(results) <= MAX_TABLE_ROWS else [result for result in results if result.error is not None]
    if not shown:
        return []
    width = max(len(result.name) for result in shown)
    lines = [f"{'run':<{width}}  images  images/s"]
    for result in shown[:MAX_TABLE_ROWS]:
        rate = f"{'' if result.rate is None else f'{result.rate:.2f}':>8}"
        lines.append(f"{result.name:<{width}}  {result.num_images:6}  {rate}  {_note(result)}".rstrip())
    if len(shown) > MAX_TABLE_ROWS:
        lines.append(f"and {len(shown) - MAX_TABLE_ROWS} more; sweep.json has them all")
    return lines


def _note(result: RunResult) -> str:
    """What became of a run, in the table. "not finished": another run failed first, with on_error=stop."""
    if result.error is not None:
        return "failed"
    if result.num_missing:
        return "not finished"
    return "" if result.num_made else "was there"


def _line(error: BaseException) -> str:
    return (
        str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    )


def _failure(name: str, error: BaseException) -> str:
    """For the sweep's log: with the traceback where the fault is the program's."""
    known = isinstance(error, UserError)
    return f"{name}: failed: {_line(error)}" + ("" if known else f"\n{_traceback(error)}")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
