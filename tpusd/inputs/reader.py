"""Reads the pictures of the next batch while the devices make this one."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from tpusd.inputs.arrays import Input
from tpusd.inputs.pictures import read_control, read_input
from tpusd.plan.specs import ControlInput, ImageSize, ImageSpec, PictureInput

NUM_READERS = 4  # Pillow releases the interpreter while it decodes
HELD = 8  # files that are kept beyond their batch, for the images that have one in common


class HasSpecs(Protocol):
    """What a batch says of its images."""

    @property
    def specs(self) -> Sequence[ImageSpec]: ...


Batch = TypeVar("Batch", bound=HasSpecs)


class _Key(NamedTuple):
    """Equal for images that have the same arrays: all but the strength."""

    files: tuple[str | None, ...]
    what: PictureInput | ControlInput
    size: ImageSize


class InputReader:
    """Holds the files of two batches at most, and HELD others. Its methods are called in one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="inputs")
        self._read: OrderedDict[_Key, Future[Any]] = OrderedDict()  # an Input, or the array of a control image

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches. Where one has pictures, the next one is asked for, and read, before it is made."""
        iterator = iter(batches)
        batch = next(iterator, None)
        while batch is not None:
            following = None
            if any(_keys(spec) for spec in batch.specs):
                self._start_all(batch.specs)
                following = next(iterator, None)
                self._start_all(() if following is None else following.specs)
            yield batch
            batch = next(iterator, None) if following is None else following
            self._forget(() if batch is None else batch.specs)

    def of(self, specs: Sequence[ImageSpec]) -> list[Input] | None:
        """The inputs of a batch, in order; None where it starts from noise alone. Raises UserError."""
        if all(spec.picture is None for spec in specs):
            return None
        self._start_all(specs)
        return [
            self._start(_picture_key(spec, spec.picture), read_input).result()
            for spec in specs
            if spec.picture is not None
        ]

    def controls_of(self, specs: Sequence[ImageSpec]) -> list[tuple[np.ndarray, ...]] | None:
        """The control images of a batch, in order, for each a tuple; None where it has none. Raises UserError."""
        if not any(spec.active_controls for spec in specs):
            return None
        self._start_all(specs)
        return [
            tuple(self._start(_control_key(spec, one), read_control).result() for one in spec.active_controls)
            for spec in specs
        ]

    def _start_all(self, specs: Sequence[ImageSpec]) -> None:
        for spec in specs:
            for key in _keys(spec):
                self._start(key, read_input if isinstance(key.what, PictureInput) else read_control)

    def _start(self, key: _Key, read: Callable[..., Any]) -> "Future[Any]":
        if key not in self._read:
            self._read[key] = self._pool.submit(read, key.what, key.size)
        self._read.move_to_end(key)
        return self._read[key]

    def _forget(self, specs: Sequence[ImageSpec]) -> None:
        needed = {key for spec in specs for key in _keys(spec)}
        for key in list(self._read)[: max(0, len(self._read) - len(needed) - HELD)]:
            if key not in needed:
                del self._read[key]


def _keys(spec: ImageSpec) -> list[_Key]:
    """Of all files of an image."""
    own = [] if spec.picture is None else [_picture_key(spec, spec.picture)]
    return own + [_control_key(spec, control) for control in spec.active_controls]


def _picture_key(spec: ImageSpec, picture: PictureInput) -> _Key:
    return _Key((picture.image, picture.mask), replace(picture, strength=0.0), (spec.height, spec.width))


def _control_key(spec: ImageSpec, control: ControlInput) -> _Key:
    same = replace(control, net=0, scale=1.0, start=0.0, end=1.0, guess_mode=False)
    return _Key((control.image,), same, (spec.height, spec.width))
