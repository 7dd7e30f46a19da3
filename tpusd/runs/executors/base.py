"""The interface of an executor (contract 9): it takes batches and gives back images, wherever its devices are."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from tpusd.config.schema import SavedConfig
from tpusd.engine.not_finite import NotFinite
from tpusd.plan.batches import Batch
from tpusd.records.provenance import BatchProvenance
from tpusd.runs.prepare import PreparedRun
from tpusd.vision.verdict import Verdict


class HasPrepared(Protocol):
    """What an executor needs to know of an image's run."""

    @property
    def prepared(self) -> PreparedRun: ...


Run = TypeVar("Run", bound=HasPrepared)


class MadeImage(Protocol):
    """As tpusd.engine.pipeline.GeneratedImage.

    pixels: (H,W,3) uint8.
    trace: digests of what came before the pixels.
    not_finite: where NaN or infinity first appeared; None for a sound image.
    """

    @property
    def pixels(self) -> np.ndarray: ...
    @property
    def trace(self) -> Mapping[str, Any]: ...
    @property
    def not_finite(self) -> NotFinite | None: ...


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image whose file was encoded where it was made.

    data: the file; None for an image that is not written, because it is not finite or dropped.
    trace, not_finite: as in MadeImage.
    """

    data: bytes | None
    trace: Mapping[str, Any]
    not_finite: NotFinite | None


@dataclass(frozen=True, kw_only=True)
class MadeBatch(Generic[Run]):
    """A batch and its images.

    images: in the order of batch.entries.
    provenance: what made them. May wait for the sha256 of the checkpoint's files, so it is not called where the
        devices are waiting. Raises UserError where a file of the checkpoint cannot be read.
    safety: what the safety checker says of each; empty where nobody looked.
    seconds: of the batch, by part. "generate" is all of it; "compile" and "weights" are those parts of it that come
        only once; "load" comes before it.
    """

    batch: Batch[Run]
    images: Sequence[MadeImage | EncodedImage]
    provenance: Callable[[], BatchProvenance]
    safety: Sequence[Verdict | None] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FailedBatch(Generic[Run]):
    """A batch of one run that could not be made."""

    batch: Batch[Run]
    error: Exception


@dataclass(frozen=True, kw_only=True)
class SetAsideBatch(Generic[Run]):
    """A batch that is left out, while the rest of its runs is made. reason: why, in words."""

    batch: Batch[Run]
    reason: str


Outcome = MadeBatch[Run] | FailedBatch[Run] | SetAsideBatch[Run]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How the images of an executor are written.

    threads: that encode and write files.
    batches, images: that may wait for that, the larger of the two.
    """

    threads: int
    batches: int = 2
    images: int = 1

    def max_pending(self, batch_size: int) -> int:
        """Images that may wait. batch_size: of the largest batch."""
        return max(self.batches * batch_size, self.images)


class Executor(Protocol):
    """A place with devices. Use as a context manager."""

    @property
    def writing(self) -> Writing: ...

    def __enter__(self) -> "Executor": ...
    def __exit__(self, *exception: object) -> None: ...

    def describe(self) -> str:
        """The devices in words, for a run's log."""
        ...

    def batch_size(self, config: SavedConfig) -> int:
        """Images of a full batch of this run."""
        ...

    def generate(self, batches: Iterable[Batch[Run]]) -> Iterator[Outcome[Run]]:
        """Makes batches, which are asked for one at a time, as late as the devices allow.

        Batches of one program come one after another. A batch of several runs that fails is tried again run by run, so
        that the other runs do not fail with the one that is at fault.
        """
        ...


class Watcher(Protocol):
    """Shows how far a batch is, such as `tpusd.process.progress.Progress`."""

    def start_batch(self, num_images: int) -> None: ...
    def prepare(self, what: str) -> None:
        """What happens once before the first step, such as compiling, and may take minutes."""
        ...

    def step(self, done: int, total: int) -> None: ...
    def end_batch(self) -> None: ...


class ClusterWatcher(Watcher, Protocol):
    """Shows also who makes the batches."""

    def note(self, text: str) -> None: ...
