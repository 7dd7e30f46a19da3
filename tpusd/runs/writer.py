"""Finished pixels -> files and manifest lines, behind the device's back. Knows nothing of how images are made."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tpusd import __version__
from tpusd.config.schema import RunConfig
from tpusd.plan.specs import ImageSpec
from tpusd.process import signals
from tpusd.recipes.files import SUFFIXES, encode_image
from tpusd.records.directory import RunDir
from tpusd.records.provenance import KEY_DERIVATION

NUM_ENCODERS = 4  # Pillow lets go of the interpreter while it encodes


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What a batch has in common. `fields` and the trace go into the manifest alone, not into the files.

    So a file is the same bytes wherever it was made. config: with the sha256 of the weights that made it.
    """

    config: RunConfig
    fields: Mapping[str, Any]


class ImageWriter:
    """Encodes and writes images in a pool, and appends their manifest lines in the order of submission.

    At most `max_pending` images wait, so that memory stays flat when the disk is slower than the device. The first
    error stops the rest, and comes out of the next `submit` or of `close`. Use as a context manager: leaving it, even
    by an exception, waits until what was submitted is on disk.
    """

    def __init__(self, run_dir: RunDir, describe: Callable[[ImageSpec], Mapping[str, Any]], *, max_pending: int):
        """describe: an image's manifest fields about its recipe."""
        self._run_dir, self._describe = run_dir, describe
        self._room = threading.Semaphore(max(1, max_pending))
        self._encoders = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="encode")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._error: BaseException | None = None
        self.num_written = 0

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._drain()
        if kind is None:
            self._raise_error()

    def submit(self, specs: Sequence[ImageSpec], images: Sequence[Any], made_by: MadeBy) -> None:
        """images: GeneratedImages, with pixels uint8 (H, W, 3) and a trace. Waits while too many are pending."""
        for spec, image in zip(specs, images, strict=True):
            self._room.acquire()
            self._raise_error()
            with signals.deferred():  # a file that is written gets its line
                written = self._encoders.submit(self._write, spec, image, made_by)
                self._committer.submit(self._commit, written)

    def _write(self, spec: ImageSpec, image: Any, made_by: MadeBy) -> dict[str, Any]:
        if self._error is not None:
            return {}
        described = dict(self._describe(spec))
        config = made_by.config
        data = encode_image(
            image.pixels,
            described | image_recipe(config, spec),
            image_format=config.image_format,
            quality=config.image_quality,
        )
        fields = self._run_dir.write_image(spec.name + SUFFIXES[config.image_format], data)
        return fields | described | made_by.fields | {"trace": dict(image.trace)} | dict(spec.extra)

    def _commit(self, written: Future) -> None:
        try:
            record = written.result()
            if self._error is None:
                self._run_dir.append_line(record)
                self.num_written += 1
        except BaseException as error:  # also what is no Exception must reach the main thread
            self._error = self._error or error
        finally:
            self._room.release()

    def _drain(self) -> None:
        self._encoders.shutdown(wait=True)
        self._committer.shutdown(wait=True)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def image_recipe(config: RunConfig, spec: ImageSpec) -> dict[str, Any]:
    """What the picture's own `tpusd` text says beyond its manifest fields: enough to make it again from it alone."""
    return {
        "sampler_settings": dataclasses.asdict(spec.sampler),
        "model_settings": dataclasses.asdict(config.model),
        "precision_settings": dataclasses.asdict(config.precision),
        "image_format": config.image_format,
        "image_quality": config.image_quality,
        "key_derivation": KEY_DERIVATION,
        "tpusd": __version__,
        "extra": dict(spec.extra),
    }
