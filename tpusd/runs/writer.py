"""Made batches -> files and manifest lines of their runs, while the devices make the next batch.

A batch goes through three stages, and each has threads of its own: its runs are opened and note what made it; its
pictures are encoded and written; their manifest lines are appended, in the order of submission. Knows nothing of how
images are made.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tpusd.plan.specs import ImageSpec
from tpusd.process import signals
from tpusd.recipes.files import SUFFIXES
from tpusd.records.manifest import ImageRecord
from tpusd.runs.executors.base import EncodedImage, MadeBatch, MadeImage, SetAsideBatch
from tpusd.runs.pictures import picture_file
from tpusd.runs.session import ImageProvenance, RunSession

Result = TypeVar("Result")

NUM_ENCODERS = 4  # Pillow releases the interpreter while it encodes


class BatchWriter:
    """Writes made batches of any runs; completes a run with its last image.

    At most `max_pending` images wait, so that memory stays flat when the disk is slower than the devices. The first
    error of a run ends that run and no other. Use as a context manager: leaving it, even by an exception, waits until
    what was submitted is on disk.
    """

    def __init__(self, *, max_pending: int, on_failure: Callable[[RunSession, BaseException], None]):
        """on_failure(run, error): called once for a run that fails, in any thread, before its directory is closed."""
        self._room = threading.Semaphore(max(1, max_pending))
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._encoders = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="encode")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._pending: dict[RunSession, int] = {}  # images of a run between opening and manifest line

    def __enter__(self) -> "BatchWriter":
        # Those who end a run start before a model takes the memory: Python waits for ever for a thread that has none.
        for pool in (self._opener, self._committer):
            pool.submit(int)
        return self

    def __exit__(self, *_: object) -> None:
        with signals.deferred():  # the runs are closed next, and no thread may write into a closed directory
            for pool in (self._opener, self._encoders, self._committer):
                pool.shutdown(wait=True)

    def submit(self, made: MadeBatch[RunSession]) -> None:
        """Waits while too many images are pending."""
        for _ in made.images:
            self._room.acquire()
        with signals.deferred():  # a batch is submitted or not, and never half
            self._opener.submit(self._open, made)

    def complete(self, run: RunSession) -> None:
        """Completes a run that lacks no image, only its page."""
        self._opener.submit(self._complete, run)

    def set_aside(self, batch: SetAsideBatch[RunSession]) -> None:
        """Completes the batch's runs without its images, once what was submitted before is written."""
        self._opener.submit(self._set_aside_after_opened, batch)

    def _set_aside_after_opened(self, batch: SetAsideBatch[RunSession]) -> None:
        for part in batch.batch.parts():
            run = part.entries[0][0]
            self._attempt(run, run.open)
            if run.error is None:
                self._committer.submit(self._attempt, run, self._set_aside, run, part.specs, batch.reason)

    @staticmethod
    def _set_aside(run: RunSession, specs: Sequence[ImageSpec], reason: str) -> None:
        run.note_set_aside([spec.name for spec in specs], reason)
        if run.is_tried:
            run.complete()

    def fail_after_pending(self, run: RunSession, error: BaseException) -> None:
        """Ends a run of which a batch could not be made. The images that were submitted before are still written."""
        self._opener.submit(self._fail_after_opened, run, error)

    def _fail_after_opened(self, run: RunSession, error: BaseException) -> None:
        try:
            self._committer.submit(self._fail, run, error)
        except BaseException:  # out of memory, for example; what is pending is then left out
            self._fail(run, error)

    def _fail(self, run: RunSession, error: BaseException) -> None:
        """The run takes no further part. Its directory is closed when its pending images are done."""
        with self._lock:
            first, run.error = run.error is None, run.error or error
        if first:
            with contextlib.suppress(Exception):  # such as a closed stderr; the run keeps its error all the same
                self._on_failure(run, error)
        self._close_if_failed(run)

    def _open(self, made: MadeBatch[RunSession]) -> None:
        images = iter(made.images)
        for part in made.batch.parts():
            run = part.entries[0][0]
            pairs = list(zip(part.specs, images))  # noqa: B905  the images of this part alone
            with self._lock:
                taken = run.error is None
                if taken:
                    self._pending[run] = self._pending.get(run, 0) + len(pairs)
            provenance = self._attempt(run, self._note, run, made, len(pairs)) if taken else None
            for spec, image in pairs:
                if provenance is None:
                    self._done(run, taken=taken)
                    continue
                try:
                    written = self._encoders.submit(self._write, run, spec, image, provenance)
                    self._committer.submit(self._commit, run, spec.name, image, written)
                except BaseException as error:  # no thread can be started; the main thread waits for this image
                    self._fail(run, error)
                    self._done(run, taken=True)

    @staticmethod
    def _note(run: RunSession, made: MadeBatch[RunSession], num_images: int) -> ImageProvenance:
        run.open()
        run.timing.add(made.seconds, num_images, len(made.images))
        return run.note(made.provenance())

    @staticmethod
    def _write(
        run: RunSession, spec: ImageSpec, image: MadeImage | EncodedImage, provenance: ImageProvenance
    ) -> ImageRecord | None:
        """The record of an image that is on disk; None where the run has failed, or leaves the image out."""
        config = provenance.config
        if run.error is not None or (image.not_finite is not None and config.on_nan == "error"):
            return None
        described = run.describe(spec)
        data = image.data if isinstance(image, EncodedImage) else None
        if data is None:
            assert not isinstance(image, EncodedImage), spec.name
            data = picture_file(config, described, spec, image.pixels)
        written = run.write_image(spec.name + SUFFIXES[config.image_format], data)
        return ImageRecord(
            **written,
            **described,
            environment=provenance.environment,
            trace=dict(image.trace),
            not_finite=None if image.not_finite is None else str(image.not_finite),
            extra=dict(spec.extra),
        )

    def _commit(
        self, run: RunSession, name: str, image: MadeImage | EncodedImage, written: "Future[ImageRecord | None]"
    ) -> None:
        try:
            self._attempt(run, self._append, run, name, image, written)
        finally:
            self._done(run, taken=True)

    @staticmethod
    def _append(
        run: RunSession, name: str, image: MadeImage | EncodedImage, written: "Future[ImageRecord | None]"
    ) -> None:
        record = written.result()
        if run.error is not None:
            return
        if image.not_finite is not None:
            run.note_not_finite(name, image.not_finite, written=record is not None)
        if record is not None:
            run.append(record)
        if run.is_tried:
            run.complete()

    def _done(self, run: RunSession, *, taken: bool) -> None:
        self._room.release()
        if taken:
            with self._lock:
                self._pending[run] -= 1
        self._close_if_failed(run)

    def _close_if_failed(self, run: RunSession) -> None:
        with self._lock:
            closes = run.error is not None and not self._pending.get(run)
        if closes:
            run.leave()

    def _complete(self, run: RunSession) -> None:
        self._attempt(run, run.open)
        if run.error is None:
            self._attempt(run, run.complete)

    def _attempt(self, run: RunSession, act: Callable[..., Result], *arguments: Any) -> Result | None:
        """act(*arguments), whose error is the run's; then None."""
        try:
            return act(*arguments)
        except BaseException as error:  # also what is not an Exception must reach the main thread
            self._fail(run, error)
            return None
