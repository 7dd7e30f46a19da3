"""Reads the pictures of the next batch while the devices make this one."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, TypeVar

from tpusd.inputs.arrays import Input
from tpusd.inputs.pictures import read_input
from tpusd.plan.specs import ImageSize, ImageSpec, PictureInput

NUM_READERS = 4  # Pillow releases the interpreter while it decodes
HELD = 8  # inputs that are kept beyond their batch, for the images that start from one picture


class HasSpecs(Protocol):
    """What a batch says of its images."""

    @property
    def specs(self) -> Sequence[ImageSpec]: ...


Batch = TypeVar("Batch", bound=HasSpecs)
_Key = tuple[str, str | None, PictureInput, ImageSize]


class InputReader:
    """Holds the inputs of two batches at most, and HELD others. Its methods are called in one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="inputs")
        self._read: OrderedDict[_Key, Future[Input]] = OrderedDict()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches. Where one starts from pictures, the next one is asked for, and read, before it is made."""
        iterator = iter(batches)
        batch = next(iterator, None)
        while batch is not None:
            following = None
            if any(spec.picture is not None for spec in batch.specs):
                self._start(batch.specs)
                following = next(iterator, None)
                self._start(() if following is None else following.specs)
            yield batch
            batch = next(iterator, None) if following is None else following
            self._forget(() if batch is None else batch.specs)

    def of(self, specs: Sequence[ImageSpec]) -> list[Input] | None:
        """The inputs of a batch, in order; None where it starts from noise alone. Raises UserError."""
        if all(spec.picture is None for spec in specs):
            return None
        return [future.result() for future in self._start(specs)]

    def _start(self, specs: Sequence[ImageSpec]) -> list[Future[Input]]:
        futures = []
        for spec in specs:
            if spec.picture is None:
                continue
            key = _key(spec, spec.picture)
            if key not in self._read:
                self._read[key] = self._pool.submit(read_input, spec.picture, (spec.height, spec.width))
            self._read.move_to_end(key)
            futures.append(self._read[key])
        return futures

    def _forget(self, specs: Sequence[ImageSpec]) -> None:
        needed = {_key(spec, spec.picture) for spec in specs if spec.picture is not None}
        for key in list(self._read)[: max(0, len(self._read) - len(needed) - HELD)]:
            if key not in needed:
                del self._read[key]


def _key(spec: ImageSpec, picture: PictureInput) -> _Key:
    """Equal for images that have the same arrays: all but the strength."""
    size = spec.height, spec.width
    return picture.image, picture.mask, replace(picture, strength=0.0), size
