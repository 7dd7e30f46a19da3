"""The images of a sweep's runs, made: one pipeline a program, batches filled across runs, each run in its directory.

The main thread keeps the devices busy. Another hands finished batches to their runs: a run's directory is opened with
its first image and completed with its last. A run that fails is told at once, and the others go on.
"""

import contextlib
import dataclasses
import functools
import itertools
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd.config.schema import config_values
from tpusd.config.yaml_files import to_yaml
from tpusd.errors import UserError
from tpusd.gallery.run import write_results
from tpusd.loggers.registry import log_run
from tpusd.plan.batches import packed
from tpusd.plan.specs import ImageSpec, make_specs, planned
from tpusd.process import signals
from tpusd.prompts.rows import read_rows
from tpusd.records.directory import Claim, RunDir, read_run
from tpusd.records.layout import CONFIG, MEND, PAGE
from tpusd.records.manifest import describe_image
from tpusd.records.run_json import RunRecord
from tpusd.records.saved import FREE, read_saved
from tpusd.runs.execute import Making, now
from tpusd.runs.prepare import PreparedRun
from tpusd.runs.requests import Cell
from tpusd.runs.resume import closing, holds_images, tell
from tpusd.runs.writer import ImageWriter
from tpusd.storage import local as storage
from tpusd.storage.local import told_as_user_error

MAX_WAITING = 2  # batches between the devices and the disk


@dataclass(kw_only=True)
class SweepRunState:
    """A run while the sweep goes on. seconds: of the devices, its share of the batches that it was in.

    prepared: None for a run that is complete, or failed before it was prepared. is_new: it has no directory yet.
    """

    cell: Cell
    path: Path
    prepared: PreparedRun | None = None
    done: frozenset[tuple[int, int]] = frozenset()
    num_images: int = 0
    is_new: bool = True
    num_made: int = 0
    seconds: float = 0.0
    num_timed: int = 0  # images and seconds of batches that did not wait for a compilation
    seconds_timed: float = 0.0
    error: str | None = None
    open: "_OpenRun | None" = None

    @property
    def name(self) -> str:
        return self.cell.run.name

    @property
    def num_missing(self) -> int:
        return self.num_images - len(self.done) - self.num_made

    def specs(self) -> Iterator[ImageSpec]:
        """The images to make."""
        prepared = self.prepared
        for spec in make_specs(prepared.config, prepared.rows, height=prepared.height, width=prepared.width):
            if (spec.row, spec.copy) not in self.done:
                yield spec


@dataclass(frozen=True, kw_only=True)
class _OpenRun:
    run_dir: RunDir
    record: RunRecord
    making: Making


@dataclass(frozen=True, kw_only=True)
class _Batch:
    entries: Sequence[tuple[SweepRunState, ImageSpec]]
    images: Sequence[Any]
    seconds: float | None  # None: there is nothing to write, only a run to complete
    compiled: bool = False  # whether these seconds hold a compilation


class SweepStopped(Exception):
    """A run failed, and on_error=stop asks to end the sweep there."""


def take_up(cell: Cell, sweep: Path, prepare: Callable[..., PreparedRun]) -> SweepRunState:
    """What is there of a run, healed, and the rest prepared. Raises UserError."""
    from tpusd.records.repair import heal

    state = SweepRunState(cell=cell, path=sweep / cell.run.name)
    config = cell.config
    if storage.file_size(state.path / CONFIG) is not None:
        run_dir = RunDir.open(state.path)
        with closing(run_dir):
            saved = read_saved(state.path)
            rows = read_rows(saved.prompts)
            healed = heal(run_dir, saved, rows)
            for note in healed.notes:
                tell(run_dir, note)
            state.done, state.is_new = healed.done, False
        state.num_images = sum(1 for _ in planned(saved, len(rows)))
        finished = read_run(state.path).get("state") == "finished" and storage.file_size(state.path / PAGE)
        if not state.num_missing and finished:
            return state
        config = dataclasses.replace(saved, **{name: getattr(config, name) for name in FREE})
    state.prepared = prepare(config)
    state.num_images = sum(1 for _ in planned(state.prepared.config, len(state.prepared.rows)))
    return state


class SweepMaker:
    """Makes runs, those of one program together."""

    def __init__(self, devices: Sequence[Any], progress: Any, *, stop_on_error: bool, log: Callable[[str], None]):
        """log: takes a line about the sweep, possibly with a traceback below it."""
        self._devices, self._progress = devices, progress
        self._stop_on_error, self._log = stop_on_error, log
        self._programs: Any = None  # of the pipeline, when its last batch was made

    def make(self, runs: Sequence[SweepRunState], load: Callable[..., Any], hashing: Future) -> None:
        """runs: of one program. hashing: the sha256 of their checkpoint's files. Raises SweepStopped."""
        try:
            pipeline = load(runs[0].prepared, self._devices)
        except Exception as error:
            for run in runs:
                self.fail(run, error)
            self._check_stop(runs)
            return
        signals.renew()
        self._programs = None
        size = len(self._devices) * runs[0].prepared.config.batch_size_per_device
        images = ((run, spec) for run in runs for spec in run.specs())
        with self._writing(runs, pipeline, hashing) as waiting:
            for run in runs:
                if not run.num_missing:  # its last image was made, and the process ended before its page was
                    waiting.put(_Batch(entries=[(run, None)], images=[None], seconds=None))
            for batch in packed(images, size, lambda run, spec: len(run.prepared.table(spec.sampler))):
                signals.check()
                self._check_stop(runs)
                self._make_batch(pipeline, batch, waiting)
        self._check_stop(runs)

    def fail(self, run: SweepRunState, error: BaseException) -> None:
        """Tells at once. The run takes no further part; its directory is left to `_leave`."""
        known = isinstance(error, UserError)
        run.error = str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"tpusd: {run.name}: failed: {run.error}", file=sys.stderr)
        self._log(f"{run.name}: failed: {run.error}" + ("" if known else f"\n{_traceback(error)}"))

    def _check_stop(self, runs: Sequence[SweepRunState]) -> None:
        if self._stop_on_error and any(run.error is not None for run in runs):
            raise SweepStopped

    def _make_batch(
        self, pipeline: Any, batch: Sequence[tuple[SweepRunState, ImageSpec]], waiting: queue.Queue
    ) -> None:
        """A batch that fails is tried run by run, so that the others do not fail with the one that is at fault."""
        batch = [(run, spec) for run, spec in batch if run.error is None]
        if not batch:
            return
        started = time.monotonic()
        self._progress.start_batch(len(batch))
        tables = [run.prepared.table(spec.sampler) for run, spec in batch]
        try:
            images = pipeline.generate([spec for _, spec in batch], tables, on_step=self._progress.step)
        except Exception as error:
            self._progress.start_batch(0)
            parts = [list(part) for _, part in itertools.groupby(batch, key=lambda entry: id(entry[0]))]
            if len(parts) == 1:
                self.fail(batch[0][0], error)
                waiting.put(batch[0][0])
            else:
                for part in parts:
                    self._make_batch(pipeline, part, waiting)
            return
        compiled, self._programs = self._programs != pipeline.fingerprints, pipeline.fingerprints
        seconds = time.monotonic() - started
        waiting.put(_Batch(entries=batch, images=images, seconds=seconds, compiled=compiled))
        self._progress.end_batch()

    @contextlib.contextmanager
    def _writing(self, runs: Sequence[SweepRunState], pipeline: Any, hashing: Future) -> Iterator[queue.Queue]:
        """Yields a queue that takes _Batches, and runs that failed. Leaving the block waits until all is on disk."""
        waiting: queue.Queue[_Batch | SweepRunState | None] = queue.Queue(MAX_WAITING)
        thread = threading.Thread(target=self._write_all, args=(waiting, pipeline, hashing), name="write")
        thread.start()
        try:
            yield waiting
        finally:
            waiting.put(None)
            thread.join()
            for run in runs:
                _leave(run)  # those that an interruption left open

    def _write_all(self, waiting: queue.Queue, pipeline: Any, hashing: Future) -> None:
        while (item := waiting.get()) is not None:
            if isinstance(item, SweepRunState):
                _leave(item)
                continue
            pairs = zip(item.entries, item.images, strict=True)
            for _, part in itertools.groupby(pairs, key=lambda pair: id(pair[0][0])):
                part = list(part)
                run = part[0][0][0]
                if run.error is None:
                    try:
                        self._write_part(run, part, item, pipeline, hashing)
                    except Exception as error:
                        self.fail(run, error)
                        _leave(run)

    def _write_part(
        self, run: SweepRunState, part: Sequence[Any], batch: _Batch, pipeline: Any, hashing: Future
    ) -> None:
        """part: ((run, spec), image) of the batch's images of one run."""
        if run.open is None:
            run.open = _open(run, self._devices, pipeline, hashing)
        if batch.seconds is not None:
            seconds = batch.seconds * len(part) / len(batch.images)
            run.seconds += seconds
            if not batch.compiled:
                run.num_timed, run.seconds_timed = run.num_timed + len(part), run.seconds_timed + seconds
            _write(run, [spec for (_, spec), _ in part], [image for _, image in part])
        if not run.num_missing:
            _complete(run)


def _open(run: SweepRunState, devices: Sequence[Any], pipeline: Any, hashing: Future) -> _OpenRun:
    """The run's directory, which says what is about to happen in it."""
    prepared, job = run.prepared, run.cell.job
    run_dir = RunDir.claim(Claim(output=run.path)) if run.is_new else RunDir.open(run.path)
    try:
        if run.is_new:
            files = {"overrides.yaml": list(job.overrides), "config.yaml": job.values, "hydra.yaml": job.hydra_yaml}
            for name, values in files.items():
                run_dir.write(f".hydra/{name}", (values if isinstance(values, str) else to_yaml(values)).encode())
            run_dir.write_config(config_values(prepared.config))
        for warning in prepared.warnings:
            run_dir.log(f"{now()} {warning}")
        record = RunRecord(run_dir, read_run(run.path), started=now(), num_images=run.num_images)
        making = Making(prepared, run_dir, record, devices, hashing, pipeline)
    except BaseException:
        run_dir.discard() if run.is_new else run_dir.close()
        raise
    return _OpenRun(run_dir=run_dir, record=record, making=making)


def _write(run: SweepRunState, specs: Sequence[ImageSpec], images: Sequence[Any]) -> None:
    opened = run.open
    describe = functools.partial(describe_image, run.prepared.config, run.prepared.tokens)
    with ImageWriter(opened.run_dir, describe, max_pending=len(specs)) as writer:
        writer.submit(specs, images, made_by=opened.making.note())
    run.num_made += writer.num_written


def _complete(run: SweepRunState) -> None:
    opened = run.open
    opened.record.finish(run.num_made, {"generate": run.seconds})
    with told_as_user_error(run.path, MEND):
        write_results(run.path, opened.record.facts)
    opened.record.write()
    log_run(run.path, run.prepared.config, opened.record.facts)
    opened.run_dir.log(f"{now()} {run.num_made} images")
    opened.run_dir.close()
    run.open = None


def _leave(run: SweepRunState) -> None:
    """What the run has made stays, for a sweep that goes on; a new run without an image leaves nothing."""
    opened, run.open = run.open, None
    if opened is None:
        return
    opened.run_dir.log(f"{now()} stopped{': ' + run.error if run.error else ''}")
    if run.is_new and not holds_images(opened.run_dir):
        opened.run_dir.discard()
    else:
        with contextlib.suppress(OSError):
            opened.run_dir.close()


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
