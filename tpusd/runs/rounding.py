"""How far rounding alone moves an image, and whether that explains a difference.

An image is made again several times, from initial noise that is scaled by a small part of a rounding. From the first
model call on, values then fall on other sides of their roundings, as they do in a program for another batch size.
Most images hardly move; some sit on an edge, and there a rounding decides whether a shirt is red.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpusd.config.schema import DType, SavedConfig
from tpusd.plan.batches import grouped, pack
from tpusd.plan.specs import ImageSpec, make_spec
from tpusd.process.progress import Progress
from tpusd.process.report import report
from tpusd.records.compare import Comparison, Verdict
from tpusd.runs.dry_run import count
from tpusd.runs.executors.base import EncodedImage, FailedBatch
from tpusd.runs.executors.local import LoadPipeline, LocalExecutor
from tpusd.runs.prepare import Prepare, PreparedRun
from tpusd.samplers.rows import Table

NUM_VERSIONS = 8  # of an image, besides the one that is there
# By how much the noise of the versions differs, relatively: far less than a rounding, and at least one of float32.
SCALE_STEP: Mapping[DType, float] = {"bfloat16": 2.0**-18, "float16": 2.0**-21, "float32": 2.0**-23}

NUM_NEAREST = 3  # images within tolerance that are examined before those beyond it
MOST = 1.2  # times rounding; rounding alone gave at most 1.06 in 108 trials (docs/log.md)
GIVE_UP = 3  # images that differ by more than rounding, after which no more are examined

Key = tuple[int, int]  # (row, copy)


def examine(
    config: SavedConfig,
    comparisons: Mapping[Key, Comparison],
    pixels: Callable[[Key], tuple[np.ndarray | None, np.ndarray | None]],
    prepare: Prepare,
    load: LoadPipeline,
) -> dict[Key, Comparison]:
    """Where images are beyond the tolerance, whether rounding alone explains it: those examined, with their verdicts.

    Rounding moves some images so far that they say little. So the images nearest to their originals, which rounding
    moves least, are examined first. If one of them differs by more than rounding, rounding explains nothing.

    config: of the run that made them again.
    comparisons: of images of one recipe.
    pixels: (row, copy) -> the original and the image that was made again.
    prepare, load: see `prepare_run` and `load_pipeline`.
    """
    beyond = _nearest_first(comparisons, "different")
    if not beyond:
        return {}
    nearest = _nearest_first(comparisons, "within tolerance")[:NUM_NEAREST]
    number = count((len(nearest) + len(beyond)) * NUM_VERSIONS, "version")
    report(
        f"{count(len(beyond), 'image')} beyond the tolerance; {number} are made to see how far rounding moves images"
    )
    examined: dict[Key, Comparison] = {}
    with contextlib.closing(versions(config, [*nearest, *beyond], prepare, load)) as made:
        for key, others in made:
            original, again = pixels(key)
            if original is None or again is None:
                continue
            times = times_rounding(original, [again, *others])
            explained: Verdict = "within tolerance" if key in nearest else "within rounding"
            verdict: Verdict = explained if times <= MOST else "different"
            examined[key] = dataclasses.replace(comparisons[key], verdict=verdict, times_rounding=times)
            num_different = sum(one.verdict == "different" for one in examined.values())
            if num_different == GIVE_UP or (num_different and key in nearest):
                break
    return examined


def _nearest_first(comparisons: Mapping[Key, Comparison], verdict: Verdict) -> list[Key]:
    found = ((one.psnr, key) for key, one in comparisons.items() if one.verdict == verdict and one.psnr is not None)
    return [key for _, key in sorted(found, reverse=True)]


@dataclass(frozen=True)
class _Version:
    """A run whose initial noise is scaled: what an executor needs to know of it."""

    prepared: PreparedRun


def versions(
    config: SavedConfig, keys: Sequence[Key], prepare: Prepare, load: LoadPipeline
) -> Generator[tuple[Key, list[np.ndarray]]]:
    """Each image with NUM_VERSIONS versions of it, in order. Stop the iteration where no more are needed.

    config: of the run that has the images.
    keys: of the images.
    prepare, load: see `prepare_run` and `load_pipeline`.
    """
    prepared = prepare(config)
    step = SCALE_STEP[config.precision.unet.dtype]
    half = NUM_VERSIONS // 2
    runs = [_Version(_scaled(prepared, 1 + number * step)) for number in range(-half, half + 1) if number]
    with contextlib.closing(Progress(len(keys) * NUM_VERSIONS)) as progress:
        executor = LocalExecutor(progress, load=load)
        specs = [make_spec(config, *key) for key in keys]
        with executor:
            for group in grouped(specs, lambda spec: (spec.height, spec.width)):
                images = ((run, spec) for spec in group for run in runs)
                yield from _collected(executor, images, executor.batch_size(config))


def _collected(
    executor: LocalExecutor, images: Iterable[tuple[_Version, ImageSpec]], size: int
) -> Iterator[tuple[Key, list[np.ndarray]]]:
    found: dict[Key, list[np.ndarray]] = {}
    batches = pack(
        images, size, lambda run, spec: run.prepared.num_calls(spec), lambda run, spec: run.prepared.text_shape(spec)
    )
    for made in executor.generate(batches):
        if isinstance(made, FailedBatch):
            raise made.error
        for spec, image in zip(made.batch.specs, made.images, strict=True):
            key = spec.row, spec.copy
            assert not isinstance(image, EncodedImage)
            found.setdefault(key, []).append(image.pixels)
            if len(found[key]) == NUM_VERSIONS:
                yield key, found.pop(key)


def _scaled(prepared: PreparedRun, factor: float) -> PreparedRun:
    def table(spec: ImageSpec) -> Table:
        own = prepared.table(spec)
        return dataclasses.replace(own, init_scale=own.init_scale * factor)

    return dataclasses.replace(prepared, table=table, safety=None)


def times_rounding(image: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """How far an image is from others that differ by rounding alone: 1 is as far as the farthest of them.

    The distance is the root mean square to the mean of the others; for each of them, to the mean of the rest. Infinity
    where the others are equal and the image is another one.

    image: uint8 (H,W,3).
    others: at least two images of that shape.
    """
    stack = np.stack(others).astype(np.float64)
    total, number = stack.sum(axis=0), len(stack)
    farthest = max(_rms(one - (total - one) / (number - 1)) for one in stack)
    distance = _rms(image - total / number)
    if farthest == 0:
        return 0.0 if distance == 0 else float("inf")
    return distance / farthest


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
