"""Prepared runs -> images on disk: one list of runs, one or a thousand, given to one executor.

The main thread asks the executor for batches, which keeps the devices busy; the writer's threads do the rest. Batches
are filled across runs, and a run's directory is opened with its first image and completed with its last.
"""

import shlex
from collections.abc import Callable, Container, Iterator, Sequence

from tpusd.errors import IncompleteRun, show_path
from tpusd.plan.batches import Batch, grouped, pack, program_key, weights_key
from tpusd.plan.specs import ImageSize, image_sizes
from tpusd.process import signals
from tpusd.runs.executors.base import Executor, FailedBatch, SetAsideBatch
from tpusd.runs.session import RunSession
from tpusd.runs.writer import BatchWriter


def make_runs(
    runs: Sequence[RunSession],
    executor: Executor,
    *,
    stop_on_error: bool = False,
    on_failure: Callable[[RunSession, BaseException], None] = lambda run, error: None,
) -> None:
    """Makes what the runs lack, and completes them. A run that fails keeps its error, and the others continue.

    stop_on_error: make no further batch after a run has failed.
    on_failure(run, error): is called once for each run that fails, in any thread.
    """
    largest = max((executor.batch_size(run.prepared.config) for run in runs), default=1)
    unmade: set[RunSession] = set()  # of which a batch could not be made
    stopped: BaseException | None = None
    try:
        room, threads = executor.writing.max_pending(largest), executor.writing.threads
        with executor, BatchWriter(max_pending=room, num_threads=threads, on_failure=on_failure) as writer:
            for run in runs:
                if not run.num_missing:  # its last image was made, and the process ended before its page was
                    writer.complete(run)
            for made in executor.generate(_batches(runs, executor, unmade, stop_on_error)):
                if isinstance(made, FailedBatch):
                    run = made.batch.entries[0][0]
                    unmade.add(run)
                    writer.fail_after_pending(run, made.error)
                elif isinstance(made, SetAsideBatch):
                    writer.set_aside(made)
                else:
                    writer.submit(made)
        if not (stop_on_error and any(run.error is not None for run in runs)):
            _fail_unfinished(runs, on_failure)
    except BaseException as error:
        stopped = error
        raise
    finally:
        for run in runs:
            run.leave(stopped)  # those that an interruption left open


def _fail_unfinished(runs: Sequence[RunSession], on_failure: Callable[[RunSession, BaseException], None]) -> None:
    """No run counts as made because the error that stopped it was lost, as for want of memory in a thread."""
    for run in runs:
        if run.error is None and not run.is_complete:
            run.error = IncompleteRun(
                f"{show_path(run.path)}: ended without {run.num_missing} of its {run.num_images} images or without its "
                "page, perhaps because this machine is out of memory; python -m tpusd.run "
                f"{shlex.quote(f'resume={run.path}')} continues it"
            )
            on_failure(run, run.error)


def _in_order_of_programs(runs: Sequence[RunSession]) -> Iterator[list[tuple[RunSession, ImageSize]]]:
    """What each program makes, as runs with the size of their images; programs of one checkpoint in a row."""
    for same_weights in grouped(runs, lambda run: weights_key(run.prepared.config)):
        sized = ((run, size) for run in same_weights for size in image_sizes(run.prepared.config))
        yield from grouped(sized, lambda one: program_key(one[0].prepared.config, one[1]))


def _batches(
    runs: Sequence[RunSession], executor: Executor, unmade: Container[RunSession], stop_on_error: bool
) -> Iterator[Batch[RunSession]]:
    """The batches to make, without the images of runs that have failed by then."""

    def failed(run: RunSession) -> bool:
        return run.error is not None or run in unmade

    for group in _in_order_of_programs(runs):
        images = ((run, spec) for run, size in group for spec in run.specs(size))
        size = executor.batch_size(group[0][0].prepared.config)
        batches = pack(
            images,
            size,
            lambda run, spec: run.prepared.num_calls(spec),
            lambda run, spec: run.prepared.text_shape(spec),
        )
        for batch in batches:
            signals.check()
            if stop_on_error and any(map(failed, runs)):
                return
            entries = tuple((run, spec) for run, spec in batch.entries if not failed(run))
            if entries:
                yield Batch(entries=entries)
