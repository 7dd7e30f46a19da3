"""One worker of a cluster: a local executor in a process of its own, which makes units and hands out encoded pictures.

The pictures are encoded here, because one driver could not encode what a hundred hosts make. Knows nothing of Ray.
"""

import dataclasses
import functools
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpusd.config.schema import ModelConfig, SavedConfig
from tpusd.engine.not_finite import NotFinite
from tpusd.errors import UserError, show
from tpusd.plan.batches import Batch
from tpusd.plan.specs import ImageSpec
from tpusd.records.manifest import described_values
from tpusd.records.provenance import BatchProvenance, describe_devices, versions
from tpusd.runs.embeddings import open_embeddings_once, with_embeddings
from tpusd.runs.executors.base import EncodedImage, FailedBatch, MadeBatch, MadeImage
from tpusd.runs.executors.local import LoadPipeline, LocalExecutor, load_pipeline
from tpusd.runs.loras import OpenLoras, loras_of, open_loras_once
from tpusd.runs.pictures import picture_file
from tpusd.runs.prepare import PreparedRun, open_model, table_of
from tpusd.runs.safety import OpenSafety, blurred, judged, open_safety_once, verdicts_of
from tpusd.vision.verdict import Verdict

if TYPE_CHECKING:
    from tpusd.checkpoints import Checkpoint

NUM_ENCODERS = 4  # Pillow releases the interpreter while it encodes
MOST_FINISHED = 8  # batches that wait to be taken; the devices then wait too
HELD_CONFIGS = 1000  # runs of a sweep whose programs a worker finds without their config being read again
ANSWER_SECONDS = 10.0  # after which a call for finished batches returns without one


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a worker says of itself when it starts. host: its name. versions: as `provenance.versions`."""

    host: str
    versions: Mapping[str, str | None]
    devices: Mapping[str, Any]  # as `describe_devices`


@dataclass(frozen=True, kw_only=True)
class RemoteBatch:
    """A batch to make, as it travels to a worker.

    number: by which driver and worker know it.
    configs: of the runs in the batch, without their rows, or with the LoRAs of the rows alone.
    entries: (index into configs, spec).
    tokens: text -> (number of tokens before truncation, whether it was truncated), of the texts of the batch.
    """

    number: int
    configs: Sequence[SavedConfig]
    entries: Sequence[tuple[int, ImageSpec]]
    tokens: Mapping[str, tuple[int, bool]]


@dataclass(frozen=True, kw_only=True)
class RemoteResult:
    """What became of a batch.

    images: in the order of its entries; None where it failed.
    safety, seconds: as in MadeBatch.
    error: what failed, in a line; is_user_error: whether that is a UserError.
    trace: the traceback of an error that is no UserError.
    lacks: what the host lacks for this run, in a line; then the worker can make no batch of it.
    """

    number: int
    images: Sequence[EncodedImage] | None = None
    provenance: BatchProvenance | None = None
    safety: Sequence[Verdict | None] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""
    is_user_error: bool = False
    trace: str = ""
    lacks: str = ""


class _Lacking(Exception):
    """The host has not what the run needs."""


class _Stopped(BaseException):
    """Ends a batch between two of its steps."""


@dataclass(frozen=True, kw_only=True)
class _RemoteRun:
    """A run as the local executor needs it."""

    prepared: PreparedRun


class _StepWatcher:
    """Lets a batch end between two steps."""

    def __init__(self) -> None:
        self.stopped = False

    def start_batch(self, num_images: int) -> None: ...
    def prepare(self, what: str) -> None: ...
    def end_batch(self) -> None: ...

    def step(self, done: int, total: int) -> None:
        if self.stopped:
            raise _Stopped


class Worker:
    """Makes the batches that it is given, in order, in a thread of its own. Its methods may be called in any thread."""

    def __init__(
        self,
        *,
        load: LoadPipeline = load_pipeline,
        open_model: Callable[[ModelConfig], "Checkpoint"] = open_model,
        open_loras: OpenLoras | None = None,
        open_safety: OpenSafety | None = None,
    ):
        """open_loras, open_safety: None: `open_loras_once`, `open_safety_once`."""
        self._open_embeddings = open_embeddings_once()
        self._watcher = _StepWatcher()
        self._local = LocalExecutor(self._watcher, load=load)
        self._open_model, self._open_loras = functools.cache(open_model), open_loras or open_loras_once()
        self._open_safety = open_safety or open_safety_once()
        self._runs: dict[SavedConfig, _RemoteRun] = {}
        self._queue: deque[RemoteBatch] = deque()
        self._finished: deque[Future[RemoteResult]] = deque()
        self._changed = threading.Condition()
        self._encoders = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="encode")
        self._finishers = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._thread = threading.Thread(target=self._work, name="make", daemon=True)
        self._thread.start()

    def hello(self) -> Hello:
        return Hello(host=socket.gethostname(), versions=versions(), devices=describe_devices(self._local.devices))

    def give(self, batches: Sequence[RemoteBatch]) -> None:
        """Adds batches behind those that it has."""
        with self._changed:
            self._queue.extend(batches)
            self._changed.notify_all()

    def drop(self, numbers: Sequence[int]) -> None:
        """These batches are not needed any more. One that is being made is still made."""
        with self._changed:
            self._queue = deque(batch for batch in self._queue if batch.number not in numbers)

    def take(self, seconds: float = ANSWER_SECONDS) -> list[RemoteResult]:
        """The batches that are finished, in order. Waits for one, and returns an empty list after some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._finished) and self._finished[0].done(), seconds)
            taken: list[RemoteResult] = []
            while self._finished and self._finished[0].done():
                taken.append(self._finished.popleft().result())
            self._changed.notify_all()
        return taken

    def stop(self, seconds: float = 5.0) -> None:
        """Ends between two steps; waits for that for some seconds."""
        self._watcher.stopped = True
        with self._changed:
            self._changed.notify_all()
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._make(batch)
        except _Stopped:
            return

    def _next(self) -> RemoteBatch | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._watcher.stopped or (bool(self._queue) and len(self._finished) < MOST_FINISHED)
            )
            return None if self._watcher.stopped else self._queue.popleft()

    def _make(self, remote: RemoteBatch) -> None:
        finished: Future[RemoteResult] = Future()
        try:
            entries = tuple((self._run(remote, index), spec) for index, spec in remote.entries)
            images: list[Future[EncodedImage]] = []
            verdicts: list[Verdict | None] = []
            made: list[MadeBatch[_RemoteRun]] = []
            for part in _of_size(entries, self._local.batch_size(remote.configs[0])):
                made.append(_whole(self._local, part))
                numbered = remote.entries[len(images) : len(images) + len(part.entries)]
                own = verdicts_of(made[-1].safety, len(part.entries))
                verdicts += own
                for (index, spec), image, verdict in zip(numbered, made[-1].images, own, strict=True):
                    assert not isinstance(image, EncodedImage)
                    provenance = made[-1].provenance
                    images.append(self._encoders.submit(_encode, remote, index, spec, image, verdict, provenance))
        except Exception as error:
            finished.set_result(_failure(remote.number, error))
            with self._changed:
                self._finished.append(finished)
                self._changed.notify_all()
            return
        with self._changed:
            self._finished.append(finished)
        self._finishers.submit(self._finish, remote.number, finished, images, verdicts, made)

    def _finish(
        self,
        number: int,
        finished: "Future[RemoteResult]",
        images: "Sequence[Future[EncodedImage]]",
        verdicts: Sequence[Verdict | None],
        made: Sequence[MadeBatch[_RemoteRun]],
    ) -> None:
        try:
            seconds = {name: sum(one.seconds[name] for one in made) for name in made[0].seconds}
            result = RemoteResult(
                number=number,
                images=[image.result() for image in images],
                provenance=made[-1].provenance(),
                safety=verdicts,
                seconds=seconds,
            )
        except BaseException as error:  # the driver waits for this batch
            result = _failure(number, error)
        finished.set_result(result)
        with self._changed:
            self._changed.notify_all()

    def _run(self, remote: RemoteBatch, index: int) -> _RemoteRun:
        """The same object for equal configs: a batch of several runs that fails is tried again run by run."""
        config = remote.configs[index]
        if config not in self._runs:
            if len(self._runs) >= HELD_CONFIGS:
                self._runs.clear()
            self._runs[config] = _RemoteRun(prepared=self._prepared(config))
        return self._runs[config]

    def _prepared(self, config: SavedConfig) -> PreparedRun:
        """The run with the files of this host, which the driver has checked on its own. Raises _Lacking."""
        try:
            checkpoint = self._open_model(config.model)
            loras = self._open_loras(loras_of(config, config.prompts.rows), config.model, checkpoint)
            embeddings = self._open_embeddings(config.embeddings, config.model.name, checkpoint)
            checker = self._open_safety(config.safety, config.model, checkpoint)
        except UserError as error:
            raise _Lacking(f"{error}; every host needs the files that the driver has, at the same path") from None
        wanted = [lora.sha256 for lora in loras_of(config, config.prompts.rows)]
        wanted += [one.sha256 for one in config.embeddings]
        files = [*(lora.file for lora in loras), *(one.file for one in embeddings)]
        for sha256, file in zip(wanted, files, strict=True):
            if file.sha256 != sha256:
                raise _Lacking(
                    f"{file.where}: is another file than the driver's: sha256 {file.sha256[:12]}..., not "
                    f"{show(sha256)[:12]}...; give every host the same file"
                )
        if checker is not None and checker.sha256 != config.safety.sha256:
            raise _Lacking(
                f"{checker.where}: is another safety checker than the driver's: sha256 {checker.sha256[:12]}..., not "
                f"{show(config.safety.sha256)[:12]}...; give every host the same one"
            )
        return PreparedRun(
            config=config,
            checkpoint=with_embeddings(checkpoint, embeddings),
            tokens={},
            table=table_of(checkpoint),
            warnings=(),
            loras=loras,
            safety=checker,
            embeddings=embeddings,
        )


def _of_size(entries: tuple[tuple[_RemoteRun, ImageSpec], ...], size: int) -> Iterator[Batch[_RemoteRun]]:
    """A batch in parts that suit the devices here, which may be fewer than those that it was packed for."""
    for start in range(0, len(entries), size):
        yield Batch(entries=entries[start : start + size])


def _whole(local: LocalExecutor, batch: Batch[_RemoteRun]) -> MadeBatch[_RemoteRun]:
    """A batch that is made whole; raises the error of the first part that could not be made."""
    (made, *others) = local.generate([batch])
    for one in (made, *others):
        if isinstance(one, FailedBatch):
            raise one.error
    assert isinstance(made, MadeBatch)
    return made


def _encode(
    remote: RemoteBatch,
    index: int,
    spec: ImageSpec,
    image: MadeImage,
    verdict: Verdict | None,
    provenance: Callable[[], BatchProvenance],
) -> EncodedImage:
    config = remote.configs[index]
    found = judged(config.safety, verdict)
    data = None
    if not found.is_dropped and (image.not_finite is None or config.on_nan == "record"):
        if config.model.sha256 is None:  # as the driver fills it in, which has checked that the weights are the run's
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, sha256=provenance().weights))
        pixels = blurred(image.pixels) if found.is_blurred else image.pixels
        data = picture_file(config, described_values(config, remote.tokens, spec), spec, pixels)
    not_finite: NotFinite | None = image.not_finite
    return EncodedImage(data=data, trace=image.trace, not_finite=not_finite)


def _failure(number: int, error: BaseException) -> RemoteResult:
    if isinstance(error, _Lacking):
        return RemoteResult(number=number, lacks=str(error))
    if isinstance(error, UserError):
        return RemoteResult(number=number, error=str(error), is_user_error=True)
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return RemoteResult(number=number, error=line, trace="".join(traceback.format_exception(error)))
