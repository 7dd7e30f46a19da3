"""A run alone: claimed, made, and reported. A sweep of one."""

import contextlib
import dataclasses
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.config.shards import Shard
from tpusd.errors import IncompleteRun, UserError
from tpusd.plan.batches import Kind, count_batches
from tpusd.plan.specs import ImageSize, Stripe
from tpusd.process.progress import Progress
from tpusd.process.report import report, say
from tpusd.process.signals import Interrupted
from tpusd.prompts.vocabulary import next_step
from tpusd.records.directory import check_claim, close_quietly, make_claim
from tpusd.records.layout import CHOOSE_ANOTHER, PAGE
from tpusd.records.saved import CHANGEABLE_ON_RESUME, read_saved
from tpusd.records.shards import ShardDir
from tpusd.runs.dry_run import count
from tpusd.runs.executors.local import LoadPipeline, load_pipeline
from tpusd.runs.executors.place import opened
from tpusd.runs.make import make_runs
from tpusd.runs.prepare import Prepare, prepare_run
from tpusd.runs.scores import leaving_to_another_shard, score_alone
from tpusd.runs.session import RunSession, holds_images
from tpusd.runs.stripes import stripe_of
from tpusd.runs.take_up import CompleteRun, take_up
from tpusd.storage import os_errors_as_user_errors


def start_run(
    config: RunConfig,
    *,
    name: str | None = None,
    hydra_files: Mapping[str, Any] | None = None,
    prepare: Prepare = prepare_run,
    load: LoadPipeline = load_pipeline,
    started: float | None = None,
) -> Path:
    """Makes a whole new run; returns its directory. Raises UserError.

    config: of the run.
    name: in its directory's name, in place of the name of its prompts.
    hydra_files: name in .hydra/ -> text or plain values.
    prepare, load: see `prepare_run` and `load_pipeline`.
    started: when the command began, by time.monotonic().
    """
    stripe = stripe_of(config)
    if stripe is not None:
        return _start_shard(config, stripe, hydra_files, prepare, load, started)
    if name is None:
        name = config.prompts.name if config.prompts.path is None else Path(config.prompts.path).stem
    claim = make_claim(config.output, name, datetime.now().astimezone())
    check_claim(claim)
    prepared = prepare(config)
    session = RunSession(prepared, claim, name=name, hydra_files=hydra_files)
    for warning in prepared.warnings:
        report(warning)
    make_alone(session, load, started=started)
    return session.path


def _start_shard(
    config: RunConfig,
    stripe: Stripe,
    hydra_files: Mapping[str, Any] | None,
    prepare: Prepare,
    load: LoadPipeline,
    started: float | None,
) -> Path:
    """Makes or continues one shard, in the directory that it shares. Arguments as of `start_run`."""
    path = shared_output(config.output, stripe.shard)
    prepared = prepare(config)
    for warning in prepared.warnings:
        report(warning)
    shard_dir = ShardDir.join(path, stripe, prepared.config, hydra_files=hydra_files)
    with contextlib.ExitStack() as stack:
        stack.callback(close_quietly, shard_dir)
        saved = read_saved(path)
        changed = {field: getattr(prepared.config, field) for field in CHANGEABLE_ON_RESUME}
        own = dataclasses.replace(saved, **changed)
        found = take_up(shard_dir, saved, own, lambda _: dataclasses.replace(prepared, config=own), name=path.name)
        if isinstance(found, CompleteRun):
            stack.close()  # scoring takes the lock
            score_advising(path, own, is_shard=True)
            found.say()
            return path
        stack.pop_all()  # from here on the session closes the directory
        make_alone(found, load, started=started)
    return path


def shared_output(output: str | None, shard: Shard) -> Path:
    """The directory of a shard, from the config's `output`. Raises UserError."""
    if output is None:
        raise UserError(
            f"shard={shard}: needs output=DIR, one for all shards on a shared disk, or one on each disk; there a "
            "shard continues when it is started again"
        )
    claim = make_claim(output, "", datetime.now().astimezone())
    with os_errors_as_user_errors(claim.path, CHOOSE_ANOTHER):
        there = claim.path
        while not storage.exists(there) and there != there.parent:
            there = there.parent
        storage.check_writable(there)
    return claim.path


def make_alone(session: RunSession, load: LoadPipeline, *, started: float | None = None) -> None:
    """Makes what a run lacks, prints its summary, and raises what stopped it."""
    try:
        session.open()
        with (
            opened(session.prepared.config.executor, load) as executor_for,
            advising(
                lambda: session.path,
                lambda: holds_images(session.path),
                shard=None if session.stripe is None else session.stripe.shard,
            ),
        ):
            with contextlib.closing(Progress(session.num_images, len(session.done) + len(session.dropped))) as progress:
                executor = executor_for(progress)
                if started is not None:
                    session.timing.seconds["import"] = time.monotonic() - started
                batches = count_batches(_kinds(session), executor.batch_size(session.prepared.config))
                session.log(
                    f"{count(session.num_missing, 'image')} in {count(batches, 'batch')} on {executor.describe()}"
                )
                make_runs([session], executor)
            if session.error is not None:
                raise session.error
    except BaseException as error:
        session.leave(error)
        raise
    if (hint := next_step(session.prepared.config.model)) is not None:
        report(hint)
    say(f"{session.path}: {session.summary()}")
    if session.num_elsewhere:
        missing = count(session.num_elsewhere, "image")
        say(f"{session.path}: {missing} of other shards missing; the last shard completes the run")
    else:
        score_advising(session.path, session.prepared.config, is_shard=session.stripe is not None)
        say(f"see {session.path / PAGE}")


def _kinds(session: RunSession) -> Counter[tuple[tuple[ImageSize, Kind], int]]:
    """How many images are missing, by what those of a batch have in common and by their number of model calls."""
    kinds = Counter[tuple[tuple[ImageSize, Kind], int]]()
    for spec, number in session.counted_specs():
        kinds[((spec.height, spec.width), session.prepared.kind(spec)), session.prepared.num_calls(spec)] += number
    return kinds


@contextlib.contextmanager
def advising(
    path: Callable[[], Path],
    has_images: Callable[[], bool],
    manifest: str = "the manifest",
    shard: Shard | None = None,
) -> Iterator[None]:
    """Adds to what stops the block how to continue, where there is something to continue with.

    path: of the run or the sweep.
    has_images: whether it holds an image.
    manifest: which one, in words.
    shard: that the block makes; None: all.
    """
    try:
        yield
    except IncompleteRun:  # says itself how to continue
        raise
    except UserError as error:
        if has_images():
            raise UserError(f"{error}; then {how_to_continue(path(), shard)}") from None
        raise
    except Interrupted as error:
        error.advice = f"; every image in {manifest} is whole; {how_to_continue(path(), shard)}"
        raise


def score_advising(path: Path, config: SavedConfig, *, is_shard: bool) -> None:
    """Scores a finished run as its config asks for. Raises UserError."""
    with advising_scores(path), leaving_to_another_shard() if is_shard else contextlib.nullcontext():
        score_alone(path, config)


@contextlib.contextmanager
def advising_scores(path: Path) -> Iterator[None]:
    """Adds to what stops the scoring of finished runs how to continue. path: of the run or the sweep."""
    try:
        yield
    except Interrupted as error:
        error.advice = f"; every image and every score so far is kept; {how_to_continue(path)}"
        raise


def how_to_continue(path: Path, shard: Shard | None = None) -> str:
    which = "" if shard is None else f" shard={shard}"
    return f"continue with: python -m tpusd.run resume={shlex.quote(str(path))}{which}"
