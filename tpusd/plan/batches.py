"""Images in batches, and which runs share programs and weights. One packer serves one run and a sweep of thousands.

Pure Python: knows nothing of disks and devices. Images that share a checkpoint, precision and size share programs;
where guidance is for the same model calls, LoRAs and embeddings are the same and the calls are equally many, they
fill batches together, whichever run they are of.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tpusd.config.adapters import AppliedLora
from tpusd.config.cache import CacheConfig
from tpusd.config.embeddings import AppliedEmbedding
from tpusd.config.schema import ModelConfig, PrecisionConfig, SavedConfig
from tpusd.plan.specs import ImageSize, ImageSpec
from tpusd.syntax.rules import TextShape

Run = TypeVar("Run")
Item = TypeVar("Item")
Guided = bool | range  # which model calls have guidance: all, none, or these


@dataclass(frozen=True, kw_only=True)
class WeightsKey:
    """Runs with equal keys use the same weights on the devices."""

    model: ModelConfig
    precision: PrecisionConfig


@dataclass(frozen=True, kw_only=True)
class ProgramKey:
    """Images with equal keys are made by the same compiled programs. Sizes in pixels."""

    weights: WeightsKey
    height: int
    width: int
    batch_size_per_device: int


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the images of one batch have in common.

    given_noise: whether the host draws their noise.
    from_picture: whether they start from pictures.
    text: the shape of their prompts; None where they are plain.
    controls: the ControlNets that have an effect on them, by their places in `model.controlnets`.
    sized: whether they have size conditioning of their own.
    cache: None where every model call computes the whole denoiser.
    """

    guided: Guided
    given_noise: bool
    from_picture: bool
    loras: tuple[AppliedLora, ...]
    text: TextShape | None = None
    controls: tuple[int, ...] = ()
    sized: bool = False
    embeddings: tuple[AppliedEmbedding, ...] = ()
    cache: CacheConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Batch(Generic[Run]):
    """Images to make together, all of one `kind_of`. entries: (the image's run, its spec)."""

    entries: tuple[tuple[Run, ImageSpec], ...]

    @property
    def specs(self) -> tuple[ImageSpec, ...]:
        return tuple(spec for _, spec in self.entries)

    def parts(self) -> Iterator["Batch[Run]"]:
        """The batch cut where the run changes: each part has images of one run."""
        start = 0
        for stop in range(1, len(self.entries) + 1):
            if stop == len(self.entries) or self.entries[stop][0] is not self.entries[start][0]:
                yield Batch(entries=self.entries[start:stop])
                start = stop


def kind_of(spec: ImageSpec, num_calls: int, text: TextShape | None = None) -> Kind:
    """Images of one batch agree in this. num_calls: of the image. text: the shape of its prompts; None: plain."""
    guided = guided_of(spec, num_calls)
    return Kind(
        guided=guided,
        given_noise=spec.noise.is_torch,
        from_picture=spec.picture is not None,
        loras=spec.loras,
        text=text,
        controls=tuple(control.net for control in spec.active_controls),
        sized=spec.sizes is not None,
        embeddings=spec.embeddings,
        cache=None if all(full_calls(spec.cache, guided, num_calls)) else spec.cache,
    )


def guided_of(spec: ImageSpec, num_calls: int) -> Guided:
    """Which model calls have guidance. num_calls: of the image."""
    calls = spec.guided_calls(num_calls)
    return bool(calls) if len(calls) in (0, num_calls) else calls


def guided_pieces(guided: Guided, num_calls: int) -> list[tuple[range, bool]]:
    """Model calls in their order, cut where guidance begins and ends: (calls, whether they have it).

    num_calls: of the longest image of a batch.
    """
    if isinstance(guided, bool):
        return [(range(num_calls), guided)]
    pieces = [(range(guided.start), False), (guided, True), (range(guided.stop, num_calls), False)]
    return [(calls, has_it) for calls, has_it in pieces if calls]


@functools.lru_cache(1024)
def full_calls(cache: CacheConfig, guided: Guided, num_calls: int) -> tuple[bool, ...]:
    """For each model call, whether it computes the whole denoiser. The others reuse the deep half of the one before.

    The first one does, and so does a call at which guidance begins or ends, because the denoiser's batch changes there.
    """
    changes = (0,) if isinstance(guided, bool) else (0, guided.start, guided.stop)
    return tuple(call in changes or cache.computes(call) for call in range(num_calls))


def weights_key(config: SavedConfig) -> WeightsKey:
    nets = tuple(net.alone() for net in config.model.controlnets)
    model = dataclasses.replace(config.model, sha256=None, controlnets=nets)
    return WeightsKey(model=model, precision=config.precision)


def program_key(config: SavedConfig, size: ImageSize | None = None) -> ProgramKey:
    """Of a run's images of one size; None: the run's own size, which its rows may replace."""
    height, width = size or (config.height, config.width)
    return ProgramKey(
        weights=weights_key(config),
        height=height,
        width=width,
        batch_size_per_device=config.batch_size_per_device,
    )


def pack(
    images: Iterable[tuple[Run, ImageSpec]],
    size: int,
    num_calls: Callable[[Run, ImageSpec], int],
    text: Callable[[Run, ImageSpec], TextShape | None] = lambda run, spec: None,
) -> Iterator[Batch[Run]]:
    """Full batches as they fill up, then what is left over. Memory does not grow with the number of images.

    images: (run, spec), in the order in which they are wanted.
    size: images of a full batch, over all devices.
    num_calls: model calls that an image takes. A batch takes as long as its longest image, so equals go together.
    text: the shape of an image's prompts; without it all are plain.
    """
    waiting: dict[tuple[Kind, int], list[tuple[Run, ImageSpec]]] = {}
    for run, spec in images:
        calls = num_calls(run, spec)
        kind = (kind_of(spec, calls, text(run, spec)), calls)
        entries = waiting.setdefault(kind, [])
        entries.append((run, spec))
        if len(entries) == size:
            yield Batch(entries=tuple(waiting.pop(kind)))
    # What is left over is packed across lengths: idle steps cost less than a batch that is mostly padding.
    for common in dict.fromkeys(common for common, _ in waiting):
        lengths = sorted(calls for own, calls in waiting if own == common)
        rest = [entry for calls in lengths for entry in waiting[common, calls]]
        yield from (Batch(entries=tuple(rest[i : i + size])) for i in range(0, len(rest), size))


def count_batches(kinds: Iterable[tuple[Hashable, int]], size: int) -> int:
    """How many batches `pack` makes of images of these kinds.

    kinds: (what images of one batch have in common, number of model calls) of each image: `kind_of`, and its size
        where there are several. Or a Counter of these.
    size: images of a full batch.
    """
    left_over: Counter[Hashable] = Counter()
    full = 0
    for (program, _), number in Counter(kinds).items():
        full += number // size
        left_over[program] += number % size
    return full + sum(-(-number // size) for number in left_over.values())


def num_programs(kinds: Iterable[Kind]) -> int:
    """How many programs are compiled.

    encode, by the shape of prompts; decode; denoise with guidance, without it, or both, by noise, by whether images
    start from pictures, by their ControlNets, by sizes of their own, by chunks of prompts and by the branch of a cache;
    what encodes pictures, and what embeds those of each ControlNet.
    """
    every = set(kinds)
    needed = {
        (
            has_it,
            kind.given_noise,
            kind.from_picture,
            kind.controls,
            kind.sized,
            1 if kind.text is None else kind.text.chunks,
            None if kind.cache is None else kind.cache.branch,
        )
        for kind in every
        for has_it in ((kind.guided,) if isinstance(kind.guided, bool) else (True, False))
    }
    encoders = max(1, len({kind.text for kind in every}))
    nets = {net for kind in every for net in kind.controls}
    return encoders + 1 + len(needed) + any(kind.from_picture for kind in every) + len(nets)


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items with equal keys together, in the order in which the keys first come."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
