"""Made batches -> files and manifest lines of their runs, while the devices make the next batch.

A batch goes through three stages, and each has threads of its own: its runs are opened and note what made it; its
pictures are encoded and written; their manifest lines are appended, in the order of submission, and those that wait
for the disk are appended together. Knows nothing of how images are made.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from tpusd.config.schema import RunConfig
from tpusd.engine.not_finite import NotFinite
from tpusd.plan.specs import ImageSpec
from tpusd.process import signals
from tpusd.recipes.files import SUFFIXES
from tpusd.records.manifest import ImageRecord
from tpusd.runs.executors.base import EncodedImage, MadeBatch, MadeImage, SetAsideBatch
from tpusd.runs.pictures import picture_file
from tpusd.runs.safety import Judged, blurred, judged, verdicts_of
from tpusd.runs.session import ImageProvenance, RunSession

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

MOST_LINES = 256  # that are appended together


@dataclass(frozen=True, kw_only=True, eq=False)
class _Image:
    """An image whose file is being written. written: its record, or None as of `_write`.

    dropped: what dropped.jsonl says of an image that the safety checker found; None for every other image.
    """

    run: RunSession
    spec: ImageSpec
    not_finite: NotFinite | None
    dropped: Mapping[str, Any] | None
    written: "Future[ImageRecord | None]"


class BatchWriter:
    """Writes made batches of any runs; completes a run with its last image.

    At most `max_pending` images wait, so that memory stays flat when the disk is slower than the devices. The first
    error of a run ends that run and no other. Use as a context manager: leaving it, even by an exception, waits until
    what was submitted is on disk.
    """

    def __init__(self, *, max_pending: int, num_threads: int, on_failure: Callable[[RunSession, BaseException], None]):
        """num_threads: that encode and write files.

        on_failure(run, error): called once for a run that fails, in any thread, before its directory is closed.
        """
        self._room = threading.Semaphore(max(1, max_pending))
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._encoders = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._pending: dict[RunSession, int] = {}  # images of a run between opening and manifest line
        self._to_commit: deque[_Image] = deque()  # those whose file is submitted, in order

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
        images = iter(zip(made.images, verdicts_of(made.safety, len(made.images)), strict=True))
        for part in made.batch.parts():
            run = part.entries[0][0]
            pairs = list(zip(part.specs, images))  # noqa: B905  the images of this part alone
            with self._lock:
                taken = run.error is None
                if taken:
                    self._pending[run] = self._pending.get(run, 0) + len(pairs)
            provenance = self._attempt(run, self._note, run, made, len(pairs)) if taken else None
            for spec, (image, verdict) in pairs:
                if provenance is None:
                    self._done(run, taken=taken)
                    continue
                try:
                    found = judged(provenance.config.safety, verdict)
                    written = self._encoders.submit(self._write, run, spec, image, found, provenance)
                    dropped = _dropped(spec, image, found, provenance)
                    self._submit_commit(
                        _Image(run=run, spec=spec, not_finite=image.not_finite, dropped=dropped, written=written)
                    )
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
        run: RunSession,
        spec: ImageSpec,
        image: MadeImage | EncodedImage,
        found: Judged,
        provenance: ImageProvenance,
    ) -> ImageRecord | None:
        """The record of an image that is on disk; None where the run has failed, or leaves the image out."""
        config = provenance.config
        if run.error is not None or found.is_dropped or _is_left_out(image, config):
            return None
        described = run.describe(spec)
        data = image.data if isinstance(image, EncodedImage) else None
        if data is None:
            assert not isinstance(image, EncodedImage), spec.name
            pixels = blurred(image.pixels) if found.is_blurred else image.pixels
            data = picture_file(config, described, spec, pixels)
        written = run.write_image(spec.name + SUFFIXES[config.image_format], data)
        return ImageRecord(
            **written,
            **described,
            environment=provenance.environment,
            trace=dict(image.trace),
            safety=found.values,
            not_finite=None if image.not_finite is None else str(image.not_finite),
            extra=dict(spec.extra),
        )

    def _submit_commit(self, image: _Image) -> None:
        with self._lock:
            self._to_commit.append(image)
        try:
            self._committer.submit(self._commit, image)
        except BaseException:
            with self._lock:
                if image not in self._to_commit:  # it went with the one before it
                    return
                self._to_commit.remove(image)
            raise

    def _commit(self, first: _Image) -> None:
        """Appends the line of the image that waits longest, and of those behind it that are written by then."""
        with self._lock:
            if not self._to_commit or self._to_commit[0] is not first:  # it went with the one before it
                return
            group = [self._to_commit.popleft()]
        if first.written.exception() is None:  # waits for it
            with self._lock:
                while self._to_commit and len(group) < MOST_LINES and _goes_with(self._to_commit[0], first.run):
                    group.append(self._to_commit.popleft())
        try:
            self._attempt(first.run, self._append, first.run, group)
        finally:
            for _ in group:
                self._done(first.run, taken=True)

    @staticmethod
    def _append(run: RunSession, group: Sequence[_Image]) -> None:
        records = [image.written.result() for image in group]
        if run.error is not None:
            return
        for image, record in zip(group, records, strict=True):
            if image.dropped is not None:
                run.drop(image.spec, image.dropped)
            elif image.not_finite is not None:
                run.note_not_finite(image.spec.name, image.not_finite, written=record is not None)
        if listed := [record for record in records if record is not None]:
            run.append(*listed)
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

    def _attempt(
        self, run: RunSession, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """act(*args, **kwargs), whose error is the run's; then None."""
        try:
            return act(*args, **kwargs)
        except BaseException as error:  # also what is not an Exception must reach the main thread
            self._fail(run, error)
            return None


def _is_left_out(image: MadeImage | EncodedImage, config: RunConfig) -> bool:
    """Whether the run does not write the image, because it is not finite."""
    return image.not_finite is not None and config.on_nan == "error"


def _dropped(
    spec: ImageSpec, image: MadeImage | EncodedImage, found: Judged, provenance: ImageProvenance
) -> dict[str, Any] | None:
    """What dropped.jsonl says of an image; None where it is not dropped. One that is left out is tried again."""
    if not found.is_dropped or _is_left_out(image, provenance.config):
        return None
    return {
        "prompt": spec.prompt,
        "seed": spec.seed if spec.row_seed is None else spec.row_seed,
        "environment": provenance.environment,
        "trace": dict(image.trace),
        "safety": found.values,
    }


def _goes_with(image: _Image, run: RunSession) -> bool:
    """Whether an image is of the run, and its file is written."""
    return image.run is run and image.written.done() and image.written.exception() is None
